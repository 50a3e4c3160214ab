"""A small Transformer language model, whose variables have logical axes that a mesh can split, and its batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import toy

from raylingvo.experiment import Experiment
from raylingvo.models.layers.attention import AttentionConfig
from raylingvo.models.layers.feed_forward import FeedForwardConfig
from raylingvo.models.layers.transformer import TransformerConfig
from raylingvo.models.lm.language_model import LanguageModel
from raylingvo.models.lm.transformer_lm import TransformerLm
from raylingvo.parallel.mesh import Mesh
from raylingvo.training.learner import Learner
from raylingvo.training.optimizers import Optimizer

B, T, V = 8, 6, 16
# Heads, inner layers and the vocabulary over four devices, what has none of them over two.
MESH = Mesh(
    axes={"data": 2, "model": 4}, rules={"heads": "model", "mlp": "model", "vocab": "model"}, fsdp="data"
)  # fmt: skip


def experiment(optimizer: Optimizer, **train: Any) -> Experiment:
    """With dropout. Its datasets are none of its own: `batches` are what it is trained on."""
    stack = TransformerConfig(
        num_layers=1,
        # A bias of keys changes nothing: what it learned would be rounding errors.
        attention=AttentionConfig(model_dim=8, num_heads=4, use_bias=False),
        feed_forward=FeedForwardConfig(hidden_dim=16),
    )
    model = TransformerLm(vocab_size=V, stack=stack, learned_positions=T, tied_softmax=False, dropout=0.2)
    learner = Learner(learning_rate=0.02, optimizer=optimizer)
    return toy.experiment(task=LanguageModel(model=model), learner=learner, **train)


def batches(num_batches: int) -> list[dict[str, np.ndarray]]:
    """Random tokens; sentences of different lengths."""
    rng = np.random.default_rng(5)
    found = []
    for k in range(num_batches):
        ids_BxT = rng.integers(3, V, (B, T)).astype(np.int32)
        length_B = rng.integers(2, T + 1, B)
        found.append(
            {
                "ids": np.concatenate([np.ones((B, 1), np.int32), ids_BxT[:, :-1]], axis=1),
                "labels": ids_BxT,
                "paddings": (np.arange(T)[None] >= length_B[:, None]).astype(np.float32),
                "weight": np.ones(B, np.float32),
                "id": np.arange(k * B, (k + 1) * B),
            }
        )
    return found
