"""What the experiments of translation share: datasets of pairs, a small model, and Lingvo's recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raylingvo.data.dataset import Dataset
from raylingvo.data.text import TextPairs
from raylingvo.data.tokenizers import Tokenizer
from raylingvo.models.mt.decoding import Decoding
from raylingvo.models.mt.transformer_model import TransformerModel
from raylingvo.training.grad_norm_tracker import GradNormTracker
from raylingvo.training.learner import Learner
from raylingvo.training.optimizers import Adam
from raylingvo.training.schedules import LinearRampupExponentialDecayScaledByNumSplit, Transformer

# Bounds of buckets, and the batch size of each.
Buckets = tuple[Sequence[int], Sequence[int]]

# Lingvo's: about 4,096 tokens a batch in training.
WMT_TRAIN: Buckets = (
    (8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96),
    (512, 409, 341, 292, 256, 204, 170, 146, 128, 102, 85, 73, 64, 51, 42),
)
WMT_READING: Buckets = ((10, 14, 19, 26, 36, 50, 70, 98, 137, 200), (16,) * 8 + (4,) * 2)

RNMT_DECODING = Decoding(num_hyps_per_beam=16, length_normalization=0.2, coverage_penalty=0.2)


def pairs(
    records: str,
    tokenizer: Tokenizer,
    buckets: Buckets,
    *,
    source: str = "en",
    target: str = "de",
    kind: type[TextPairs] = TextPairs,
    **fields: Any,
) -> TextPairs:
    """A dataset of pairs with one vocabulary, bucketed by the longer side. fields: others of `kind`."""
    return kind(
        records=records,
        source=source,
        target=target,
        source_tokenizer=tokenizer,
        target_tokenizer=tokenizer,
        bucket_bounds=tuple(buckets[0]),
        bucket_batch_sizes=tuple(buckets[1]),
        **fields,
    )


def splits(folder: str, tokenizer: Tokenizer, train: Buckets, reading: Buckets) -> Mapping[str, Dataset]:
    """train, dev and test, English to German, as `raylingvo data prepare` writes them. reading: of dev and test."""
    buckets = {"train": train, "dev": reading, "test": reading}
    return {name: pairs(f"{folder}/{name}.parquet", tokenizer, buckets[name]) for name in buckets}


def small_transformer(words: int) -> TransformerModel:
    """2 + 2 layers of 256 for tens of thousands of pairs: the usual Transformer, without Lingvo's peculiarities."""
    return TransformerModel(
        source_vocab_size=words,
        target_vocab_size=words,
        model_dim=256,
        hidden_dim=512,
        num_heads=4,
        num_encoder_layers=2,
        num_decoder_layers=2,
        normalized_residual=False,
        final_norm=True,
        query_scale="sqrt_dim",
        shared_embeddings="all",
        input_dropout=0.2,
        residual_dropout=0.2,
    )


def transformer_learner(learning_rate: float, warmup_steps: int, model_dim: int) -> Learner:
    """Lingvo's for its Transformers: Adam with ParamsB, the Transformer's schedule, nothing clipped."""
    return Learner(
        learning_rate=learning_rate,
        schedule=Transformer(warmup_steps=warmup_steps, model_dim=model_dim),
        optimizer=Adam(beta2=0.98, epsilon=1e-9),
    )


def rnmt_learner() -> Learner:
    """Lingvo's for RNMT+: Adam at 1e-4, halved from step 400,000 to 1,200,000; updates of unusual norms are dropped."""
    return Learner(
        learning_rate=1e-4,
        schedule=LinearRampupExponentialDecayScaledByNumSplit(
            warmup=500, decay_start=400_000, decay_end=1_200_000, min=0.5
        ),
        optimizer=Adam(beta2=0.98),
        l2_regularizer_weight=1e-5,
        grad_norm_to_clip_to_zero=1e5,
        grad_norm_tracker=GradNormTracker(),
    )
