"""Decoding in which every hyp starts with one of some given sequences of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from raylingvo.ops.search._beam_search_attributes import EMPTY_SCORE
from raylingvo.ops.search._search_arguments import floats, integers

# b beams, N = b*k slots (slot i is hyp i // b of beam i % b), V vocabulary, M nodes, E edges, D edges of one node.

# States of a hyp that is at no node.
_FREE = -1  # it has started with a whole sequence
_LOST = -2  # no sequence starts like it


class PrefixTrie(NamedTuple):
    """Sets of sequences, as arrays.

    roots: i32[sets]. first_edges: i32[M + 1], the edges of node m are first_edges[m] .. first_edges[m + 1] - 1.
    edge_tokens: i32[E]. edge_nodes: i32[E], where they lead; -1 where a sequence ends. degrees: i32[D], 0 .. D - 1 for
    the largest number of edges that a node has.
    """

    roots: jax.Array
    first_edges: jax.Array
    edge_tokens: jax.Array
    edge_nodes: jax.Array
    degrees: jax.Array

    @classmethod
    def create(cls, *sets: Iterable[Sequence[int]]) -> PrefixTrie:
        """sets: one for all beams, or one for each beam: the sequences with one of which a hyp has to start.

        What follows a whole sequence is free. Sequences that end with EOS are all that there can be. The empty sequence
        allows everything. Raises ValueError for an empty set or a token below 0.
        """
        if not sets:
            raise ValueError("sets must be one set of sequences, or one for each beam (got none)")
        # A node is a dictionary from tokens to nodes; None: a sequence ends there.
        nodes: list[dict[int, int | None]] = []
        roots = []
        for i, sequences in enumerate(sets):
            # Shorter first: what starts with a whole sequence needs no nodes of its own.
            ordered = sorted(([int(token) for token in sequence] for sequence in sequences), key=len)
            if not ordered:
                raise ValueError(f"sets[{i}] must hold at least one sequence: without any, no hyp is allowed")
            if low := [token for sequence in ordered for token in sequence if token < 0]:
                raise ValueError(f"sets[{i}] must hold tokens >= 0 (got {low[0]})")
            if not ordered[0]:
                roots.append(_FREE)
                continue
            roots.append(len(nodes))
            nodes.append({})
            for sequence in ordered:
                _add(nodes, roots[-1], sequence)
        degree_M = np.array([len(node) for node in nodes], np.int32)
        edges = [edge for node in nodes for edge in sorted(node.items())]
        return cls(
            roots=jnp.asarray(roots, jnp.int32),
            first_edges=jnp.asarray(np.concatenate([[0], np.cumsum(degree_M)]), jnp.int32),
            edge_tokens=jnp.asarray([token for token, _ in edges], jnp.int32),
            edge_nodes=jnp.asarray([_FREE if node is None else node for _, node in edges], jnp.int32),
            degrees=jnp.arange(max(degree_M, default=0), dtype=jnp.int32),
        )

    @classmethod
    def of_arrays(cls, prefixes: jax.Array, lens: jax.Array) -> PrefixTrie:
        """One sequence for each beam, its first lens[i] tokens: prefixes i32[b, P], lens i32[b]. For use inside jit."""
        b, P = prefixes.shape
        node_bxP = jnp.arange(b * P, dtype=jnp.int32).reshape(b, P)
        is_last_bxP = jnp.arange(1, P + 1)[None] >= lens[:, None]
        return cls(
            roots=jnp.where(lens > 0, node_bxP[:, 0], _FREE),
            first_edges=jnp.arange(b * P + 1, dtype=jnp.int32),
            edge_tokens=prefixes.astype(jnp.int32).reshape(-1),
            edge_nodes=jnp.where(is_last_bxP, _FREE, node_bxP + 1).reshape(-1),
            degrees=jnp.arange(1, dtype=jnp.int32),
        )


class PrefixState(NamedTuple):
    """Part of a search's cache: it follows the hyps.

    node: i32[N], where the parent of each slot's hyp is in the trie. step: i32[], how many steps there have been.
    """

    node: jax.Array
    step: jax.Array

    @classmethod
    def create(cls, trie: PrefixTrie, num_slots: int) -> PrefixState:
        """Before the first step. num_slots: N, a multiple of the number of sets. Raises ValueError if it is not."""
        sets = len(trie.roots)
        if num_slots < 1 or num_slots % sets:
            raise ValueError(f"num_slots must be a multiple of the {sets} sets of the trie (got {num_slots})")
        return cls(node=jnp.tile(trie.roots, num_slots // sets), step=jnp.zeros((), jnp.int32))


def constrained_scores(log_probs: Any, ids: Any, state: PrefixState, trie: PrefixTrie) -> tuple[jax.Array, PrefixState]:
    """log_probs with -1e30 for every token that leads away from the trie's sequences: for a search's step_fn.

    The work of a step grows with the number of tokens that one node allows, not with the size of the trie.

    Args:
      log_probs: f32[N, V], of the next token of each slot.
      ids: i32[N], the newest token of each slot; in the first step not read.
      state: `PrefixState.create` in the first step, then what this function returned, reordered with the cache.
      trie: `PrefixTrie.create`. Tokens that are not below V cannot be chosen.

    Returns:
      f32[N, V], not normalised again; and the state for the next step.

    Raises:
      ValueError: a shape or a dtype is wrong; the message names it.
    """
    log_prob_NxV = floats("log_probs", log_probs, (len(state.node), None))
    N, V = log_prob_NxV.shape
    ids_N = integers("ids", ids, (N,))
    if not len(trie.edge_tokens):
        return log_prob_NxV, PrefixState(node=state.node, step=state.step + 1)

    token_NxD, next_NxD = _edges(trie, state.node)
    is_taken_NxD = token_NxD == ids_N[:, None]
    next_N = jnp.max(jnp.where(is_taken_NxD, next_NxD, _LOST), axis=1)
    node_N = jnp.where((state.step > 0) & (state.node >= 0), next_N, state.node)

    token_NxD, _ = _edges(trie, node_N)
    # V: there is no such token, and what is written there is dropped.
    token_NxD = jnp.where(token_NxD < 0, V, token_NxD)
    is_allowed_NxV = jnp.zeros((N, V), bool).at[jnp.arange(N)[:, None], token_NxD].set(True, mode="drop")
    is_allowed_NxV |= (node_N == _FREE)[:, None]
    return jnp.where(is_allowed_NxV, log_prob_NxV, EMPTY_SCORE), PrefixState(node=node_N, step=state.step + 1)


def _edges(trie: PrefixTrie, node_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """i32[N, D] tokens (-1: there is no such edge) and the nodes to which they lead."""
    at_N = jnp.maximum(node_N, 0)
    edge_NxD = trie.first_edges[at_N][:, None] + trie.degrees[None]
    is_edge_NxD = (edge_NxD < trie.first_edges[at_N + 1][:, None]) & (node_N >= 0)[:, None]
    edge_NxD = jnp.minimum(edge_NxD, len(trie.edge_tokens) - 1)
    return jnp.where(is_edge_NxD, trie.edge_tokens[edge_NxD], -1), trie.edge_nodes[edge_NxD]


def _add(nodes: list[dict[int, int | None]], node: int, sequence: list[int]) -> None:
    for token in sequence[:-1]:
        following = nodes[node].get(token, len(nodes))
        if following is None:
            return
        if following == len(nodes):
            nodes.append({})
        nodes[node][token] = following
        node = following
    nodes[node][sequence[-1]] = None
