"""What Decoders wrote, side by side: which steps, which examples, and what differs."""

import json

import pytest

from raylingvo.errors import RequestError
from raylingvo.monitor.decode_compare import best_text, compare_outputs
from raylingvo.monitor.metrics_log import MetricsLog

GOOD, FAIR, BAD = "one two three", "one two four", "nothing at all"


def output(number, text, **fields):
    hypotheses = [{"text": text, "score": -1.0, "tokens": text.split()}] if text is not None else []
    return {"id": str(number), "source": f"source {number}", "reference": GOOD, "hypotheses": hypotheses, **fields}


def write(folder, dataset, steps):
    """steps: step -> outputs."""
    place = folder / f"decode_{dataset}"
    with MetricsLog(place) as log:
        for step, outputs in steps.items():
            log.write(step, {"sacrebleu": step / 10, "lag_seconds": 1.0}, time=0.0)
            text = "".join(json.dumps(o) + "\n" for o in outputs)
            (place / f"decoder_out-{step:08d}.jsonl").write_text(text)
    (place / "signatures.json").write_text('{"sacrebleu": "tok:13a"}')


@pytest.fixture
def run(make_logdir):
    """A run with outputs of dev at steps 10, 20 and 90."""
    logdir = make_logdir("run")
    write(
        logdir,
        "dev",
        {10: [output(0, BAD), output(1, GOOD)], 20: [output(0, FAIR)], 90: [output(0, GOOD), output(1, FAIR)]},
    )
    return logdir


def test_the_first_and_the_last_step_of_one_run(run):
    found = compare_outputs([run])
    assert [(c.name, c.step) for c in found.columns] == [("run @ 10", 10), ("run @ 90", 90)]
    assert [dict(c.metrics) for c in found.columns] == [{"sacrebleu": 1.0}, {"sacrebleu": 9.0}]
    assert found.columns[0].signatures == {"sacrebleu": "tok:13a"}
    assert found.settings == {}
    better, worse = found.examples
    assert better.common == {"source": "source 0", "reference": GOOD}
    assert [own["hypotheses"][0]["text"] for own in better.own] == [BAD, GOOD]
    assert better.scores[1] == worse.scores[0] == pytest.approx(100)
    assert better.difference == pytest.approx(100 - better.scores[0])
    assert worse.difference < 0 < better.scores[0] < worse.scores[1] < 100
    assert json.loads(json.dumps(found.json(), allow_nan=False))["examples"] == 2


def test_given_steps_and_examples_that_some_lack(run):
    found = compare_outputs([run], "dev", [90, 20])
    assert [c.step for c in found.columns] == [90, 20]
    assert found.examples[1].own[1] is None
    assert (found.examples[1].scores[1], found.examples[1].difference) == (None, None)
    (lone,) = compare_outputs([run], "dev", [20]).examples
    assert lone.difference is None


def test_the_last_steps_of_several_runs_and_their_settings(make_logdir, run):
    write(other := make_logdir("other", learning_rate=0.5), "dev", {40: [output(0, None)], 50: [output(0, BAD)]})
    found = compare_outputs([run, other])
    assert [c.name for c in found.columns] == ["run @ 90", "other @ 50"]
    assert found.settings == {"learner.learning_rate": {"run @ 90": "0.001", "other @ 50": "0.5"}}
    assert [c.step for c in compare_outputs([run, other], steps=[20, 40]).columns] == [20, 40]
    (example, _) = compare_outputs([run, other], steps=[10, 40]).examples
    assert example.scores[1] == 0  # of no hypothesis
    assert [c.run.id for c in compare_outputs([run.parent]).columns] == ["id-other", "id-run"]


def test_a_variant_is_compared_with_its_run(run):
    variant = run / "variants" / "average-10+20,beam=4"
    variant.mkdir(parents=True)
    (variant / "variant.json").write_text(json.dumps({"average": [10, 20], "set": {"learner.learning_rate": "0.25"}}))
    write(variant, "dev", {20: [output(0, BAD)]})
    found = compare_outputs([run, variant])
    names = ["run @ 90", "average-10+20,beam=4 @ 20"]
    assert [c.name for c in found.columns] == names
    assert found.columns[1].run.id == "id-run"
    assert found.settings == {
        "learner.learning_rate": dict(zip(names, ["0.001", "0.25"], strict=True)),
        "average": {names[1]: "[10, 20]"},
    }


def test_outputs_of_any_task_and_ids_that_come_twice(make_logdir):
    logdir = make_logdir("a")
    lines = [{"id": "3", "label": 1, "kind": "x"}, {"id": "3", "label": 2}, {"label": 5}]
    write(logdir, "test", {10: lines, 20: [{**line, "label": 1} for line in lines]})
    found = compare_outputs([logdir])
    assert [e.key for e in found.examples] == ["3", "3 (2)", "3 (3)"]  # the last for its place
    assert [(dict(e.common), e.own) for e in found.examples][:2] == [
        ({"label": 1, "kind": "x"}, [{}, {}]),
        ({}, [{"label": 2}, {"label": 1}]),
    ]
    assert {e.difference for e in found.examples} == {None}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"hypotheses": []}, ""),
        ({"hypotheses": [{"text": "a"}, {"text": "b"}]}, "a"),
        ({"hypotheses": "a"}, None),
        ({}, None),
    ],
)
def test_the_text_of_the_best_hypothesis(fields, text):
    assert best_text(fields) == text


def test_what_is_not_there_is_refused_with_what_is(make_logdir, run):
    write(run, "test", {10: []})
    write(other := make_logdir("other"), "test", {10: [], 30: []})
    bare = make_logdir("bare")
    cases = [
        (([bare],), "bare has no decoder outputs; `raylingvo decode` makes them"),
        (([run],), "--dataset NAME is needed: there are outputs of dev, test"),
        (([run], "train"), "--dataset train: no outputs in .*run; there are of dev, test"),
        (([run], "dev", [10, 30]), "--step 30: no outputs of dev in .*run; there are of steps 10, 20, 90"),
        (([run, other], "test", [10, 30, 10]), r"--step: one for all of the 2 logdirs, or one for each \(got 3\)"),
        (([run, other], "test", [10, 20]), "--step 20: no outputs of test in .*other; there are of steps 10, 30"),
        (([run / "decode_dev"],), "decode_dev is not a logdir and holds none"),
    ]
    for arguments, message in cases:
        with pytest.raises(RequestError, match=message) as caught:
            compare_outputs(*arguments)
        assert "\n" not in str(caught.value)
    write(third := make_logdir("third"), "more", {10: []})
    with pytest.raises(
        RequestError, match=r"no dataset has outputs in all of them \(.*run: dev, test; .*third: more\)"
    ):
        compare_outputs([run, third])


@pytest.mark.parametrize(("line", "message"), [("{", "line 2: not JSON"), ("[1]", "line 2: not an object")])
def test_damaged_outputs_are_named(run, line, message):
    (run / "decode_dev" / "decoder_out-00000010.jsonl").write_text("{}\n" + line + "\n")
    with pytest.raises(RequestError, match=f"decoder_out-00000010.jsonl, {message}"):
        compare_outputs([run])
    (run / "decode_dev" / "signatures.json").write_text("[1]")
    with pytest.raises(RequestError, match=r"signatures\.json is not a JSON object"):
        compare_outputs([run])
