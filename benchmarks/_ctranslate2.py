"""A `TransformerModule` in CTranslate2 (`pip install ctranslate2`): its weights there, and what it translates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from raylingvo.models.layers.positions import sinusoid
from raylingvo.models.mt.transformer_model import TransformerModel

# B sources of S tokens, k hyps of each, T tokens; D features.

_POSITIONS = 512


def save(config: TransformerModel, params: Mapping[str, Any], folder: str, *, sos_id: int, eos_id: int) -> None:
    """Writes CTranslate2's form of the model. params: `Weights.params`, of the module that `config` builds.

    Raises ValueError if CTranslate2 has no such Transformer; ImportError without the package.
    """
    from ctranslate2 import specs  # pyright: ignore[reportMissingImports]

    wanted = {"norm_position": "pre", "normalized_residual": False, "final_norm": True, "query_scale": "sqrt_dim"}
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name} must be {value!r} for CTranslate2 (got {getattr(config, name)!r})")
    params = jax.device_get(params)
    encoder = specs.transformer_spec.TransformerEncoderSpec(config.num_encoder_layers, config.num_heads)
    decoder = specs.transformer_spec.TransformerDecoderSpec(config.num_decoder_layers, config.num_heads)
    encoder.embeddings[0].weight = params["source_embedding"]["table"]
    decoder.embeddings.weight = params["target_embedding"]["table"]
    decoder.projection.weight, decoder.projection.bias = params["softmax"]["kernel"], params["softmax"]["bias"]
    positions_PxD = np.asarray(sinusoid(jnp.arange(_POSITIONS), config.model_dim))
    for stack, weights in ((encoder, params["encoder"]), (decoder, params["decoder"])):
        stack.position_encodings.encodings = positions_PxD
        _norm(stack.layer_norm, weights["norm"])
        for i, layer in enumerate(stack.layer):
            block = weights["blocks"][i]
            _attention(layer.self_attention, block, "self")
            if hasattr(layer, "attention"):
                _attention(layer.attention, block, "cross")
            _norm(layer.ffn.layer_norm, block["residual"]["norm"])
            _linear(layer.ffn.linear_0, block["feed_forward"]["up"])
            _linear(layer.ffn.linear_1, block["feed_forward"]["down"])
    spec = specs.TransformerSpec(encoder, decoder)
    spec.config.layer_norm_epsilon = 1e-6
    spec.config.bos_token = spec.config.decoder_start_token = str(sos_id)
    spec.config.eos_token = str(eos_id)
    spec.register_source_vocabulary(_words(config.source_vocab_size))
    spec.register_target_vocabulary(_words(config.target_vocab_size))
    spec.validate()
    spec.optimize()
    spec.save(folder)


def translator(folder: str, *, compute_type: str, threads: int) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """(ids [B, S], k, T) -> ids i32[B, k, T] and their log-probabilities f32[B, k], of hyps of T tokens without an end.

    compute_type: "float32", "int8", ..
    """
    import ctranslate2  # pyright: ignore[reportMissingImports]

    model = ctranslate2.Translator(folder, compute_type=compute_type, inter_threads=1, intra_threads=threads)

    def translate(ids_BxS: np.ndarray, k: int, T: int) -> tuple[np.ndarray, np.ndarray]:
        results = model.translate_batch(
            [list(map(str, row)) for row in ids_BxS.tolist()],
            beam_size=k,
            num_hypotheses=k,
            length_penalty=0,
            min_decoding_length=T,
            max_decoding_length=T,
            return_scores=True,
        )
        ids_BxkxT = np.array([[list(map(int, tokens)) for tokens in result.hypotheses] for result in results])
        return ids_BxkxT.astype(np.int32), np.array([result.scores for result in results], np.float32)

    return translate


def _words(count: int) -> list[str]:
    """A word is its id; only CTranslate2's unknown one has a name of its own."""
    return ["<unk>", *map(str, range(1, count))]


def _norm(spec: Any, weights: Mapping[str, np.ndarray]) -> None:
    spec.gamma, spec.beta = 1 + weights["scale"], weights["bias"]


def _linear(spec: Any, *projections: Mapping[str, np.ndarray], out: bool = False) -> None:
    """Side by side. out: all axes of the kernel but the last are rows, else all but the first columns."""
    kernels, biases = [], []
    for projection in projections:
        kernel = projection["kernel"]
        kernels.append(kernel.reshape((-1, kernel.shape[-1]) if out else (kernel.shape[0], -1)).T)
        biases.append(projection["bias"].reshape(-1))
    spec.weight, spec.bias = np.concatenate(kernels), np.concatenate(biases)


def _attention(spec: Any, block: Mapping[str, Any], kind: str) -> None:
    weights = block[f"{kind}_attention"]
    into = [weights[name] for name in ("query", "key", "value")]
    _norm(spec.layer_norm, block[f"{kind}_residual"]["norm"])
    if kind == "self":
        _linear(spec.linear[0], *into)
    else:
        _linear(spec.linear[0], into[0])
        _linear(spec.linear[1], *into[1:])
    _linear(spec.linear[-1], weights["output"], out=True)
