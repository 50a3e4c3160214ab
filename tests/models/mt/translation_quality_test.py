"""What translators reach on real text: learned by heart in minutes, and Multi30k in ninety (docs/results.md)."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import raylingvo as rl
from raylingvo.actors.offline import read_checkpoints
from raylingvo.data.prepare import prepare
from raylingvo.data.records import open_records, write_records
from raylingvo.data.tf_example import Feature, parse_examples
from raylingvo.data.tokenizers import SentencePieceTokenizer, T2tSubwordTokenizer, WpmTokenizer
from raylingvo.data.vocabulary import train_vocab
from raylingvo.experiment import Reading, Snapshots
from raylingvo.training.optimizers import Adam
from raylingvo.training.schedules import LinearRampupCosine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.data,
    pytest.mark.ray,
    # ray.shutdown() kills the processes that it started, and does not wait for them to be gone.
    pytest.mark.filterwarnings("ignore:.*Popen.__del__:pytest.PytestUnraisableExceptionWarning"),
]

SMALL_TRANSFORMER = {
    "task.model.model_dim": 128,
    "task.model.hidden_dim": 512,
    "task.model.num_heads": 4,
    "task.model.num_encoder_layers": 2,
    "task.model.num_decoder_layers": 2,
    "task.model.input_dropout": 0.0,
    "task.model.residual_dropout": 0.0,
}
STANDARD = {"task.model.normalized_residual": False, "task.model.final_norm": True}
SMALL_RNMT = {
    "task.model.model_dim": 128,
    "task.model.hidden_dim": 128,
    "task.model.num_heads": 2,
    "task.model.num_encoder_layers": 2,
    "task.model.num_decoder_layers": 2,
    "task.model.dropout": 0.0,
    "task.model.attention_dropout": 0.0,
}


def by_heart(name, tokenizer, bounds, batch_size, max_steps, settings):
    """A registered experiment, to learn its dataset `train`, and to decode that with beams of 8."""
    experiment = rl.get(name)
    alone = dataclasses.replace(
        experiment,
        datasets={"train": experiment.datasets["train"]},
        eval={},
        decode={"train": Reading(policy="last")},
    )
    return rl.override(
        alone,
        {
            "datasets.train.bucket_bounds": bounds,
            "datasets.train.bucket_batch_sizes": (batch_size,) * len(bounds),
            "task.source_tokenizer": tokenizer,
            "task.target_tokenizer": tokenizer,
            "task.model.source_vocab_size": tokenizer.vocab_size,
            "task.model.target_vocab_size": tokenizer.vocab_size,
            "task.label_smoothing": 0.0,
            "task.decoding.num_hyps_per_beam": 8,
            "learner.learning_rate": 1e-3,
            "learner.schedule": LinearRampupCosine(warmup_steps=200, total_steps=max_steps, final_value=0.05),
            "learner.optimizer": Adam(beta2=0.98, epsilon=1e-9),
            "train.max_steps": max_steps,
            "train.snapshots": Snapshots(every_steps=max_steps),
            **settings,
        },
    )


def wmt_pairs(test_data: Path, number: int) -> list[dict[str, str]]:
    """The first pairs of WMT of 4 to 12 subwords on either side, each source once."""
    records = open_records(f"tfrecord:{test_data}/wmt/translate_ende_wmt32k-train-00511-of-00512")
    features = {name: Feature(dtype="int64") for name in ("inputs", "targets")}
    subwords = T2tSubwordTokenizer(vocab_filepath=f"{test_data}/vocab/mlperf.ende.subwords.vocab")
    found: dict[str, str] = {}
    for example in parse_examples(records.read(np.arange(len(records))), features):
        sides = [np.asarray(example[name])[:-1] for name in features]
        if all(4 <= len(ids) + 1 <= 12 for ids in sides):
            source, target = (subwords.decode(ids[None], [len(ids)])[0] for ids in sides)
            found.setdefault(source, target)
        if len(found) == number:
            break
    return [{"en": source, "de": target} for source, target in found.items()]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("WmtEnDeTransformerBase", SMALL_TRANSFORMER),
        ("WmtEnDeTransformerBase", SMALL_TRANSFORMER | STANDARD),
        ("WmtEnDeRNMT", SMALL_RNMT),
    ],
    ids=["transformer", "standard", "rnmt"],
)
def test_200_pairs_by_heart(name, settings, test_data, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    pairs = wmt_pairs(test_data, 200)
    assert len(pairs) == 200
    write_records("wmt14_ende/train.parquet", pairs)
    texts = [pair[side] for side in ("en", "de") for pair in pairs]
    train_vocab("sentencepiece", texts, 1_000, tmp_path / "spm.model")
    tokenizer = SentencePieceTokenizer(spm_model="spm.model")
    keys = {"datasets.train.source_tokenizer": tokenizer, "datasets.train.target_tokenizer": tokenizer}
    experiment = by_heart(f"mt.wmt14_en_de.{name}", tokenizer, (16, 24, 48), 50, 1_200, settings | keys)
    scores = rl.run(experiment, logdir=tmp_path / "run")["decode"]["train"]
    print(json.dumps({"name": name, **scores}))
    assert scores["num_samples_in_batch"] == 200
    assert scores["corpus_bleu"] > 0.9


@pytest.mark.timeout(1200)
def test_punctuation_by_heart(test_data, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    lines = (test_data / "lm/lm1b_100.txt").read_text().splitlines()
    (tmp_path / "brown").mkdir()
    (tmp_path / "brown/train.txt").write_text("\n".join(lines) + "\n")
    train_vocab("wpm", lines, 1_000, tmp_path / "brown/wpm.vocab")
    tokenizer = WpmTokenizer(vocab_filepath="brown/wpm.vocab")
    keys = {"datasets.train.tokenizer": tokenizer}
    experiment = by_heart("punctuator.codelab.RNMTModel", tokenizer, (30, 60), 25, 1_200, SMALL_RNMT | keys)
    scores = rl.run(experiment, logdir=tmp_path / "run")["decode"]["train"]
    outputs = [
        json.loads(line)
        for line in next((tmp_path / "run/decode_train").glob("decoder_out-*")).read_text().splitlines()
    ]
    exact = np.mean([output["hypotheses"][0]["text"] == output["reference"] for output in outputs])
    print(json.dumps({"sentences": len(outputs), "exact_match": exact, **scores}))
    assert len(outputs) >= 75
    assert exact > 0.9


@pytest.mark.timeout(3 * 3600)
def test_multi30k(test_data, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    prepare("multi30k", test_data / "multi30k")
    experiment = rl.get("mt.multi30k.EnDeTransformer")
    records = open_records("multi30k/train.parquet")
    texts = [text for record in records.read(np.arange(len(records))) for text in (record["en"], record["de"])]
    train_vocab("sentencepiece", texts, experiment.task.model.source_vocab_size, tmp_path / "multi30k/spm.5000.model")
    result = rl.run(experiment, logdir=tmp_path / "run")
    averaged = read_checkpoints("decode", tmp_path / "run", datasets=["test"], average=5)
    print(json.dumps({"run": result["decode"], "average of 5": averaged["decode"]}))
    assert result["decode"]["test"]["num_samples_in_batch"] == 1_000
    assert result["decode"]["test"]["sacrebleu"] > 33
