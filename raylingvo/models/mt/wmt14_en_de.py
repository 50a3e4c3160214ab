"""WMT14 English to German (Lingvo: tasks/mt/params/wmt14_en_de.py).

`raylingvo data prepare wmt14_ende` makes the text, and `raylingvo data vocab wmt14_ende/train.parquet --field en
--field de --type wpm --size 32000 --out wmt14_ende/wpm.32000.vocab` the vocabulary of both languages. (Lingvo's own is
not in its data but in its code.)
"""

from __future__ import annotations

from raylingvo.data.tokenizers import WpmTokenizer
from raylingvo.experiment import Experiment, Reading, Train
from raylingvo.models.mt.decoding import Decoding
from raylingvo.models.mt.model import TranslationModel
from raylingvo.models.mt.recipes import (
    RNMT_DECODING,
    WMT_READING,
    WMT_TRAIN,
    Buckets,
    rnmt_learner,
    splits,
    transformer_learner,
)
from raylingvo.models.mt.rnmt_model import RnmtModel
from raylingvo.models.mt.transformer_model import TransformerModel
from raylingvo.models.mt.translation import Translation
from raylingvo.registry import register
from raylingvo.training.learner import Learner

_WORDS = 32_000
_TOKENIZER = WpmTokenizer(vocab_filepath="wmt14_ende/wpm.32000.vocab")


def _experiment(
    model: TranslationModel,
    learner: Learner,
    train: Buckets,
    reading: Buckets,
    decoding: Decoding,
    *,
    per_word_avg_loss: bool = True,
) -> Experiment:
    return Experiment(
        task=Translation(
            model=model,
            source_tokenizer=_TOKENIZER,
            target_tokenizer=_TOKENIZER,
            decoding=decoding,
            per_word_avg_loss=per_word_avg_loss,
        ),
        datasets=splits("wmt14_ende", _TOKENIZER, train, reading),
        learner=learner,
        # The buckets have batch sizes of their own.
        train=Train(batch_size=128, max_steps=4_000_000),
        eval={"dev": Reading(), "test": Reading()},
        decode={"dev": Reading(), "test": Reading()},
    )


@register("mt.wmt14_en_de.WmtEnDeTransformerBase")
def wmt_en_de_transformer_base() -> Experiment:
    """Lingvo's Transformer base on WMT14 English-German: 6 + 6 layers of 512, 32,000 word pieces, 93.3 M weights."""
    model = TransformerModel(source_vocab_size=_WORDS, target_vocab_size=_WORDS)
    return _experiment(model, transformer_learner(3.0, 40_000, 512), WMT_TRAIN, WMT_READING, Decoding())


@register("mt.wmt14_en_de.WmtEnDeTransformerSmall")
def wmt_en_de_transformer_small() -> Experiment:
    """Lingvo's small Transformer on WMT14 English-German: 2 + 2 layers of 64, for trials."""
    model = TransformerModel(
        source_vocab_size=_WORDS,
        target_vocab_size=_WORDS,
        model_dim=64,
        hidden_dim=128,
        num_heads=2,
        num_encoder_layers=2,
        num_decoder_layers=2,
    )
    return _experiment(model, transformer_learner(3.0, 40_000, 64), WMT_TRAIN, WMT_READING, Decoding())


@register("mt.wmt14_en_de.WmtEnDeRNMT")
def wmt_en_de_rnmt() -> Experiment:
    """Lingvo's RNMT+ on WMT14 English-German: 6 bidirectional and 8 layers of LSTMs of 1,024, 379 M weights."""
    model = RnmtModel(source_vocab_size=_WORDS, target_vocab_size=_WORDS)
    bounds = (10, 14, 19, 26, 36, 50, 70, 98)
    return _experiment(
        model,
        rnmt_learner(),
        (bounds, (128,) * 7 + (64,)),
        ((*bounds, 200), (128,) * 8 + (32,)),
        RNMT_DECODING,
        per_word_avg_loss=False,
    )
