"""WMT14 English-German by XEnDec (Lingvo: tasks/mt/params/xendec/wmt14_en_de.py).

`raylingvo data prepare wmt14_ende` makes the text. The vocabulary needs a piece that no text has, for masked words, at
the place that `mask_word_id` says, the sixth:

`raylingvo data vocab wmt14_ende/train.parquet --field en --field de --type wpm --size 31999 --out
wmt14_ende/wpm.31999.vocab`, and then `sed '5a <mask>' wpm.31999.vocab > wpm.32000.mask.vocab` in that folder.
"""

from __future__ import annotations

from raylingvo.data.text import TextPairs
from raylingvo.data.text_doubles import TextDoubles
from raylingvo.data.tokenizers import WpmTokenizer
from raylingvo.experiment import Checkpoints, Experiment, Reading, Train
from raylingvo.models.mt.decoding import Decoding
from raylingvo.models.mt.recipes import WMT_READING, WMT_TRAIN, Buckets, pairs, transformer_learner
from raylingvo.models.mt.xendec.model import XEnDecModel
from raylingvo.models.mt.xendec.task import XEnDec
from raylingvo.registry import register

_FOLDER, _WORDS = "wmt14_ende", 32_000
_TOKENIZER = WpmTokenizer(vocab_filepath=f"{_FOLDER}/wpm.{_WORDS}.mask.vocab")
_TRAIN: Buckets = (
    (*WMT_TRAIN[0], 112, 128, 160, 192, 224, 256),
    (*WMT_TRAIN[1], 36, 32, 25, 21, 18, 16),
)
_READING: Buckets = ((*WMT_READING[0][:-1], 300), WMT_READING[1])


@register("mt.xendec.wmt14_en_de.WmtEnDeXEnDec")
def wmt_en_de_xendec() -> Experiment:
    """Lingvo's F2-XEnDec on WMT14 English-German: Transformer base, trained with crossed sentences, 93.3 M weights.

    Monolingual German is `datasets.train.mono_records`; without it, the German of the pairs.
    """
    return _experiment("en", "de")


@register("mt.xendec.wmt14_en_de.WmtDeEnXEnDec")
def wmt_de_en_xendec() -> Experiment:
    """The other direction of WmtEnDeXEnDec; monolingual text is English."""
    return _experiment("de", "en")


def _experiment(source: str, target: str) -> Experiment:
    def dataset(kind: type[TextPairs], name: str, buckets: Buckets) -> TextPairs:
        return pairs(f"{_FOLDER}/{name}.parquet", _TOKENIZER, buckets, source=source, target=target, kind=kind)

    return Experiment(
        task=XEnDec(
            model=XEnDecModel(source_vocab_size=_WORDS, target_vocab_size=_WORDS),
            source_tokenizer=_TOKENIZER,
            target_tokenizer=_TOKENIZER,
            decoding=Decoding(length_normalization=0.6, beam_size=4.0),
        ),
        datasets={
            "train": dataset(TextDoubles, "train", _TRAIN),
            "dev": dataset(TextPairs, "dev", _READING),
            "test": dataset(TextPairs, "test", _READING),
        },
        learner=transformer_learner(1.0, 4_000, 512),
        # The buckets have batch sizes of their own.
        train=Train(batch_size=128, max_steps=4_000_000, checkpoints=Checkpoints(keep_every_seconds=600.0)),
        eval={"dev": Reading(), "test": Reading()},
        decode={"dev": Reading(), "test": Reading()},
    )
