"""Texts are told from what a device can hold."""

import jax
import jax.numpy as jnp
import numpy as np

from raylingvo.data.host_fields import device_fields


def test_texts_stay_on_the_host():
    numbers = {
        "ids": np.zeros((2, 3), np.int32),
        "real": np.ones(2, bool),
        "half": jnp.zeros(2, jnp.bfloat16),
        "shape": jax.ShapeDtypeStruct((2,), jnp.float32),
        "key": jax.random.key(0),
    }
    texts = {
        "objects": np.array(["a", "b"], object),
        "str": np.array(["a", "b"]),
        "bytes": np.array([b"a", b"b"]),
        "strings": np.array(["a", "b"], np.dtypes.StringDType()),
    }
    assert device_fields(numbers | texts) == numbers
