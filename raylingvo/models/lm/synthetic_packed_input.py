"""Giant dense language models on synthetic rows: for speed, memory and compilation (Lingvo's
tasks/lm/params/synthetic_packed_input.py).

RMS norms, no biases, the embedding shared with the softmax, weights float32 and activations bfloat16. A name ends with
Lingvo's TPU slice; here a mesh is chosen when a run starts, by the logical axes of the weights, and the names differ in
batch size and optimizer. Sizes are in binary billions: 162B is 174,366,928,896 weights.
"""

from __future__ import annotations

from raylingvo.data.synthetic import SyntheticPackedRows
from raylingvo.data.tokenizers import IntegerTokenizer
from raylingvo.experiment import Experiment, Snapshots, Train
from raylingvo.models.layers.attention import AttentionConfig
from raylingvo.models.layers.feed_forward import FeedForwardConfig
from raylingvo.models.layers.relative_bias import RelativeBiasConfig
from raylingvo.models.layers.residual import ResidualConfig
from raylingvo.models.layers.transformer import TransformerConfig
from raylingvo.models.lm.generation import Generation, GenerativeLanguageModel
from raylingvo.models.lm.packed_language_model import PackedLanguageModel
from raylingvo.models.lm.transformer_lm import TransformerLm
from raylingvo.registry import register
from raylingvo.training.learner import Learner
from raylingvo.training.optimizers import Accumulator, Adafactor, Adam, Optimizer
from raylingvo.training.schedules import SqrtDecay

VOCAB_SIZE = 32_000
_HEAD_DIM = 128

# GShard's blocks. Its norms store their scale as it is.
RESIDUAL = ResidualConfig(norm="rms", zero_padded=True, direct_scale=True)
ADAFACTOR = Adafactor(beta1=0.0, beta2=0.99, decay_exponent_pow=0.8, clipping_threshold=1.0)
_ADAM = Adam(beta1=0.9, beta2=0.999, epsilon=1e-6)


def gated(num_layers: int, dim: int, ff_dim: int) -> TransformerLm:
    """Gated GELU, T5's relative bias in each layer, an extra logit of 0."""
    attention = AttentionConfig(
        model_dim=dim,
        num_heads=dim // 64,  # of 128 features each: twice as many as the model has
        head_dim=_HEAD_DIM,
        use_bias=False,
        query_scale="none",
        init="gshard",
        extra_logit=0.0,
        relative_bias=RelativeBiasConfig(),
    )
    ff = FeedForwardConfig(hidden_dim=ff_dim, activation="gelu_tanh", gated=True, use_bias=False, init="gshard")
    return _model(num_layers, attention, ff)


def relu(num_layers: int, dim: int, *, length: int = 2048, logit_cap: float | None = None) -> TransformerLm:
    """ReLU, learned positions, blocks stacked and scanned."""
    attention = AttentionConfig(
        model_dim=dim,
        num_heads=dim // _HEAD_DIM,
        use_bias=False,
        query_scale="none",
        init="gshard",
        extra_logit=0.0,
        logit_cap=logit_cap,
    )
    ff = FeedForwardConfig(hidden_dim=4 * dim, activation="relu", use_bias=False, init="gshard")
    return _model(num_layers, attention, ff, learned_positions=length)


def _model(
    num_layers: int, attention: AttentionConfig, feed_forward: FeedForwardConfig, learned_positions: int = 0
) -> TransformerLm:
    return TransformerLm(
        vocab_size=VOCAB_SIZE,
        stack=TransformerConfig(
            num_layers=num_layers,
            attention=attention,
            feed_forward=feed_forward,
            residual=RESIDUAL,
            scan=True,
            remat="nothing_saveable",
        ),
        learned_positions=learned_positions,
        compute_dtype="bfloat16",
        tokens_per_chunk=4096,
    )


def experiment(
    model: TransformerLm, *, length: int, batch_size: int, optimizer: Optimizer = ADAFACTOR, learning_rate: float = 1.0
) -> Experiment:
    """Trains `model` on synthetic rows of `length` tokens, by Lingvo's recipe: rsqrt(max(step, 10,000))."""
    return Experiment(
        task=PackedLanguageModel(model=model, loss_denominator="slots"),
        datasets={"train": SyntheticPackedRows(length=length)},
        learner=Learner(learning_rate=learning_rate, schedule=SqrtDecay(warmup_steps=10_000), optimizer=optimizer),
        train=Train(
            batch_size=batch_size,
            max_steps=2_000_000,
            report_every_steps=100,
            # What only measures speed need not be published often.
            snapshots=Snapshots(every_steps=10_000, max_bytes=1 << 50),
        ),
    )


