"""Ops: packing, search, geometry for 3-D detection, convolution, products.

Packing is for the host and needs no JAX. The others are imported when they are first asked for: who only reads data
does not wait for JAX.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from raylingvo.ops.bin_packing import best_fit as best_fit
from raylingvo.ops.bin_packing import fill_ratio as fill_ratio
from raylingvo.ops.packing import PackedSequences as PackedSequences
from raylingvo.ops.packing import PackedSingleSequence as PackedSingleSequence
from raylingvo.ops.packing import RowLayout as RowLayout
from raylingvo.ops.packing import apply_packing as apply_packing
from raylingvo.ops.packing import lay_out_rows as lay_out_rows
from raylingvo.ops.packing import pack_sequences as pack_sequences
from raylingvo.ops.packing import pack_single_sequence as pack_single_sequence

if TYPE_CHECKING:
    from raylingvo.ops.conv import conv2d as conv2d
    from raylingvo.ops.conv import conv2d_relu_pool as conv2d_relu_pool
    from raylingvo.ops.geometry import AveragePrecision as AveragePrecision
    from raylingvo.ops.geometry import KeptBoxes as KeptBoxes
    from raylingvo.ops.geometry import PointGrid as PointGrid
    from raylingvo.ops.geometry import SampledPoints as SampledPoints
    from raylingvo.ops.geometry import average_precision3d as average_precision3d
    from raylingvo.ops.geometry import non_max_suppression_3d as non_max_suppression_3d
    from raylingvo.ops.geometry import pairwise_iou3d as pairwise_iou3d
    from raylingvo.ops.geometry import points_to_grid as points_to_grid
    from raylingvo.ops.geometry import sample_points as sample_points
    from raylingvo.ops.product import einsum as einsum
    from raylingvo.ops.search import BeamSearchResult as BeamSearchResult
    from raylingvo.ops.search import BeamSearchState as BeamSearchState
    from raylingvo.ops.search import BiasState as BiasState
    from raylingvo.ops.search import CacheIndex as CacheIndex
    from raylingvo.ops.search import FlatBeamSearchResult as FlatBeamSearchResult
    from raylingvo.ops.search import GreedySearchResult as GreedySearchResult
    from raylingvo.ops.search import HypAttention as HypAttention
    from raylingvo.ops.search import PrefixState as PrefixState
    from raylingvo.ops.search import PrefixTrie as PrefixTrie
    from raylingvo.ops.search import SampleSequencesResult as SampleSequencesResult
    from raylingvo.ops.search import StochasticState as StochasticState
    from raylingvo.ops.search import TopKHyps as TopKHyps
    from raylingvo.ops.search import beam_search as beam_search
    from raylingvo.ops.search import beam_search_step as beam_search_step
    from raylingvo.ops.search import bias_log_probs as bias_log_probs
    from raylingvo.ops.search import biased_scores as biased_scores
    from raylingvo.ops.search import constrained_scores as constrained_scores
    from raylingvo.ops.search import flat_beam_search as flat_beam_search
    from raylingvo.ops.search import greedy_search as greedy_search
    from raylingvo.ops.search import gumbel_with_max as gumbel_with_max
    from raylingvo.ops.search import hyp_attention as hyp_attention
    from raylingvo.ops.search import merge_beam_search_outputs as merge_beam_search_outputs
    from raylingvo.ops.search import sample_sequences as sample_sequences
    from raylingvo.ops.search import stochastic_scores as stochastic_scores
    from raylingvo.ops.search import top_k_from_beam_search_outs as top_k_from_beam_search_outs
    from raylingvo.ops.search import top_k_hyps as top_k_hyps

_FAMILIES = ("conv", "geometry", "product", "search")


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        for family in _FAMILIES:
            module = importlib.import_module(f"raylingvo.ops.{family}")
            value = getattr(module, name, None)
            if value is not None and not isinstance(value, ModuleType):
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
