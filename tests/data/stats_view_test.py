"""What a person sees of `data stats` and `data bench`: numbers in full."""

from raylingvo.data import stats_view

STATS = {
    "records": 1234567,
    "unit": "ids",
    "lengths": {"min": 1, "mean": 98765.432, "max": 123456, "total": 9876543210, "p50": 12345},
    "histogram": [[61727, 1234000], [123456, 567]],
    "buckets": {"upper_bounds": [12345, 123456], "batch_sizes": [2, 1], "padding_waste": 0.125},
}
BENCH = {
    "experiment": "a.b",
    "dataset": "train",
    "batches": 2000,
    "examples": 1234567,
    "seconds": 2.0,
    "open_seconds": 0.25,
    "batches_per_second": 1000.0,
    "examples_per_second": 617283.5,
    "facts": {"num_too_long": 1234567.0, "packing_fill": 0.98765},
}


def test_stats_are_in_full(capsys):
    stats_view.print_stats(STATS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1,234,567 records, 9,876,543,210 ids"
    assert lines[1] == "length in ids: min 1  mean 98,765.4  max 123,456  p50 12,345"
    assert [line.split() for line in lines[3:5]] == [
        ["<=", "61,727", "1,234,000", "#" * 40],
        ["<=", "123,456", "567", "#"],
    ]
    assert "  bucket_bounds [12345, 123456]" in lines


def test_the_picture_is_named(capsys):
    stats_view.print_stats({**STATS, "plot": "x.png"})
    assert capsys.readouterr().out.endswith("\nx.png\n")


def test_bench_is_in_full(capsys):
    stats_view.print_bench(BENCH)
    assert capsys.readouterr().out.splitlines() == [
        "a.b train: 2,000 batches of 1,234,567 examples in 2.00 s, first batch after 0.25 s",
        "617,284 examples/s, 1,000.0 batches/s",
        "num_too_long 1,234,567",
        "packing_fill 0.9877",
    ]


def test_bench_of_packed_sequences(capsys):
    result = {name: value for name, value in BENCH.items() if not name.startswith("examples")}
    tokens = {
        "tokens": {"src": 4000000, "tgt": 2000000},
        "tokens_per_second": {"src": 2e6, "tgt": 1e6},
        "padding_waste": 0.1,
    }
    stats_view.print_bench({**result, "rows": 100, "rows_per_second": 50.0, **tokens})
    lines = capsys.readouterr().out.splitlines()
    assert "of 100 rows" in lines[0]
    assert lines[1:5] == [
        "50 rows/s, 1,000.0 batches/s",
        "src: 4,000,000 tokens, 2,000,000 tokens/s",
        "tgt: 2,000,000 tokens, 1,000,000 tokens/s",
        "10.0% padding",
    ]
