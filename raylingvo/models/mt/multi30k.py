"""Captions of images in English and German, Multi30k: the best translator found for ninety minutes of two CPU cores."""

from __future__ import annotations

from raylingvo.data.tokenizers import SentencePieceTokenizer
from raylingvo.experiment import Experiment, Reading, Snapshots, Train
from raylingvo.models.mt.decoding import Decoding
from raylingvo.models.mt.recipes import small_transformer, splits
from raylingvo.models.mt.translation import Translation
from raylingvo.registry import register
from raylingvo.training.learner import Learner
from raylingvo.training.optimizers import Adam
from raylingvo.training.schedules import LinearRampupCosine

_VOCABULARY = 5_000


@register("mt.multi30k.EnDeTransformer")
def en_de_transformer() -> Experiment:
    """2 + 2 layers of 256 for Multi30k, English to German; one vocabulary and one table of embeddings for both.

    The vocabulary: `raylingvo data vocab multi30k/train.parquet --field en --field de --type sentencepiece --size 5000
    --out multi30k/spm.5000.model`. raylingvo's own.
    """
    tokenizer = SentencePieceTokenizer(spm_model=f"multi30k/spm.{_VOCABULARY}.model")
    bounds = (11, 13, 15, 17, 20, 24, 32, 80)
    max_steps = 4_600
    return Experiment(
        task=Translation(
            model=small_transformer(_VOCABULARY),
            source_tokenizer=tokenizer,
            target_tokenizer=tokenizer,
            decoding=Decoding(length_normalization=1.0),
        ),
        datasets=splits(
            "multi30k",
            tokenizer,
            (bounds, [2_400 // bound for bound in bounds]),
            (bounds, [max(8, 800 // bound) for bound in bounds]),
        ),
        learner=Learner(
            learning_rate=2e-3,
            schedule=LinearRampupCosine(warmup_steps=500, total_steps=max_steps, final_value=0.02),
            optimizer=Adam(beta2=0.98, epsilon=1e-9),
            clip_gradient_norm_to_value=1.0,
        ),
        train=Train(batch_size=64, max_steps=max_steps, snapshots=Snapshots(every_steps=500)),
        eval={"dev": Reading()},
        # Beams while training goes on would take its two cores.
        decode={"dev": Reading(policy="last"), "test": Reading(policy="last")},
    )