def _decoding(model: TransformerLm, *, length: int, batch_size: int) -> Experiment:
    """Lines of token ids are gone on with, by flat beam search: `raylingvo decode --input`."""
    return Experiment(
        task=GenerativeLanguageModel(
            model=model,
            tokenizer=IntegerTokenizer(size=VOCAB_SIZE),
            generation=Generation(max_steps=64, beam_size=4, length_norm_alpha=0.8),
        ),
        datasets={"train": SyntheticPackedRows(length=length)},
        learner=Learner(learning_rate=1.0, schedule=SqrtDecay(warmup_steps=10_000), optimizer=ADAFACTOR),
        train=Train(batch_size=batch_size, max_steps=2_000_000),
    )


@register("lm.synthetic_packed_input.DenseLm8B2x2")
def dense_lm_8b2x2() -> Experiment:
    """8.85 billion weights."""
    return experiment(gated(4, 8192, 65536), length=1024, batch_size=16)


@register("lm.synthetic_packed_input.DenseLm128B8x8")
def dense_lm_128b8x8() -> Experiment:
    """137.7 billion weights."""
    return experiment(gated(64, 8192, 65536), length=1024, batch_size=16)


@register("lm.synthetic_packed_input.DenseLm128B16x16")
def dense_lm_128b16x16() -> Experiment:
    """137.7 billion weights."""
    return experiment(gated(64, 8192, 65536), length=1024, batch_size=128)


@register("lm.synthetic_packed_input.DenseLm128B32x32")
def dense_lm_128b32x32() -> Experiment:
    """137.7 billion weights."""
    return experiment(gated(64, 8192, 65536), length=1024, batch_size=512)


@register("lm.synthetic_packed_input.DenseLm1T16x16")
def dense_lm_1t16x16() -> Experiment:
    """1.1 trillion weights, dense."""
    return experiment(gated(128, 16384, 131072), length=512, batch_size=16)


@register("lm.synthetic_packed_input.DenseLm175B32x32")
def dense_lm_175b32x32() -> Experiment:
    """174.4 billion weights, logits of attention capped at 50."""
    return experiment(relu(96, 12288, logit_cap=50.0), length=2048, batch_size=1024)


@register("lm.synthetic_packed_input.DenseLm175B32x32DP")
def dense_lm_175b32x32dp() -> Experiment:
    """The same; Lingvo trains two replicas, of 512 rows each."""
    return experiment(relu(96, 12288, logit_cap=50.0), length=2048, batch_size=1024)


@register("lm.synthetic_packed_input.DenseLm175B1K")
def dense_lm_175b1k() -> Experiment:
    """The same, for TPU v4."""
    return experiment(relu(96, 12288, logit_cap=50.0), length=2048, batch_size=1024)


@register("lm.synthetic_packed_input.DenseLM13B32x32")
def dense_lm13b32x32() -> Experiment:
    """12.8 billion weights."""
    return experiment(relu(40, 5120, logit_cap=50.0), length=2048, batch_size=1024)


@register("lm.synthetic_packed_input.DenseLm12kWide41BAdam16x16")
def dense_lm_12k_wide_41badam_16x16() -> Experiment:
    """43.9 billion weights, Adam."""
    return experiment(relu(24, 12288), length=2048, batch_size=256, optimizer=_ADAM)


@register("lm.synthetic_packed_input.DenseLm12kWide41BAdam8x8")
def dense_lm_12k_wide_41badam_8x8() -> Experiment:
    """43.9 billion weights, Adam, gradients of four batches."""
    return experiment(
        relu(24, 12288), length=2048, batch_size=64, optimizer=Accumulator(optimizer=_ADAM, accum_steps=4)
    )


@register("lm.synthetic_packed_input.DenseLm12kWide162BAdam16x16")
def dense_lm_12k_wide_162badam_16x16() -> Experiment:
    """174.4 billion weights, Adam."""
    return experiment(relu(96, 12288), length=2048, batch_size=64, optimizer=_ADAM)


@register("lm.synthetic_packed_input.DenseLm12kWide162BAdamBS25616x16")
def dense_lm_12k_wide_162badam_bs25616x16() -> Experiment:
    """174.4 billion weights, Adam, gradients of four batches."""
    return experiment(
        relu(96, 12288), length=2048, batch_size=64, optimizer=Accumulator(optimizer=_ADAM, accum_steps=4)
    )


@register("lm.synthetic_packed_input.DenseLm12kWide162BAdam32x32")
def dense_lm_12k_wide_162badam_32x32() -> Experiment:
    """174.4 billion weights, Adam."""
    return experiment(relu(96, 12288), length=2048, batch_size=256, optimizer=_ADAM)


@register("lm.synthetic_packed_input.DenseLm8B2x2Decode")
def dense_lm_8b2x2_decode() -> Experiment:
    """DenseLm8B2x2 that decodes."""
    return _decoding(gated(4, 8192, 65536), length=1024, batch_size=16)


@register("lm.synthetic_packed_input.DenseLm175B8x8Decode2D")
def dense_lm_175b8x8_decode_2d() -> Experiment:
    """DenseLm175B32x32 that decodes."""
    return _decoding(relu(96, 12288, logit_cap=50.0), length=2048, batch_size=16)
