"""Search for the best sequences: beam search and its relatives."""

from raylingvo.ops.search._beam_search_attributes import TopKHyps as TopKHyps
from raylingvo.ops.search.beam_search import BeamSearchResult as BeamSearchResult
from raylingvo.ops.search.beam_search import beam_search as beam_search
from raylingvo.ops.search.beam_search_state import BeamSearchState as BeamSearchState
from raylingvo.ops.search.beam_search_step import beam_search_step as beam_search_step
from raylingvo.ops.search.biased import BiasState as BiasState
from raylingvo.ops.search.biased import bias_log_probs as bias_log_probs
from raylingvo.ops.search.biased import biased_scores as biased_scores
from raylingvo.ops.search.cache import CacheIndex as CacheIndex
from raylingvo.ops.search.flat_beam_search import FlatBeamSearchResult as FlatBeamSearchResult
from raylingvo.ops.search.flat_beam_search import flat_beam_search as flat_beam_search
from raylingvo.ops.search.greedy_search import GreedySearchResult as GreedySearchResult
from raylingvo.ops.search.greedy_search import greedy_search as greedy_search
from raylingvo.ops.search.hyp_attention import HypAttention as HypAttention
from raylingvo.ops.search.hyp_attention import hyp_attention as hyp_attention
from raylingvo.ops.search.nbest import merge_beam_search_outputs as merge_beam_search_outputs
from raylingvo.ops.search.prefix_constraints import PrefixState as PrefixState
from raylingvo.ops.search.prefix_constraints import PrefixTrie as PrefixTrie
from raylingvo.ops.search.prefix_constraints import constrained_scores as constrained_scores
from raylingvo.ops.search.sample_sequences import SampleSequencesResult as SampleSequencesResult
from raylingvo.ops.search.sample_sequences import sample_sequences as sample_sequences
from raylingvo.ops.search.stochastic import StochasticState as StochasticState
from raylingvo.ops.search.stochastic import gumbel_with_max as gumbel_with_max
from raylingvo.ops.search.stochastic import stochastic_scores as stochastic_scores
from raylingvo.ops.search.top_k_from_beam_search_outs import top_k_from_beam_search_outs as top_k_from_beam_search_outs
from raylingvo.ops.search.top_k_hyps import top_k_hyps as top_k_hyps
