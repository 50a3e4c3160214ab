"""Captions of images in English and German: Multi30k (Lingvo: tasks/mt/params/wmtm16_en_de.py)."""

from __future__ import annotations

from raylingvo.data.tokenizers import WpmTokenizer
from raylingvo.experiment import Checkpoints, Experiment, Reading, Snapshots, Train
from raylingvo.models.mt.recipes import WMT_READING, splits, transformer_learner
from raylingvo.models.mt.transformer_model import TransformerModel
from raylingvo.models.mt.translation import Translation
from raylingvo.registry import register


@register("mt.wmtm16_en_de.WmtCaptionEnDeTransformer")
def wmt_caption_en_de_transformer() -> Experiment:
    """Lingvo's translation demo for CPUs: 2 + 2 layers of 256, 2,000 word pieces, 12,000 steps of about 4,096 tokens.

    The vocabulary: `raylingvo data vocab multi30k/train.parquet --field en --field de --type wpm --size 2000 --out
    multi30k/wpm.2000.vocab`. (Lingvo's own is not in its data but in its code.)
    """
    tokenizer = WpmTokenizer(vocab_filepath="multi30k/wpm.2000.vocab")
    train = ((14, 17, 20, 24, 29, 35, 45, 75), (292, 240, 204, 170, 141, 117, 91, 54))
    return Experiment(
        task=Translation(
            model=TransformerModel(
                source_vocab_size=2_000,
                target_vocab_size=2_000,
                model_dim=256,
                hidden_dim=512,
                num_heads=2,
                num_encoder_layers=2,
                num_decoder_layers=2,
                input_dropout=0.2,
                residual_dropout=0.2,
            ),
            source_tokenizer=tokenizer,
            target_tokenizer=tokenizer,
        ),
        datasets=splits("multi30k", tokenizer, train, WMT_READING),
        learner=transformer_learner(1.0, 1_000, 256),
        train=Train(
            batch_size=128,  # the buckets have their own
            max_steps=12_000,
            snapshots=Snapshots(every_steps=1_000),
            checkpoints=Checkpoints(every_seconds=60.0),
        ),
        eval={"dev": Reading()},
        decode={"dev": Reading(), "test": Reading(policy="last")},
    )
