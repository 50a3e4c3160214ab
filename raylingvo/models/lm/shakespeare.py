"""Small Transformers of characters on Tiny Shakespeare (`raylingvo data prepare tinyshakespeare`): minutes on a CPU."""

from __future__ import annotations

import dataclasses

from raylingvo.data.text_windows import TextWindows
from raylingvo.data.tokenizers import CharacterTokenizer
from raylingvo.experiment import Experiment, Reading, Snapshots, Train
from raylingvo.models.layers.attention import AttentionConfig
from raylingvo.models.layers.feed_forward import FeedForwardConfig
from raylingvo.models.layers.moe import MoeConfig
from raylingvo.models.layers.positions import Rotary
from raylingvo.models.layers.residual import ResidualConfig
from raylingvo.models.layers.transformer import TransformerConfig
from raylingvo.models.lm.generation import Generation, GenerativeLanguageModel
from raylingvo.models.lm.packed_language_model import PackedLanguageModel
from raylingvo.models.lm.transformer_lm import TransformerLm
from raylingvo.registry import register
from raylingvo.training.learner import Learner
from raylingvo.training.optimizers import Adam
from raylingvo.training.schedules import LinearRampupCosine

# All 65 characters of the text.
TOKENIZER = CharacterTokenizer(alphabet="\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")

_CONTEXT = 64  # characters


def _windows(split: str, length: int, stride: int) -> TextWindows:
    return TextWindows(
        path=f"tinyshakespeare/{split}.txt",
        tokenizer=TOKENIZER,
        length=length,
        stride=stride,
        prepare="tinyshakespeare",
    )


def _model(context: int = _CONTEXT, moe: MoeConfig | None = None) -> TransformerLm:
    stack = TransformerConfig(
        num_layers=4,
        attention=AttentionConfig(
            model_dim=128,
            num_heads=4,
            use_bias=False,
            query_scale="none",
            init="gshard",
            rotary=Rotary(),
            # Longer texts than it was trained on it writes through a window.
            left_context=context,
        ),
        feed_forward=FeedForwardConfig(hidden_dim=512, activation="gelu_tanh", use_bias=False, init="gshard"),
        residual=ResidualConfig(norm="rms", direct_scale=True),
        moe=moe,
    )
    return TransformerLm(vocab_size=TOKENIZER.vocab_size, stack=stack)


def _learner(max_steps: int, final_value: float) -> Learner:
    """final_value: what the rate comes down to, as a fraction."""
    return Learner(
        learning_rate=3e-3,
        schedule=LinearRampupCosine(warmup_steps=100, total_steps=max_steps, final_value=final_value),
        optimizer=Adam(beta2=0.99),
        clip_gradient_norm_to_value=1.0,
    )


@register("lm.shakespeare.CharTransformer")
def char_transformer() -> Experiment:
    """nanoGPT's small setting for CPUs: 4 layers of 128 features and 4 heads, windows of 64, 2,000 batches of 12.

    The evaluation is of all of the held-out tenth, each character once, in windows of 64.
    """
    max_steps = 2_000
    return Experiment(
        task=GenerativeLanguageModel(
            model=_model(),
            tokenizer=TOKENIZER,
            generation=Generation(max_steps=200, temperature=0.8, before="\n"),
        ),
        datasets={"train": _windows("train", _CONTEXT, 1), "dev": _windows("dev", _CONTEXT, _CONTEXT)},
        learner=_learner(max_steps, 0.1),
        train=Train(batch_size=12, max_steps=max_steps, snapshots=Snapshots(every_steps=250)),
        eval={"dev": Reading(batch_size=128)},
    )


@register("lm.shakespeare.CharTransformerLong")
def char_transformer_long() -> Experiment:
    """CharTransformer with windows of 128 and 5,600 batches of 8: the best found for ten minutes of a core's time."""
    context, max_steps = 128, 5_600
    short = char_transformer()
    return dataclasses.replace(
        short,
        task=dataclasses.replace(short.task, model=_model(context)),
        datasets={"train": _windows("train", context, 1), "dev": _windows("dev", context, context)},
        learner=_learner(max_steps, 0.02),
        train=Train(batch_size=8, max_steps=max_steps, snapshots=Snapshots(every_steps=max_steps // 2)),
    )


@register("lm.shakespeare.CharMoe")
def char_moe() -> Experiment:
    """CharTransformer with 8 experts in every second block, of which each character goes to two (GShard's mixture).

    raylingvo's own: Lingvo has the layers, and no registered experiment with them.
    """
    dense = char_transformer()
    moe = MoeConfig(num_experts=8, hidden_dim=512, activation="gelu_tanh")
    windows = {
        split: dataclasses.replace(_windows(split, _CONTEXT, 1 if split == "train" else _CONTEXT), as_packed=True)
        for split in ("train", "dev")
    }
    return dataclasses.replace(dense, task=PackedLanguageModel(model=_model(moe=moe), z_loss=0.0), datasets=windows)
