"""Attention over a source: Lingvo's values for all its kinds, masks, packing and the order of queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from layer_gradients import assert_grad, assert_output, outputs_and_grads

from raylingvo.models.layers.additive_attention import AdditiveAttention
from raylingvo.models.layers.dot_product_attention import DotProductAttention
from raylingvo.models.layers.location_sensitive_attention import LocationSensitiveAttention
from raylingvo.models.layers.multi_headed_source_attention import (
    MultiHeadedSourceAttention,
    MultiHeadedSourceAttentionConfig,
)

ADDITIVE = {"source_kernel": "source_var", "query_kernel": "query_var", "hidden": "hidden_var"}
LOCATION = ADDITIVE | {"location_filter": "location_filter_var", "location_kernel": "location_var"}
HEADS = {
    "source_kernel": "source_proj",
    "query_kernel": "query_proj",
    "context_kernel": "ctx_proj",
    "output_kernel": "ctx_post_proj",
    "source_bias": "source_proj_b",
    "query_bias": "query_proj_b",
    "context_bias": "ctx_proj_b",
    "output_bias": "ctx_post_proj_b",
    "per_dim_scale": "atten.per_dim_scale",
    "additive_source_kernel": "atten.source_var",
    "additive_query_kernel": "atten.query_var",
    "additive_hidden": "atten.hidden_var",
}
FEATURES = {"PREV_PROBS": "previous", "CUMULATIVE_PROBS": "cumulative"}


def layer_of(case, arrays):
    """The layer of a case, and the names of its variables there."""
    p, rngs = dict(case["params"]), nnx.Rngs(0)
    source, query, contexts = (arrays[f"in_{name}"].shape[-1] for name in ("src", "query", "ctx"))
    match case["layer"]:
        case "AdditiveAttention":
            return AdditiveAttention(source, query, p["hidden_dim"], rngs=rngs), ADDITIVE
        case "DotProductAttention":
            scale, cap = p.get("use_dim_scale", True), p.get("atten_logit_cap") or None
            layer = DotProductAttention(source, per_dim_scale=scale, logit_cap=cap, rngs=rngs)
            return layer, {"per_dim_scale": "per_dim_scale"}
        case "LocationSensitiveAttention":
            features = [FEATURES[name] for name in p.get("location_features", ["PREV_PROBS"])]
            layer = LocationSensitiveAttention(
                source,
                query,
                p["hidden_dim"],
                filter_size=p["location_filter_size"],
                num_filters=p["location_num_filters"],
                location_features=features,
                rngs=rngs,
            )
            return layer, LOCATION
    additive_features = len(arrays.get("w_atten.hidden_var", ()))
    config = MultiHeadedSourceAttentionConfig(
        source_features=source,
        query_features=query,
        context_features=contexts,
        hidden_features=p["hidden_dim"],
        num_heads=p["num_attention_heads"],
        kind="additive" if additive_features else "dot_product",
        additive_features=additive_features,
        per_dim_scale=additive_features > 0 or p.get("enable_per_dim_scale", True),
        project_source=p.get("enable_source_proj", True),
        project_query=p.get("enable_query_proj", True),
        project_context=p.get("enable_ctx_pre_proj", False),
        attend_to_keys=p.get("use_source_vec_as_attention_value", False),
        output_features=p["ctx_post_proj_dim"] if p.get("enable_ctx_post_proj") else 0,
        bias=p.get("use_bias", True),
        logit_cap=p.get("atten_logit_cap") or None,
        head_of_probabilities=p["attention_head_prob_index"] if p.get("attention_head_prob_index", -1) >= 0 else None,
    )
    return MultiHeadedSourceAttention(config, rngs=rngs), HEADS


KINDS = ["AdditiveAttention", "DotProductAttention", "LocationSensitiveAttention", "attention.MultiHeadedAttention"]


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_lingvos(lingvo_vectors, kind):
    cases = [case for case in lingvo_vectors("i_layers") if case[0]["layer"] == kind]
    assert cases
    for case, arrays in cases:
        layer, names = layer_of(case, arrays)
        for ours, theirs in names.items():
            variable = getattr(layer, ours, None)
            assert (variable is not None) == (f"w_{theirs}" in arrays)
            if variable is not None:
                variable[...] = jnp.asarray(arrays[f"w_{theirs}"])
        definition, params = nnx.split(layer)
        a = {name: jnp.asarray(x) for name, x in arrays.items()}

        def run(params, source, contexts, query, definition=definition, a=a):
            layer = nnx.merge(definition, params)
            ids = a["in_source_segment_id"].T if "in_source_segment_id" in a else None
            prepared = layer.prepare(source.swapaxes(0, 1), contexts.swapaxes(0, 1), a["in_padding"].T, ids)
            masks = {"paddings_QxS": a.get("in_per_step_padding"), "segment_ids_Q": a.get("in_query_segment_id")}
            if not isinstance(layer, LocationSensitiveAttention):
                return dict(zip(("context", "probs"), layer(prepared, query, **masks), strict=True)), None
            state = layer.initial_state(query.shape[1], source.shape[0])
            steps = []
            for q in query:
                context, probs, state = layer(prepared, q, state, **masks)
                steps.append((context, probs))
            contexts, probs = (jnp.stack(x) for x in zip(*steps, strict=True))
            return {"context": contexts, "probs": probs, "state": state}, None

        inputs = ("src", "ctx", "query")
        cotangents = {name: a[f"fix_{name}"] for name in ("context", "probs", "state") if f"fix_{name}" in a}
        outputs, _, (grads, *input_grads) = outputs_and_grads(
            run, (params, *(a[f"in_{name}"] for name in inputs)), cotangents
        )
        for name, value in outputs.items():
            assert_output(value, arrays[f"out_{name}"], case["id"])
        for name, grad in zip(inputs, input_grads, strict=True):
            # There is no gradient of contexts that are not used.
            assert_grad(grad, arrays.get(f"gin_{name}", np.zeros(grad.shape)), case["id"])
        for name, grad in grads.items():
            assert_grad(grad[...], arrays[f"gw_{names[name]}"], case["id"])
        if "out_state0" in arrays:
            np.testing.assert_array_equal(layer.initial_state(*arrays["out_state0"].shape[::2]), arrays["out_state0"])


B, S, D, C, R = 2, 5, 4, 6, 3
RNG = np.random.default_rng(0)
SOURCE, CONTEXTS, QUERY = (
    jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((B, S, D), (B, S, C), (R * B, D))
)
PADDINGS = jnp.asarray(np.arange(S) >= np.array([[5], [3]]), jnp.float32)


def heads(**options):
    config = {"source_features": D, "query_features": D, "context_features": C, "hidden_features": 8, "num_heads": 2}
    return MultiHeadedSourceAttention(MultiHeadedSourceAttentionConfig(**config | options), rngs=nnx.Rngs(0))


LAYERS = {
    "additive": lambda: AdditiveAttention(D, D, 3, rngs=nnx.Rngs(0)),
    "dot product": lambda: DotProductAttention(D, rngs=nnx.Rngs(0)),
    "location": lambda: LocationSensitiveAttention(
        D, D, 3, filter_size=3, num_filters=2, location_features=("cumulative", "previous"), rngs=nnx.Rngs(0)
    ),
    "heads": lambda: heads(project_context=True, output_features=5),
    "additive heads of RNMT+": lambda: heads(kind="additive", attend_to_keys=True),
}


def attend(layer, source, query, **masks):
    if isinstance(layer, LocationSensitiveAttention):
        return layer(source, query, layer.initial_state(len(query), source.keys.shape[1]), **masks)[:2]
    return layer(source, query, **masks)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
def test_masks_and_the_order_of_queries(make):
    layer = make()
    context, probs = attend(layer, layer.prepare(SOURCE, CONTEXTS, PADDINGS), QUERY)
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-6)

    # What is padded never leaks.
    padded = PADDINGS[..., None] > 0
    garbage = layer.prepare(jnp.where(padded, 1e3, SOURCE), jnp.where(padded, 1e3, CONTEXTS), PADDINGS)
    np.testing.assert_array_equal(attend(layer, garbage, QUERY)[0], context)
    assert (probs.reshape(R, B, S) * PADDINGS[None] == 0).all()

    # Query i is of source i % B, and each is on its own.
    last = attend(layer, layer.prepare(SOURCE[1:, :3], CONTEXTS[1:, :3]), QUERY[-1:])
    np.testing.assert_allclose(context[-1:], last[0], atol=1e-5)
    np.testing.assert_allclose(probs[-1:, :3], last[1], atol=1e-5)

    # A mask of single queries.
    alone = jnp.ones((R * B, S)).at[:, 2].set(0.0)
    _, probs = attend(layer, layer.prepare(SOURCE, CONTEXTS), QUERY, paddings_QxS=alone)
    np.testing.assert_array_equal(probs, 1 - alone)

    # Packed sources are as good as separate ones. (The location features are of the whole row.)
    if not isinstance(layer, LocationSensitiveAttention):
        ids = jnp.asarray([[1, 1, 2, 2, 2], [1, 1, 1, 2, 0]])
        packed = layer.prepare(SOURCE, CONTEXTS, (ids == 0).astype(jnp.float32), ids)
        context, _ = layer(packed, QUERY, segment_ids_Q=jnp.asarray([1, 1, 2, 2, 2, 2]))
        second, _ = layer(layer.prepare(SOURCE[:1, 2:], CONTEXTS[:1, 2:]), QUERY[2:5:2])
        np.testing.assert_allclose(context[2:5:2], second, atol=1e-5)


def test_a_query_that_sees_nothing_has_finite_probabilities_and_gradients():
    layer = LAYERS["additive"]()

    def total(source):
        context, probs = layer(layer.prepare(source, CONTEXTS, jnp.ones((B, S))), QUERY)
        return context.sum(), probs

    (_, probs), grad = jax.value_and_grad(total, has_aux=True)(SOURCE)
    np.testing.assert_allclose(probs, 1 / S, atol=1e-6)
    assert jnp.isfinite(grad).all()


def test_dropout_is_in_training_and_leaves_the_probabilities():
    layer = AdditiveAttention(D, D, 3, dropout_rate=0.5, rngs=nnx.Rngs(0))
    source = layer.prepare(SOURCE, CONTEXTS, PADDINGS)
    context, probs = layer(source, QUERY)
    dropped, same = layer(source, QUERY, rng=jax.random.key(0))
    assert not np.allclose(context, dropped)
    np.testing.assert_array_equal(probs, same)


def test_one_head_of_many():
    mean, second = heads(project_context=True), heads(project_context=True, head_of_probabilities=1)
    single = heads(project_context=True, head_of_probabilities=0)
    _, probs = mean(mean.prepare(SOURCE, CONTEXTS), QUERY)
    both = [layer(layer.prepare(SOURCE, CONTEXTS), QUERY)[1] for layer in (single, second)]
    np.testing.assert_allclose(probs, (both[0] + both[1]) / 2, atol=1e-6)


def test_a_scale_that_is_not_trained_is_one_over_the_root_of_the_features():
    """Scales of 0 are that, too."""
    trained, fixed = heads(project_context=True), heads(project_context=True, per_dim_scale=False)
    trained, fixed = (
        (trained, DotProductAttention(D, rngs=nnx.Rngs(0))),
        (
            fixed,
            DotProductAttention(D, per_dim_scale=False, rngs=nnx.Rngs(0)),
        ),
    )
    for a, b in zip(trained, fixed, strict=True):
        assert b.per_dim_scale is None
        probs = (attend(layer, layer.prepare(SOURCE, CONTEXTS, PADDINGS), QUERY)[1] for layer in (a, b))
        np.testing.assert_allclose(*probs, atol=1e-6)


def test_logits_are_capped():
    dot = DotProductAttention(D, per_dim_scale=False, logit_cap=0.5, rngs=nnx.Rngs(0))
    logits = 0.5 * np.tanh(np.einsum("rbd,bsd->rbs", QUERY.reshape(R, B, D), SOURCE) / np.sqrt(D) / 0.5)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(dot(dot.prepare(SOURCE, CONTEXTS), QUERY)[1], expected.reshape(R * B, S), atol=1e-6)
    layer = heads(project_context=True, logit_cap=1e-3)
    _, probs = layer(layer.prepare(SOURCE, CONTEXTS), QUERY)
    np.testing.assert_allclose(probs, 1 / S, atol=1e-3)


def test_only_one_side_with_segments_is_refused_and_so_are_queries_that_do_not_divide():
    layer = LAYERS["additive"]()
    with pytest.raises(ValueError, match="segment_ids must be given for both"):
        layer(layer.prepare(SOURCE, CONTEXTS), QUERY, segment_ids_Q=jnp.ones(R * B, jnp.int32))
    with pytest.raises(ValueError, match=r"must be a multiple of 2 sources \(got 5\)"):
        layer(layer.prepare(SOURCE, CONTEXTS), QUERY[:5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "other"}, r"kind must be one of dot_product, additive \(got 'other'\)"),
        ({"kind": "additive", "per_dim_scale": False}, r"per_dim_scale must be True where kind is 'additive'"),
        ({"additive_features": 3}, r"additive_features must be 0 where kind is 'dot_product' \(got 3\)"),
        ({"logit_cap": 0.0}, r"logit_cap must be > 0 or None \(got 0.0\)"),
        ({"num_heads": 0}, r"num_heads must be >= 1 \(got 0\)"),
        ({"hidden_features": 7}, r"hidden_features must be divisible by 2 heads \(got 7\)"),
        ({"context_features": 7}, r"context_features must be divisible by 2 heads \(got 7\)"),
        ({"project_query": False}, r"query_features must be 8 if not projected \(got 4\)"),
        ({"attend_to_keys": True, "project_context": True}, "project_context must be False"),
        ({"head_of_probabilities": 2}, r"head_of_probabilities must be None or one of 2 heads \(got 2\)"),
    ],
)
def test_a_config_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        heads(**options)


@pytest.mark.parametrize("cap", [0.0, -1.0])
def test_a_cap_of_dot_products_is_positive(cap):
    with pytest.raises(ValueError, match=rf"logit_cap must be > 0 or None \(got {cap}\)"):
        DotProductAttention(D, logit_cap=cap, rngs=nnx.Rngs(0))


def test_location_arguments_are_checked():
    with pytest.raises(ValueError, match=r"filter_size must be odd \(got 4\)"):
        LocationSensitiveAttention(D, D, 3, filter_size=4, num_filters=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"location_features must be of previous, cumulative \(got \('x',\)\)"):
        LocationSensitiveAttention(
            D,
            D,
            3,
            filter_size=3,
            num_filters=2,
            location_features=("x",),
            rngs=nnx.Rngs(0),  # type: ignore[arg-type]
        )
