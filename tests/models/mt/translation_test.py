"""Translation: packed as unpacked, padding that never leaks, scores that are the model's own, and lines of text."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled
from flax import nnx

from raylingvo.data.sequences import Column, Ragged, pack, pad
from raylingvo.data.tokenizers import CharacterTokenizer
from raylingvo.errors import RequestError
from raylingvo.models.mt.decoding import Decoding
from raylingvo.models.mt.rnmt_model import RnmtModel
from raylingvo.models.mt.transformer_model import TransformerModel
from raylingvo.models.mt.translation import Translation
from raylingvo.ops.search.cache import reorder

SOURCE, TARGET = CharacterTokenizer(alphabet="abcdefgh"), CharacterTokenizer(alphabet="ABCDEFGHIJ")
V, W = SOURCE.vocab_size, TARGET.vocab_size
COLUMNS = (Column(name="src", pad_id=SOURCE.pad_id), Column(name="tgt", pad_id=TARGET.pad_id, sos_id=TARGET.sos_id))
VOCABULARIES = {"source_vocab_size": V, "target_vocab_size": W}
SMALL = {"model_dim": 16, "hidden_dim": 32, "num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 2}
STANDARD = {"normalized_residual": False, "final_norm": True, "query_scale": "sqrt_dim"}
MODELS = {
    "lingvo": TransformerModel(**VOCABULARIES, **SMALL),
    "standard": TransformerModel(**VOCABULARIES, **SMALL, **STANDARD, scan=True),
    "rnmt": RnmtModel(
        **VOCABULARIES, model_dim=16, hidden_dim=16, num_encoder_layers=3, num_decoder_layers=3, num_heads=2
    ),
}


@functools.cache
def task(name, **decoding):
    fields = {"num_hyps_per_beam": 4, "max_steps_per_token": 0.0, "max_steps": 12, "beam_size": 20.0} | decoding
    return Translation(
        model=MODELS[name], source_tokenizer=SOURCE, target_tokenizer=TARGET, decoding=Decoding(**fields)
    )


@functools.cache
def network(name):
    """Random, but one word brings the next in an order that ends: else all hyps are of one word."""
    net = filled(lambda: MODELS[name].build(nnx.Rngs(0)), scale=0.3 if name == "rnmt" else 0.12)
    order = [TARGET.sos_id, *np.random.default_rng(1).permutation(np.arange(3, W)), TARGET.eos_id]
    kernel_VxD = 2 * np.asarray(net.softmax.kernel[...])
    if name != "rnmt":
        net.target_embedding.table[...] *= 4
        kernel_VxD[order[1:]] += 0.7 * np.asarray(net.target_embedding.table[...])[order[:-1]]
    net.softmax.kernel[...] = jnp.asarray(kernel_VxD)
    net.softmax.bias[...] = jnp.zeros(W)
    return net


def ragged(seed=0):
    """Five pairs, each side with its end: [source, target]."""
    random = np.random.default_rng(seed)
    sides = []
    for eos, size, lengths in ((SOURCE.eos_id, V, (3, 6, 1, 5, 4)), (TARGET.eos_id, W, (4, 2, 5, 1, 6))):
        rows = [np.r_[random.integers(3, size, n - 1), eos] for n in lengths]
        sides.append(Ragged(np.concatenate(rows).astype(np.int32), np.array(lengths)))
    return sides


def batch(length=7, sides=None):
    sides = sides or ragged()
    return pad(COLUMNS, sides, length) | {"weight": np.ones(len(sides[0]), np.float32)}


@functools.cache
def predictions(name):
    """Log-probabilities [B, T, V] of a batch, compiled."""
    graph, state = nnx.split(network(name))

    @jax.jit
    def run(batch):
        net = nnx.merge(graph, state)
        found = net(batch)
        return jax.nn.log_softmax(net.softmax(found.features)), found.source_probs

    return run


@functools.cache
def translated(name, **decoding):
    """`decoded` of `sources`."""
    return decoded(name, sources(), **decoding)


def decoded(name, inputs, **decoding):
    graph, state = nnx.split(network(name))
    found = jax.jit(lambda batch: task(name, **decoding).decode(nnx.merge(graph, state), batch))(inputs)
    return jax.device_get(found)


def own_scores(name, inputs, found):
    """The log-probability that the model gives each hyp as if it were a reference: [B, k]."""
    B, k, T = found["ids"].shape
    sides = []
    for row in range(B):
        for hyp in range(k):
            ids = found["ids"][row, hyp, : found["lens"][row, hyp]]
            sides.append(ids if len(ids) else np.array([TARGET.eos_id]))
    targets = Ragged(np.concatenate(sides).astype(np.int32), np.array([len(x) for x in sides]))
    given = pad(COLUMNS[1:], [targets], T) | {x: np.repeat(inputs[x], k, axis=0) for x in ("src_ids", "src_paddings")}
    log_probs, _ = predictions(name)(given)
    of_labels = np.take_along_axis(np.asarray(log_probs), given["tgt_labels"][..., None], axis=-1)[..., 0]
    return (of_labels * (1 - given["tgt_paddings"])).sum(axis=1).reshape(B, k)


def sources():
    given = batch()
    return {name: given[name] for name in ("src_ids", "src_paddings", "weight")}


def test_packed_as_unpacked():
    name = "lingvo"  # RNMT+: rnmt_model_test
    sides = ragged()
    row_B = np.array([0, 0, 1, 1, 1])
    packed = pack(COLUMNS, sides, row_B, 2, (12, 14)) | {"weight": np.ones(2, np.float32)}
    alone, together = predictions(name)(batch())[0], predictions(name)(packed)[0]
    for row, (i, segment) in zip(row_B, [(0, 1), (1, 2), (2, 1), (3, 2), (4, 3)], strict=True):
        where = packed["tgt_segment_ids"][row] == segment
        np.testing.assert_allclose(together[row][where], alone[i, : where.sum()], atol=1e-5)
    graph, state = nnx.split(network(name))
    metrics = jax.jit(lambda batch: task(name).eval_metrics(nnx.merge(graph, state), batch))
    for metric, (value, weight) in metrics(batch()).items():
        np.testing.assert_allclose(metrics(packed)[metric], (value, weight), rtol=1e-5, err_msg=metric)


def test_padding_never_leaks():
    name = "lingvo"  # RNMT+: rnmt_model_test
    given, wide = batch(), batch(10)
    wide["src_ids"] = np.where(wide["src_paddings"] > 0, 5, wide["src_ids"])
    log_probs, probs = predictions(name)(given)
    log_probs_wide, probs_wide = predictions(name)(wide)
    real = given["tgt_paddings"] == 0
    np.testing.assert_allclose(log_probs_wide[:, :7][real], log_probs[real], atol=1e-5)
    np.testing.assert_allclose(probs_wide[:, :7, :7][real], probs[real], atol=1e-5)
    assert np.abs(np.where(wide["src_paddings"][:, None] > 0, probs_wide, 0)[:, :7][real]).max() == 0


@pytest.mark.parametrize("name", ["lingvo", pytest.param("standard", marks=pytest.mark.slow)])  # RNMT+: rnmt_model_test
def test_steps_are_what_the_whole_is(name):
    given, net = batch(), network(name)
    graph, state = nnx.split(net)

    @jax.jit
    def by_steps(inputs):
        net = nnx.merge(graph, state)
        source = net.encode(inputs)

        def step(cache, ids_B):
            features, probs, cache = net.step(jnp.tile(ids_B, 2), source, cache)
            found = jax.nn.log_softmax(net.softmax(features)), probs
            return reorder(cache, jnp.arange(10), net.cache_axes), found

        _, found = jax.lax.scan(step, net.init_cache(source, 2, 7), inputs["tgt_ids"].T)
        return [x.swapaxes(0, 1) for x in found]

    log_probs, probs = by_steps(given)
    expected, expected_probs = predictions(name)(given)
    for hyp in range(2):
        rows = slice(hyp * 5, hyp * 5 + 5)
        np.testing.assert_allclose(log_probs[rows], expected, atol=1e-5)
        np.testing.assert_allclose(probs[rows], expected_probs, atol=1e-5)


@pytest.mark.parametrize("name", [pytest.param("lingvo", marks=pytest.mark.slow), "rnmt"])
def test_the_score_of_a_hyp_is_what_the_model_gives_it(name):
    found = translated(name, length_normalization=0.7)
    assert (found["lens"] > 0).sum() >= 8
    assert found["lens"].max() > 2
    scores = own_scores(name, sources(), found) / ((found["lens"] + 5) / 5) ** 0.7
    there = found["lens"] > 0
    np.testing.assert_allclose(found["scores"][there], scores[there], atol=1e-4)


def test_the_score_of_what_is_drawn_is_what_the_model_gives_it():
    drawn = translated("lingvo", method="sample", seed=3)
    np.testing.assert_allclose(drawn["scores"], own_scores("lingvo", sources(), drawn), atol=1e-4)
    assert (np.diff(drawn["scores"], axis=1) <= 0).all()


def test_a_beam_of_one_is_greedy():
    # An end is taken only where it is the best word.
    alone = {"num_hyps_per_beam": 1, "valid_eos_max_logit_delta": 0.01, "length_normalization": 0.0}
    beam, greedy = translated("lingvo", **alone), translated("lingvo", method="greedy")
    assert beam["lens"].min() > 3
    np.testing.assert_array_equal(beam["ids"], greedy["ids"])
    np.testing.assert_allclose(beam["scores"], greedy["scores"], atol=1e-4)


@pytest.mark.parametrize("method", ["beam", pytest.param("sample", marks=pytest.mark.slow)])
def test_a_translation_begins_as_it_is_told(method):
    how = task("lingvo", forced_prefix=True, method=method)
    inputs = how.encode_lines(["abc\tBAD", "hgf", "aa\tJ"])
    found = decoded("lingvo", inputs, forced_prefix=True, method=method)
    for row, start in ((0, "BAD"), (2, "J")):
        for hyp in np.flatnonzero(found["lens"][row] > 0):
            assert TARGET.decode(found["ids"][row, hyp : hyp + 1], [len(start)]) == [start]
    free = decoded("lingvo", {x: inputs[x] for x in ("src_ids", "src_paddings", "weight")}, method=method)
    np.testing.assert_array_equal(found["ids"][1], free["ids"][1])


def test_hyps_are_as_long_as_their_own_source_allows():
    how = {"method": "greedy", "max_steps": 30, "max_steps_per_token": 1.0}
    inputs = task("lingvo", **how).encode_lines(["a", "abcdefgh" * 2])
    found = decoded("lingvo", inputs, **how, max_source_tokens=40)
    np.testing.assert_array_equal(found["ids"][:, 0, 11:].any(axis=1), found["lens"][:, 0] > 11)
    assert found["lens"][0, 0] <= 10 + 2


def test_what_is_cut_says_so():
    how = {"method": "greedy", "max_steps": 3, "forced_prefix": True}
    inputs = task("lingvo", **how).encode_lines(["abc\tABCDEF", "cab"])
    found = decoded("lingvo", inputs, **how)
    outputs = [output for _, output in task("lingvo", **how).postprocess(found, inputs)[0]]
    assert outputs[0]["note"] == "start cut to 2 of 6 tokens"
    assert outputs[0]["hypotheses"][0]["text"].startswith("AB")
    assert outputs[1]["note"] == "the best hypothesis has no end: there are limits to its length"


def test_bfloat16_decodes_a_batch_that_is_not_full():
    half = dataclasses.replace(MODELS["lingvo"], compute_dtype="bfloat16")
    net = filled(lambda: half.build(nnx.Rngs(0)), scale=0.1)
    inputs = sources() | {"weight": np.array([1, 1, 1, 1, 0], np.float32)}
    inputs["src_paddings"][4] = 1
    graph, state = nnx.split(net)
    found = jax.jit(lambda batch: task("lingvo").decode(nnx.merge(graph, state), batch))(inputs)
    assert not np.isnan(found["scores"]).any()


def test_lines_of_text_that_are_empty_or_long():
    how = task("lingvo", max_source_tokens=8, num_best=2, num_hyps_per_beam=8)
    inputs = how.encode_lines(["abc", "", "h" * 20])
    assert inputs["src_ids"].shape == (3, 8)
    assert inputs["src_ids"][2, -1] == SOURCE.eos_id
    # The longest hyps that there can be, where the network would not end.
    found = decoded("lingvo", inputs, max_source_tokens=8, num_best=2, num_hyps_per_beam=8)
    outputs = [output for _, output in how.postprocess(found, inputs)[0]]
    assert [output["source"] for output in outputs] == ["abc", "", "h" * 7]
    assert "note" not in outputs[0]
    assert outputs[1]["note"] == "empty source"
    assert outputs[1]["hypotheses"] == [{"text": "", "score": 0.0, "tokens": []}]
    assert outputs[2]["note"] == "source cut to 8 of 21 tokens"
    best = outputs[0]["hypotheses"]
    assert len(best) == 2
    assert best[0]["score"] >= best[1]["score"]
    assert "".join(best[0]["tokens"]) == best[0]["text"]
    assert "reference" not in outputs[0]


def test_outputs_have_the_text_as_it_was_read():
    given = batch() | {"id": np.arange(5, dtype=np.int64) + 7}
    given["weight"][3] = 0
    how = task("lingvo")
    found = translated("lingvo")
    outputs, metrics = how.postprocess(found, given)
    assert [key for key, _ in outputs] == ["7", "8", "9", "11"]
    assert outputs[0][1]["source"] == SOURCE.decode(given["src_ids"][:1], [2])[0]
    assert metrics == {"num_samples_in_batch": (4.0, 1.0)}
    texts = np.array([f"Text {i}" for i in range(5)], dtype=object)
    outputs, _ = how.postprocess(found, given | {"src_text": texts, "tgt_text": texts})
    assert outputs[3][1]["reference"] == outputs[3][1]["source"] == "Text 4"


def test_losses_and_label_smoothing():
    net, given = network("lingvo"), batch()
    smoothed = task("lingvo")
    plain = dataclasses.replace(smoothed, label_smoothed_eval=False)
    by_sentence = dataclasses.replace(smoothed, per_word_avg_loss=False)
    found = jax.jit(lambda: [how.eval_metrics(net, given) for how in (smoothed, plain, by_sentence)])()
    log_probs = np.asarray(predictions("lingvo")(given)[0], np.float64)
    real = given["tgt_paddings"] == 0
    of_label = np.take_along_axis(log_probs, given["tgt_labels"][..., None], axis=-1)[..., 0]
    others = (log_probs.sum(axis=-1) - of_label) / (W - 1)
    xent = -(0.9 * of_label + 0.1 * others)[real]
    for metrics, expected in zip(found, (xent, -of_label[real], xent), strict=True):
        np.testing.assert_allclose(metrics["log_pplx"], (expected.mean(), real.sum()), rtol=1e-5)
        assert metrics["num_samples_in_batch"] == (5, 1)
    np.testing.assert_allclose(found[2]["loss"], (xent.sum() / 5, 5), rtol=1e-5)


def test_what_is_refused():
    with pytest.raises(RequestError, match=r"task.model.source_vocab_size is 5, but the tokenizer of the source has"):
        dataclasses.replace(task("lingvo"), model=dataclasses.replace(MODELS["lingvo"], source_vocab_size=5)).init(
            nnx.Rngs(0)
        )
    packed = pack(COLUMNS, ragged(), np.zeros(5, np.int64), 1, (20, 20))
    with pytest.raises(RequestError, match="a row for each sentence"):
        task("lingvo").decode(network("lingvo"), packed)
    with pytest.raises(ValueError, match=r"num_best must be <= num_hyps_per_beam, 2 \(got 3\)"):
        Decoding(num_hyps_per_beam=2, num_best=3)
    with pytest.raises(ValueError, match=r"shared_embeddings must be one of .* \(got 'al'\)"):
        TransformerModel(**VOCABULARIES, shared_embeddings="al")
    with pytest.raises(ValueError, match=r"normalized_residual must be False with norm_position 'post' \(got True\)"):
        TransformerModel(**VOCABULARIES, norm_position="post")
    with pytest.raises(ValueError, match=r"one size \(got 11 and 13\)"):
        TransformerModel(**VOCABULARIES, shared_embeddings="all", normalized_residual=False)


def test_shared_embeddings():
    sizes = {}
    for shared in ("none", "target", "all"):
        config = TransformerModel(source_vocab_size=V, target_vocab_size=V, **SMALL, shared_embeddings=shared)
        state = nnx.state(nnx.eval_shape(lambda config=config: config.build(nnx.Rngs(0))))
        sizes[shared] = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert sizes["none"] - sizes["target"] == sizes["target"] - sizes["all"] == 16 * V
