"""Host copies: the bits of the device, unchanged until their last reader lets go, then used again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from raylingvo.training.host_copy import HostCopier, decode, encode, nbytes

LARGE = (5 << 20) + 3  # f32: more than two chunks, and not a multiple of one


def tree():
    return {
        "bf16": jnp.arange(7, dtype=jnp.bfloat16),
        "f8": jnp.ones((2, 3), jnp.float8_e4m3fn),
        "bool": jnp.array([True, False]),
        "scalar": jnp.int32(-5),
        "empty": jnp.zeros((0, 3)),
        "f32": jnp.linspace(0, 1, 12).reshape(3, 4),
        "key": jax.random.key_data(jax.random.key(3)),
    }


@pytest.fixture
def copier():
    copier = HostCopier()
    yield copier
    copier.close()


def test_copies_have_the_bits_and_types_of_the_leaves(copier):
    toy.assert_bit_equal(jax.tree.unflatten(jax.tree.structure(tree()), copier.copy(tree())), tree())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_large_arrays_are_copied_whole(copier, dtype):
    x = (jnp.arange(LARGE * 4 // dtype.dtype.itemsize) % 251).astype(dtype)
    (copy,) = copier.copy(x)
    np.testing.assert_array_equal(copy, np.asarray(x))


def test_a_copy_survives_the_donation_of_its_array(copier):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(1000)
    (copy,) = copier.copy(x)
    y = step(x)
    assert x.is_deleted()
    assert (copy == 0).all()
    assert (np.asarray(y) == 1).all()


def test_buffers_are_used_again_after_the_last_release_only(copier):
    first = copier.copy(tree())
    expected = [x.copy() for x in first]
    lease = copier.lease(first, users=2)
    for _ in range(2):
        second = copier.copy(jax.tree.map(jnp.zeros_like, tree()))
        assert not any(np.shares_memory(a, b) for a in first for b in second)
        toy.assert_bit_equal(first, expected)
        lease.release()
    third = copier.copy(tree())
    assert all(any(np.shares_memory(a, b) for b in first) for a in third if a.size)
    toy.assert_bit_equal(third, expected)


def test_encoding_keeps_the_bytes_and_needs_no_copy(copier):
    copies = copier.copy(tree())
    encoded = encode(copies)
    assert all(x.dtype.isbuiltin == 1 for x in encoded)
    assert nbytes(encoded) == nbytes(copies) == sum(x.nbytes for x in jax.tree.leaves(tree()))
    assert all(np.shares_memory(a, b) for a, b in zip(encoded, copies, strict=True) if a.size)


def test_decoding_undoes_encoding_on_read_only_memory(copier):
    encoded = encode(copier.copy(tree()))
    for x in encoded:
        x.flags.writeable = False
    decoded = decode(encoded, jax.eval_shape(tree))
    toy.assert_bit_equal(decoded, tree())
    assert all(np.shares_memory(a, b) for a, b in zip(encoded, jax.tree.leaves(decoded), strict=True) if a.size)


def test_decoding_names_the_leaf_that_does_not_fit():
    abstract = {"conv": {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}}
    with pytest.raises(ValueError, match=r"conv/kernel: expected bfloat16\(2, 3\) \(got uint16\(3, 2\)\)"):
        decode([np.zeros((3, 2), np.uint16)], abstract)
    with pytest.raises(ValueError, match=r"conv/kernel: expected bfloat16\(2, 3\) \(got float32\(2, 3\)\)"):
        decode([np.zeros((2, 3), np.float32)], abstract)
    with pytest.raises(ValueError, match=r"expected 1 arrays \(got 0\)"):
        decode([], abstract)
