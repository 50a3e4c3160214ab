"""A translator for parallel text of one's own (docs/tutorials/translation.md)."""

from __future__ import annotations

from collections.abc import Sequence

from raylingvo.data.text import TextPairs
from raylingvo.data.tokenizers import SentencePieceTokenizer
from raylingvo.experiment import Best, Checkpoints, EarlyStop, Experiment, Reading, Snapshots, Train
from raylingvo.models.mt.decoding import Decoding
from raylingvo.models.mt.recipes import pairs, small_transformer, transformer_learner
from raylingvo.models.mt.translation import Translation
from raylingvo.registry import register

_WORDS = 4_000
_TOKENIZER = SentencePieceTokenizer(spm_model="corpus/spm.model")
_BOUNDS = (10, 14, 19, 26, 36, 50, 70, 98)
_SCORE = "dev/sacrebleu"


def _lines(name: str, batch_sizes: Sequence[int] = ()) -> TextPairs:
    """Two files, line by line."""
    return pairs(
        f"corpus/{name}.source",
        _TOKENIZER,
        (_BOUNDS, batch_sizes),
        source="",
        target="",
        target_records=f"corpus/{name}.target",
    )


@register("mt.parallel_text.Transformer")
def transformer() -> Experiment:
    """For two text files of your own: 2 + 2 layers of 256, one vocabulary of 4,000 pieces, until BLEU stops rising.

    The text: `corpus/train.source` and `corpus/train.target`, a sentence a line, and `dev` likewise. The vocabulary:
    `raylingvo data vocab corpus/train.source,corpus/train.target --type sentencepiece --size 4000 --out
    corpus/spm.model`. Model and rate are those that are good for 29,000 pairs, see `mt.multi30k`. raylingvo's own.
    """
    return Experiment(
        task=Translation(
            model=small_transformer(_WORDS),
            source_tokenizer=_TOKENIZER,
            target_tokenizer=_TOKENIZER,
            decoding=Decoding(length_normalization=1.0),
            label_smoothed_eval=False,  # so that exp(log_pplx) is a perplexity
        ),
        datasets={"train": _lines("train", [2_400 // bound for bound in _BOUNDS]), "dev": _lines("dev")},
        # A schedule that need not know how long the training is.
        learner=transformer_learner(1.0, 1_000, 256),
        train=Train(
            batch_size=64,
            max_steps=50_000,
            # Each checkpoint has a snapshot, and so perhaps a score.
            snapshots=Snapshots(every_steps=500),
            checkpoints=Checkpoints(every_steps=500, best=Best(metric=_SCORE, mode="max", keep=3)),
            early_stop=EarlyStop(metric=_SCORE, mode="max", window=3_000),
        ),
        eval={"dev": Reading()},
        # The beams of 16 sentences are 128 rows.
        decode={"dev": Reading(batch_size=16)},
    )
