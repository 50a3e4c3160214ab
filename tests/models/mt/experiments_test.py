"""Lingvo's translation experiments: their sizes, and that a user changes languages, vocabularies and sizes by keys."""

import pytest

import raylingvo as rl
from raylingvo import describe
from raylingvo.data.records import write_records
from raylingvo.data.tokenizers import AsciiTokenizer
from raylingvo.training.shapes import StepForShapes
from raylingvo.training.state import init_state
from raylingvo.training.step import make_train_step


def attention(dim, head):
    """Four projections with biases, a scale for each dimension of a head, a norm."""
    return 4 * (dim * dim + dim) + head + 2 * dim


def transformer(layers, dim, hidden, heads, words):
    feed_forward = 2 * dim * hidden + hidden + dim + 2 * dim
    encoder_layer = attention(dim, dim // heads) + feed_forward
    decoder_layer = encoder_layer + attention(dim, dim // heads)
    return 3 * words * dim + words + layers * (encoder_layer + decoder_layer)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("mt.wmt14_en_de.WmtEnDeTransformerBase", transformer(6, 512, 2048, 8, 32_000)),
        ("mt.wmt14_en_de.WmtEnDeTransformerSmall", transformer(2, 64, 128, 2, 32_000)),
        ("mt.wmtm16_en_de.WmtCaptionEnDeTransformer", transformer(2, 256, 512, 2, 2_000)),
        # As derived in rnmt_model_test; the punctuator has half the words in embeddings, softmax and its biases.
        ("mt.wmt14_en_de.WmtEnDeRNMT", 378_866_176),
        ("punctuator.codelab.RNMTModel", 378_866_176 - 16_000 * (1024 + 1024 + 2048 + 1)),
    ],
)
def test_weights(name, weights):
    assert describe.model(rl.get(name))["num_params"] == weights
    if name.endswith("Base"):
        assert weights == 93_323_648


def test_languages_vocabularies_and_sizes_are_changed_by_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    pairs = [{"fr": f"{n}{n}", "es": "x" * n} for n in range(1, 9)]
    write_records("mine/train.parquet", pairs)
    tokenizer = AsciiTokenizer()
    experiment = rl.override(
        rl.get("mt.wmt14_en_de.WmtEnDeTransformerBase"),
        {
            "datasets.*.records": "mine/train.parquet",
            "datasets.*.source": "fr",
            "datasets.*.target": "es",
            "datasets.*.source_tokenizer": tokenizer,
            "datasets.*.target_tokenizer": tokenizer,
            "datasets.*.bucket_bounds": (10,),
            "datasets.*.bucket_batch_sizes": (4,),
            "task.source_tokenizer": tokenizer,
            "task.target_tokenizer": tokenizer,
            "task.model.source_vocab_size": 76,
            "task.model.target_vocab_size": 80,
            "task.model.model_dim": 8,
            "task.model.hidden_dim": 16,
            "task.model.num_heads": 2,
            "task.model.num_encoder_layers": 1,
            "task.model.num_decoder_layers": 1,
        },
    )
    batches = experiment.datasets["train"].train_batches(4, 0)
    state = init_state(experiment, batches[0])
    step = StepForShapes(make_train_step(experiment))
    step.compile(state, batches.samples())
    state, _ = step(state, batches[0])
    total, weight = state.totals["log_pplx"]
    assert weight == (batches[0]["tgt_paddings"] == 0).sum()
    assert 0 < total / weight < 10
