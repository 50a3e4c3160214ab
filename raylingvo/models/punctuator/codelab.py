"""Lingvo's codelab: capitals and punctuation for the Brown corpus (tasks/punctuator/params/codelab.py).

`raylingvo data prepare brown` makes the text, and `raylingvo data vocab brown/train.txt --type wpm --size 16000 --out
brown/wpm.16000.vocab` the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from raylingvo.data.punctuation import PunctuatorLines
from raylingvo.data.tokenizers import WpmTokenizer
from raylingvo.experiment import Experiment, Reading, Train
from raylingvo.models.mt.recipes import RNMT_DECODING, rnmt_learner
from raylingvo.models.mt.rnmt_model import RnmtModel
from raylingvo.models.punctuator.punctuator import Punctuator
from raylingvo.registry import register

_WORDS = 16_000
_TOKENIZER = WpmTokenizer(vocab_filepath="brown/wpm.16000.vocab")


def _lines(split: str, bounds: Sequence[int], batch_sizes: Sequence[int]) -> PunctuatorLines:
    return PunctuatorLines(
        records=f"brown/{split}.txt",
        tokenizer=_TOKENIZER,
        bucket_bounds=tuple(bounds),
        bucket_batch_sizes=tuple(batch_sizes),
    )


@register("punctuator.codelab.RNMTModel")
def rnmt_model() -> Experiment:
    """Lingvo's punctuator: RNMT+ from lower-case text without punctuation to the text as it was, 16,000 word pieces."""
    bounds = (10, 20, 30, 60, 120)
    return Experiment(
        task=Punctuator(
            model=RnmtModel(source_vocab_size=_WORDS, target_vocab_size=_WORDS),
            source_tokenizer=_TOKENIZER,
            target_tokenizer=_TOKENIZER,
            decoding=RNMT_DECODING,
            per_word_avg_loss=False,
        ),
        datasets={
            "train": _lines("train", bounds, (512, 256, 160, 80, 40)),
            "test": _lines("test", (*bounds, 200), (16,) * 4 + (4,) * 2),
        },
        learner=rnmt_learner(),
        # The buckets have batch sizes of their own.
        train=Train(batch_size=128, max_steps=4_000_000),
        eval={"test": Reading()},
        decode={"test": Reading()},
    )
