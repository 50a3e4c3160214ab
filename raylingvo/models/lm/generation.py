"""Text from a language model: prompts are gone on with, token by token, from a cache of keys and values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from raylingvo.errors import RequestError
from raylingvo.models.layers.softmax import Softmax
from raylingvo.models.lm.language_model import LanguageModel
from raylingvo.models.task import Batch, WeightedMetrics
from raylingvo.ops import flat_beam_search, sample_sequences

# B prompts of P tokens, L new positions, S places in the cache, T generated tokens, D features.


class CachedModule(Protocol):
    """What generation needs of a network."""

    softmax: Softmax

    def init_cache(self, batch_size: int, max_length: int) -> Any:
        """An empty cache, for S = max_length places of each of B = batch_size rows."""
        ...

    def extend_step(
        self,
        ids_BxL: jax.Array,
        cache: Any,
        index: jax.Array,
        *,
        mask: jax.Array,
        positions: jax.Array,
        key_positions: jax.Array,
        nonpadding: jax.Array,
    ) -> tuple[jax.Array, Any]:
        """Features [B, L, D] of tokens that go to places index, index + 1, .. of the cache; the cache with them.

        mask: bool[B, 1, L, S], the places that each sees. positions: i32[B, L], of the tokens in their sentences;
        key_positions: i32[B, S], of all places. nonpadding: f32[B, L], 0 for tokens that do not count.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """How prompts are gone on with.

    max_steps: tokens that are generated; a row ends earlier with </s>. temperature: 0 takes the likeliest token, 1
    draws from the model's distribution. top_k: from so many tokens only; 0: from all. nucleus_p: from the likeliest
    that together have this probability. seed: of the draws, which also depend on the place of a prompt in its batch.
    beam_size: > 0: nothing is drawn; of so many candidates at a time, the best is taken, by its log-probability over
    ((n + 5) / 5) ** length_norm_alpha for n tokens (flat beam search, which Lingvo's giant models decode with).
    before: text that is put before each prompt; where it is empty, <s> is.
    """

    max_steps: int = 200
    temperature: float = 1.0
    top_k: int = 0
    nucleus_p: float = 1.0
    seed: int = 0
    beam_size: int = 0
    length_norm_alpha: float = 0.8
    before: str = ""

    def __post_init__(self) -> None:
        least_of = {"max_steps": 1, "top_k": 0, "seed": 0, "temperature": 0, "beam_size": 0, "length_norm_alpha": 0}
        for name, least in least_of.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be >= {least} (got {getattr(self, name)})")
        if not 0 < self.nucleus_p <= 1:
            raise ValueError(f"nucleus_p must be in (0, 1] (got {self.nucleus_p})")
        draws = {"temperature": 1.0, "top_k": 0, "nucleus_p": 1.0, "seed": 0}
        for name, default in draws.items():
            if self.beam_size and getattr(self, name) != default:
                raise ValueError(
                    f"{name} must be {default} with a beam_size: nothing is drawn (got {getattr(self, name)})"
                )
        if self.top_k and not self.temperature:
            raise ValueError(f"top_k must be 0 at temperature 0, which takes the likeliest token (got {self.top_k})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerativeLanguageModel(LanguageModel):
    """A `LanguageModel` that goes on with lines of text (`decode --input`); datasets are decoded to their perplexity.

    The module is a `CachedModule`. Outputs of a line: `text`, what was generated, `ids`, and `log_prob`, the sum of
    its tokens' log-probabilities under the model, in nats.
    """

    generation: Generation = Generation()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model.has_cache:
            raise ValueError("model must keep a cache of keys and values, as a TransformerLm does, to generate text")

    def decode(self, model: nnx.Module, batch: Batch) -> dict[str, jax.Array]:
        """Of prompts: ids i32[B, T], lens i32[B] (</s> included), log_prob f32[B]. Else as `LanguageModel`."""
        if "prompt" not in batch:
            return super().decode(model, batch)
        search = self._beam_search if self.generation.beam_size else self._sample
        return search(cast(CachedModule, model), batch)

    def _sample(self, module: CachedModule, batch: Batch) -> dict[str, jax.Array]:
        assert self.tokenizer is not None  # there is no prompt without
        how = self.generation
        prompt_BxP, start_B = batch["prompt"], batch["prompt_paddings"].sum(axis=1).astype(jnp.int32)
        batch_size, P = prompt_BxP.shape
        place_S = jnp.arange(P + how.max_steps)

        def extend(ids_BxL: jax.Array, cache: Any, index: jax.Array) -> tuple[jax.Array, Any]:
            place_L = index + jnp.arange(ids_BxL.shape[1])
            causal_LxS = place_S[None, :] <= place_L[:, None]
            real_BxS = place_S[None, :] >= start_B[:, None]
            positions_BxL = jnp.maximum(place_L[None, :] - start_B[:, None], 0)
            key_positions_BxS = jnp.maximum(place_S[None, :] - start_B[:, None], 0)
            return module.extend_step(
                ids_BxL,
                cache,
                index,
                mask=causal_LxS[None, None] & real_BxS[:, None, None, :],
                positions=positions_BxL,
                key_positions=key_positions_BxS,
                nonpadding=(place_L[None, :] >= start_B[:, None]).astype(jnp.float32),
            )

        def logits(id_B: jax.Array, step: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
            features_Bx1xD, cache = extend(id_B[:, None], cache, P - 1 + step)
            return module.softmax(features_Bx1xD[:, 0]), cache

        cache = module.init_cache(batch_size, len(place_S))
        if P > 1:
            _, cache = extend(prompt_BxP[:, :-1], cache, jnp.int32(0))
        drawn = sample_sequences(
            logits,
            prompt_BxP[:, -1],
            jax.random.key(how.seed),
            max_steps=how.max_steps,
            eos_id=self.tokenizer.eos_id,
            temperature=how.temperature or 1.0,
            top_k=how.top_k if how.temperature else 1,
            nucleus_p=how.nucleus_p,
            carry=cache,
        )
        return {"ids": drawn.ids, "lens": drawn.lens, "log_prob": drawn.scores}

    def _beam_search(self, module: CachedModule, batch: Batch) -> dict[str, jax.Array]:
        assert self.tokenizer is not None
        how, k = self.generation, self.generation.beam_size
        # The prompt fills whole rows of the search's buffer.
        more = -batch["prompt"].shape[1] % k
        prompt_BxP = jnp.pad(batch["prompt"], ((0, 0), (more, 0)))
        batch_size, P = prompt_BxP.shape
        length_B = P - more - batch["prompt_paddings"].sum(axis=1).astype(jnp.int32)
        rows = P // k + how.max_steps

        def callback(
            ids_BxL: jax.Array, segment_ids: jax.Array, positions: jax.Array, mask: jax.Array, state: Any, t: jax.Array
        ) -> tuple[jax.Array, Any]:
            places, cache = state
            # Where each place stands in its sentence: the relative bias needs it.
            places = jax.lax.dynamic_update_slice_in_dim(places, positions.astype(jnp.int32), t * k, axis=1)
            features, cache = module.extend_step(
                ids_BxL,
                cache,
                t * k,
                mask=mask[:, None] > 0,
                positions=positions,
                key_positions=places,
                nonpadding=(segment_ids != 0).astype(jnp.float32),
            )
            return jax.nn.log_softmax(module.softmax(features)), (places, cache)

        found = flat_beam_search(
            batch_size,
            k,
            rows,
            callback,
            (jnp.zeros((batch_size, rows * k), jnp.int32), module.init_cache(batch_size, rows * k)),
            eos_id=self.tokenizer.eos_id,
            length_norm_alpha=how.length_norm_alpha,
            beam_gap=None,
            prefix=prompt_BxP,
            prefix_len=length_B,
            nbest_size=1,
        )
        # Behind the prompt, which is not right-aligned in what is found.
        place_T = length_B[:, None] + jnp.arange(how.max_steps)[None]
        place_BxT = jnp.minimum(place_T, found.ids.shape[2] - 1)
        return {
            "ids": jnp.take_along_axis(found.ids[:, 0], place_BxT, axis=1),
            "lens": jnp.maximum(found.lens[:, 0] - length_B, 0),
            "log_prob": found.token_scores[:, 0].sum(axis=1),
        }

    def postprocess(
        self, decoded: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]
    ) -> tuple[list[tuple[str, dict[str, Any]]], WeightedMetrics]:
        if "prompt" not in batch:
            return super().postprocess(decoded, batch)
        assert self.tokenizer is not None
        ids_BxT, len_B = np.asarray(decoded["ids"]), np.asarray(decoded["lens"])
        last_B = ids_BxT[np.arange(len(len_B)), np.maximum(len_B - 1, 0)]
        ended_B = (len_B > 0) & (last_B == self.tokenizer.eos_id)
        texts = self.tokenizer.decode(ids_BxT, len_B - ended_B)
        outputs = [
            (
                str(row),
                {
                    "text": texts[row],
                    "ids": ids_BxT[row, : len_B[row]].tolist(),
                    "log_prob": float(decoded["log_prob"][row]),
                },
            )
            for row in np.flatnonzero(np.asarray(batch["weight"]) > 0)
        ]
        return outputs, {"num_generated": (float(len_B[np.asarray(batch["weight"]) > 0].sum()), 1.0)}

    def encode_lines(self, lines: Sequence[str]) -> dict[str, np.ndarray]:
        """prompt i32[B, P] and prompt_paddings f32[B, P], on the left; weight f32[B]. P is a power of 2.

        Raises RequestError without a tokenizer, or if a prompt and what is to be generated are longer than the model
        can have them.
        """
        if self.tokenizer is None:
            raise RequestError("the task needs a tokenizer to read lines of text; set task.tokenizer")
        tokenizer = dataclasses.replace(self.tokenizer, append_eos=False)
        rows = tokenizer.encode_ragged([self.generation.before + line for line in lines])
        sos = [self.tokenizer.sos_id]
        prompts = [[*([] if self.generation.before else sos), *row.tolist()] or sos for row in rows]
        width = max(map(len, prompts), default=1)
        longest, steps = self.model.max_length, self.generation.max_steps
        if longest is not None and width + steps > longest:
            raise RequestError(
                f"a prompt of {width} tokens and {steps} new ones (generation.max_steps) are more than the "
                f"model's {longest}"
            )
        width = 1 << (width - 1).bit_length()
        prompt_BxP = np.full((len(rows), width), self.tokenizer.pad_id, np.int32)
        paddings_BxP = np.ones((len(rows), width), np.float32)
        for prompt_P, paddings_P, tokens in zip(prompt_BxP, paddings_BxP, prompts, strict=True):
            prompt_P[width - len(tokens) :], paddings_P[width - len(tokens) :] = tokens, 0.0
        return {"prompt": prompt_BxP, "prompt_paddings": paddings_BxP, "weight": np.ones(len(rows), np.float32)}
