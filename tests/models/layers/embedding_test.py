import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from raylingvo.models.layers.embedding import Embedding
from raylingvo.models.layers.softmax import Softmax


def test_rows_of_the_table_scaled():
    plain, scaled = Embedding(7, 16, rngs=nnx.Rngs(0)), Embedding(7, 16, scale_sqrt_depth=True, rngs=nnx.Rngs(0))
    ids = jnp.array([[0, 6], [3, 3]])
    np.testing.assert_array_equal(plain(ids), plain.table[...][ids])
    np.testing.assert_allclose(scaled(ids), 4 * plain(ids), rtol=1e-6)


def test_scaled_embeddings_have_variance_one():
    embedding = Embedding(200, 64, scale_sqrt_depth=True, rngs=nnx.Rngs(0))
    assert abs(float(embedding(jnp.arange(200)).std()) - 1) < 0.02


def test_ids_of_another_vocabulary_are_seen():
    rows = Embedding(7, 4, rngs=nnx.Rngs(0))(jnp.array([6, 7]))
    assert jnp.isfinite(rows[0]).all() and jnp.isnan(rows[1]).all()


class Tied(nnx.Module):
    """Predicts a token from itself."""

    def __init__(self, rngs):
        self.embedding = Embedding(5, 3, rngs=rngs)
        self.softmax = Softmax(3, 5, bias=False, table=self.embedding.table, rngs=rngs)

    def __call__(self, ids):
        return self.softmax(self.embedding(ids))


def test_a_tied_softmax_has_one_table_and_both_gradients():
    model = Tied(nnx.Rngs(0))
    graph, params = nnx.split(model)
    params = nnx.to_pure_dict(params)
    assert [x.shape for x in jax.tree.leaves(params)] == [(5, 3)]
    ids = jnp.array([1, 4])

    def loss(params):
        return nnx.merge(graph, nnx.State(params), copy=True)(ids)[jnp.arange(2), jnp.array([2, 1])].sum()

    table = np.asarray(model.embedding.table[...])
    expected = np.zeros((5, 3))
    for source, target in ((1, 2), (4, 1)):
        expected[source] += table[target]
        expected[target] += table[source]
    np.testing.assert_allclose(jax.tree.leaves(jax.grad(loss)(params))[0], expected, atol=1e-6)
