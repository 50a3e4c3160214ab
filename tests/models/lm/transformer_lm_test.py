"""Transformer language models: causal, packed as unpacked, step by step as at once, and what they generate."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled
from flax import nnx

from raylingvo.data.tokenizers import CharacterTokenizer
from raylingvo.errors import RequestError
from raylingvo.models.layers.attention import AttentionConfig
from raylingvo.models.layers.feed_forward import FeedForwardConfig
from raylingvo.models.layers.moe import MoeConfig
from raylingvo.models.layers.positions import Rotary, sinusoid
from raylingvo.models.layers.relative_bias import RelativeBiasConfig
from raylingvo.models.layers.residual import ResidualConfig
from raylingvo.models.layers.transformer import TransformerConfig
from raylingvo.models.lm.generation import Generation, GenerativeLanguageModel
from raylingvo.models.lm.packed_language_model import PackedLanguageModel
from raylingvo.models.lm.rnn_lm import RnnLm
from raylingvo.models.lm.transformer_lm import TransformerLm

V, T = 13, 12
TOKENIZER = CharacterTokenizer(alphabet="abcdefghij")
POSITIONS = {
    "rotary": {"rotary": Rotary()},
    "relative": {"relative_bias": RelativeBiasConfig(num_buckets=8, max_distance=16)},
    "learned": {},
}


def model(positions="rotary", *, causal=True, **fields):
    attention = AttentionConfig(
        model_dim=16,
        num_heads=2,
        use_bias=False,
        query_scale="none",
        init="gshard",
        extra_logit=0.0,
        **POSITIONS[positions],
    )
    stack = TransformerConfig(
        num_layers=2,
        attention=attention,
        feed_forward=FeedForwardConfig(
            hidden_dim=32, activation="gelu_tanh", gated=True, use_bias=False, init="gshard"
        ),
        residual=ResidualConfig(norm="rms", zero_padded=True, direct_scale=True),
        causal=causal,
    )
    return TransformerLm(vocab_size=V, stack=stack, learned_positions=64 * (positions == "learned"), **fields)


def built(config):
    net = filled(lambda: config.build(nnx.Rngs(0)), scale=0.6)
    net.softmax.kernel = net.embedding.table  # a pytree does not know that they are one
    return net


@functools.cache
def module(positions="rotary"):
    return built(model(positions))


def with_stack(base, **fields):
    return dataclasses.replace(base, stack=dataclasses.replace(base.stack, **fields))


def windowed():
    base = model()
    return with_stack(base, attention=dataclasses.replace(base.stack.attention, left_context=3))


def with_experts(num_groups=None):
    # There is not room for all: who comes first matters.
    moe = MoeConfig(num_experts=4, hidden_dim=32, capacity_factor=None, min_capacity=3, num_groups=num_groups)
    return with_stack(model(), moe=moe)


features = jax.jit(lambda net, batch: net(batch))
forward = jax.jit(lambda net, batch: net.softmax(net(batch)))


def logits(net, **batch):
    return forward(net, batch)


IDS = np.random.default_rng(0).integers(3, V, (2, T)).astype(np.int32)


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_future_does_not_matter(positions):
    other = IDS.copy()
    other[:, 7:] = (other[:, 7:] + 1) % V
    both = [logits(module(positions), ids=ids) for ids in (IDS, other)]
    np.testing.assert_allclose(both[0][:, :7], both[1][:, :7], atol=1e-6)
    assert jnp.abs(both[0][:, 7:] - both[1][:, 7:]).max() > 1e-2


@pytest.mark.parametrize("positions", POSITIONS)
def test_packed_is_as_unpacked(positions):
    lengths = (5, 4)
    packed = np.zeros((1, T), np.int32)
    segments, place = np.zeros_like(packed), np.zeros_like(packed)
    start = 0
    for segment, length in enumerate(lengths):
        here = slice(start, start + length)
        packed[0, here], segments[0, here], place[0, here] = IDS[segment, :length], segment + 1, np.arange(length)
        start += length
    together = logits(module(positions), ids=packed, segment_ids=segments, segment_pos=place)[0]
    apart = [logits(module(positions), ids=IDS[i : i + 1, :n])[0] for i, n in enumerate(lengths)]
    np.testing.assert_allclose(together[:9], jnp.concatenate(apart), atol=2e-5)


def test_both_directions_see_everything_but_padding():
    net = built(model("relative", causal=False))
    paddings = np.zeros((2, T), np.float32)
    paddings[:, 8:] = 1
    other = IDS.copy()
    other[:, 8:] = 3
    both = [logits(net, ids=ids, paddings=paddings)[:, :8] for ids in (IDS, other)]
    np.testing.assert_allclose(*both, atol=1e-6)
    other[:, 7] = (other[:, 7] + 1) % V
    assert jnp.abs(logits(net, ids=other, paddings=paddings)[:, :7] - both[0][:, :7]).max() > 1e-3


@pytest.mark.parametrize("positions", POSITIONS)
def test_step_by_step_is_as_at_once(positions):
    net, start = module(positions), 3  # the first places are padding on the left
    at_once = logits(net, ids=IDS)
    place = jnp.arange(T + start)
    row = jnp.broadcast_to(jnp.maximum(place - start, 0), (2, T + start))

    @jax.jit
    def extend(ids, cache, index, positions):
        seen = (place[None] <= index + jnp.arange(ids.shape[1])[:, None]) & (place >= start)[None]
        features, cache = net.extend_step(
            ids,
            cache,
            index,
            mask=seen[None, None],
            positions=positions,
            key_positions=row,
            nonpadding=jnp.ones(ids.shape),
        )
        return net.softmax(features), cache

    cache = net.init_cache(2, T + start)
    padded = jnp.pad(IDS, ((0, 0), (start, 0)))
    found, cache = extend(padded[:, : start + 4], cache, jnp.int32(0), row[:, : start + 4])
    steps = [found[:, start:]]
    for index in range(start + 4, start + T):
        found, cache = extend(padded[:, index : index + 1], cache, jnp.int32(index), row[:, index : index + 1])
        steps.append(found)
    np.testing.assert_allclose(jnp.concatenate(steps, axis=1), at_once, atol=1e-5)


def with_weights_of(config, other, **more):
    """The network of `config` with the weights of another, and `more` by name."""
    net = nnx.eval_shape(lambda: config.build(nnx.Rngs(0)))
    weights = {"embedding": nnx.state(other.embedding), "stack": nnx.state(other.stack), **more}
    nnx.update(net, weights)
    return net


def test_sinusoids_are_positions_that_are_not_learned():
    """Packed rows too: the second sentence begins anew."""
    learned = module("learned")
    fixed = with_weights_of(
        dataclasses.replace(model("learned"), learned_positions=0, sinusoid_positions=True), learned
    )
    learned = nnx.clone(learned)
    learned.positions.table[...] = sinusoid(jnp.arange(64), 16)
    place = np.tile(np.r_[:7, :5].astype(np.int32), (2, 1))
    packed = {"ids": IDS, "segment_ids": np.tile(np.r_[[1] * 7, [2] * 5], (2, 1)), "segment_pos": place}
    for batch in ({"ids": IDS}, packed):
        np.testing.assert_allclose(logits(fixed, **batch), logits(learned, **batch), atol=1e-5)
    with pytest.raises(ValueError, match=r"learned_positions must be 0 with sinusoid_positions \(got 64\)"):
        dataclasses.replace(model("learned"), sinusoid_positions=True)
    stack = model("learned").stack
    odd = dataclasses.replace(stack, attention=dataclasses.replace(stack.attention, model_dim=7, head_dim=4))
    with pytest.raises(ValueError, match=r"stack.attention.model_dim must be even with sinusoid_positions \(got 7\)"):
        dataclasses.replace(model("learned"), learned_positions=0, sinusoid_positions=True, stack=odd)


def test_an_untied_softmax_has_its_own_kernel_and_bias():
    tied, bias = module(), np.linspace(-1, 1, V, dtype=np.float32)
    own = {"softmax": {"kernel": tied.embedding.table[...] / 4, "bias": bias}}  # 4, the root of 16 features
    untied = with_weights_of(model(tied_softmax=False), tied, **own)
    np.testing.assert_allclose(logits(untied, ids=IDS), np.asarray(logits(tied, ids=IDS)) + bias, atol=1e-5)


def test_rows_longer_than_the_learned_positions_are_refused():
    with pytest.raises(ValueError, match=r"rows must have at most the 64 learned_positions \(got 65\)"):
        logits(module("learned"), ids=np.zeros((1, 65), np.int32))
    task("learned", max_steps=54).encode_lines(["a" * 9])
    with pytest.raises(RequestError, match=r"a prompt of 11 tokens and 54 new ones .* are more than the model's 64"):
        task("learned", max_steps=54).encode_lines(["a" * 10])


def test_bfloat16_is_near_float32():
    net = built(model(compute_dtype="bfloat16"))
    assert {x.dtype for x in jax.tree.leaves(nnx.state(net))} == {jnp.dtype(jnp.float32)}
    assert features(net, {"ids": IDS}).dtype == jnp.bfloat16
    np.testing.assert_allclose(logits(net, ids=IDS), logits(module(), ids=IDS), atol=0.15)


def task(positions="rotary", **generation):
    settings = {"max_steps": 8, **generation}
    return GenerativeLanguageModel(model=model(positions), tokenizer=TOKENIZER, generation=Generation(**settings))


def generate(one, lines, net=None):
    batch = one.encode_lines(lines)
    decoded = jax.jit(one.decode)(net or module(), batch)
    return [output for _, output in one.postprocess(jax.device_get(decoded), batch)[0]]


GREEDY, BEAM_OF_ONE = {"temperature": 0.0}, {"beam_size": 1, "length_norm_alpha": 0.0}
IN_CI = (("rotary", GREEDY), ("learned", BEAM_OF_ONE))


def greedy(net, prompt, steps):
    """One token after another, from the whole sequence each time."""
    ids = list(prompt)
    for _ in range(steps):
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(ids)] = ids
        ids.append(int(jnp.argmax(logits(net, ids=padded)[0, len(ids) - 1])))
        if ids[-1] == TOKENIZER.eos_id:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    ("positions", "how"),
    [
        pytest.param(positions, how, marks=[] if (positions, how) in IN_CI else pytest.mark.slow)
        for positions in POSITIONS
        for how in (GREEDY, BEAM_OF_ONE)
    ],
)
def test_the_likeliest_tokens_whatever_the_others_prompts(positions, how):
    prompts = ["abcde", "", "j"]
    outputs = generate(task(positions, **how), prompts, module(positions))
    for prompt, output in zip(prompts, outputs, strict=True):
        tokens = [TOKENIZER.sos_id, *(3 + TOKENIZER.alphabet.index(c) for c in prompt)]
        if "temperature" in how:
            assert output["ids"] == greedy(module(positions), tokens, 8)
        rows = np.array([[*tokens, *output["ids"]]], np.int32)
        log_probs = jax.nn.log_softmax(logits(module(positions), ids=rows)[0])
        expected = sum(float(log_probs[len(tokens) - 1 + i, token]) for i, token in enumerate(output["ids"]))
        assert output["log_prob"] == pytest.approx(expected, abs=1e-4)


def test_draws_depend_on_the_seed_alone():
    lines = ["abc", "d"]
    first, again, other = (generate(task(seed=seed), lines) for seed in (0, 0, 1))
    assert first == again
    assert [output["ids"] for output in first] != [output["ids"] for output in other]
    assert first[0]["text"] == TOKENIZER.decode([first[0]["ids"]], [len(first[0]["ids"])])[0].removesuffix("</s>")


def test_text_before_a_prompt_takes_the_place_of_the_start():
    one = task(before="a")
    batch = one.encode_lines(["bc", ""])
    assert batch["prompt"].tolist() == [[2, 3, 4, 5], [2, 2, 2, 3]]
    assert batch["prompt_paddings"].tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]
    with pytest.raises(RequestError, match=r"set task\.tokenizer"):
        dataclasses.replace(one, tokenizer=None).encode_lines(["a"])


def test_datasets_are_decoded_to_their_perplexity():
    ids = jnp.asarray(IDS)
    labels = jnp.roll(ids, -1, axis=1)
    batch = {"ids": ids, "labels": labels, "paddings": jnp.zeros((2, T)), "weight": jnp.ones(2)}
    decoded = jax.jit(task().decode)(module(), batch)
    outputs, _ = task().postprocess(jax.device_get(decoded), jax.device_get(batch))
    packed = {**batch, "segment_ids": jnp.ones_like(ids), "segment_pos": jnp.tile(jnp.arange(T), (2, 1))}
    rows = jax.jit(PackedLanguageModel(model=model(), z_loss=0.0).decode)(module(), packed)
    np.testing.assert_allclose([o["log_pplx_per_sample"] for _, o in outputs], -rows["log_prob"], rtol=1e-5)


def test_a_window_is_a_window_in_generation_too():
    net = built(windowed())
    one = dataclasses.replace(task(temperature=0.0), model=windowed())
    for prompt, output in zip(["abcdefgh", "j"], generate(one, ["abcdefgh", "j"], net), strict=True):
        tokens = [TOKENIZER.sos_id, *(3 + TOKENIZER.alphabet.index(c) for c in prompt)]
        assert output["ids"] == greedy(net, tokens, 8)


def test_padding_takes_no_place_at_an_expert():
    short = {"ids": jnp.asarray(IDS[:, :6]), "paddings": jnp.zeros((2, 6))}
    long = {
        "ids": jnp.pad(short["ids"], ((0, 0), (0, 26))),
        "paddings": jnp.pad(short["paddings"], ((0, 0), (0, 26)), constant_values=1),
    }
    # Three places at each expert, for all tokens of all rows.
    few = with_experts(num_groups=1)
    net = built(few)
    np.testing.assert_allclose(features(net, short), features(net, long)[:, :6], atol=1e-5)
    rows = {
        **short,
        "segment_ids": jnp.ones((2, 6), jnp.int32),
        "segment_pos": jnp.tile(jnp.arange(6), (2, 1)),
        "labels": short["ids"],
    }
    packed = PackedLanguageModel(model=few, aux_loss=0.0)  # a mean over groups, also empty ones
    evaluate = jax.jit(packed.eval_metrics)
    one = evaluate(net, {**{name: x[:1] for name, x in rows.items()}, "weight": jnp.ones(1)})
    two = evaluate(net, {**rows, "weight": jnp.array([1.0, 0.0])})
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-5)


def test_a_prompt_with_experts_does_not_depend_on_the_padding():
    net = built(with_experts())
    cache = net.init_cache(1, 8)
    ids = jnp.asarray(IDS[:1, :4])

    def prompt(padding):
        padded = jnp.pad(ids, ((0, 0), (padding, 0)))
        place = jnp.arange(8)
        seen = (place[None] <= place[: 4 + padding, None]) & (place >= padding)[None]
        row = jnp.maximum(place - padding, 0)[None]
        return jax.jit(type(net).extend_step)(
            net,
            padded,
            cache,
            jnp.int32(0),
            mask=seen[None, None],
            positions=row[:, : 4 + padding],
            key_positions=row,
            nonpadding=(place[None, : 4 + padding] >= padding).astype(jnp.float32),
        )[0][:, padding:]

    np.testing.assert_allclose(prompt(0), prompt(4), atol=1e-5)


def test_a_beam_finds_the_best_of_all_and_each_prompt_by_itself():
    # Two tokens after the prompt, of 13: a beam of 13 sees them all.
    prompts, beam = ["", "abcde", "j"], {"beam_size": 13, "max_steps": 2, "length_norm_alpha": 0.0}
    found = generate(task(**beam), prompts)
    for prompt, output in zip(prompts, found, strict=True):
        (alone,) = generate(task(**beam), [prompt])
        assert output["ids"] == alone["ids"]
        tokens = [TOKENIZER.sos_id, *(3 + TOKENIZER.alphabet.index(c) for c in prompt)]
        rows = np.array([[*tokens, first] for first in range(V)], np.int32)
        log_probs = jax.nn.log_softmax(logits(module(), ids=rows)[:, -2:])
        # The search ends its hyps with </s> within its steps, here the last one.
        first, second = log_probs[:, 0][0], log_probs[:, 1]
        ended = {(TOKENIZER.eos_id,): float(first[TOKENIZER.eos_id])}
        ended |= {(i, TOKENIZER.eos_id): float(first[i] + second[i, TOKENIZER.eos_id]) for i in range(V) if i != 2}
        best = max(ended, key=lambda ids: ended[ids])
        assert tuple(output["ids"]) == best
        assert output["log_prob"] == pytest.approx(ended[best], abs=1e-4)


def test_tasks_refuse_models_that_do_not_fit():
    for fields, message in (
        ({"model": with_experts()}, "no mixtures of experts"),
        ({"model": model(causal=False)}, "must be causal"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(task(), **fields)
    with pytest.raises(ValueError, match="must keep a cache"):
        dataclasses.replace(task(), model=RnnLm(vocab_size=V, features=4, embedding_init=1.0, softmax_init=1.0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beam_size": 2, "seed": 3}, r"seed must be 0 with a beam_size: nothing is drawn \(got 3\)"),
        ({"temperature": 0.0, "top_k": 3}, r"top_k must be 0 at temperature 0"),
        ({"length_norm_alpha": -1.0}, r"length_norm_alpha must be >= 0 \(got -1.0\)"),
        ({"max_steps": 0}, r"max_steps must be >= 1 \(got 0\)"),
        ({"nucleus_p": 0.0}, r"nucleus_p must be in \(0, 1\] \(got 0.0\)"),
        ({"temperature": -1.0}, r"temperature must be >= 0 \(got -1.0\)"),
    ],
)
def test_wrong_settings_of_generation(fields, message):
    with pytest.raises(ValueError, match=message):
        Generation(**fields)
