"""Layers, and the functions that they are made of. One with its module's name is in there: `dropout.dropout`."""

from raylingvo.models.layers.additive_attention import AdditiveAttention as AdditiveAttention
from raylingvo.models.layers.attention import AttentionConfig as AttentionConfig
from raylingvo.models.layers.attention import KeyValues as KeyValues
from raylingvo.models.layers.attention import MultiHeadedAttention as MultiHeadedAttention
from raylingvo.models.layers.attention_rnn import AttentionRNN as AttentionRNN
from raylingvo.models.layers.batch_norm import BatchNorm as BatchNorm
from raylingvo.models.layers.conv import ConvReluPool as ConvReluPool
from raylingvo.models.layers.conv_block import ConvBlock as ConvBlock
from raylingvo.models.layers.dot_product_attention import DotProductAttention as DotProductAttention
from raylingvo.models.layers.embedding import Embedding as Embedding
from raylingvo.models.layers.feed_forward import FeedForward as FeedForward
from raylingvo.models.layers.feed_forward import FeedForwardConfig as FeedForwardConfig
from raylingvo.models.layers.feed_forward import ResidualFeedForward as ResidualFeedForward
from raylingvo.models.layers.gradient_norm import clip_gradient_norm as clip_gradient_norm
from raylingvo.models.layers.gradient_norm import with_clipped_gradient as with_clipped_gradient
from raylingvo.models.layers.group_norm import GroupNorm as GroupNorm
from raylingvo.models.layers.lconv import LConv as LConv
from raylingvo.models.layers.lconv import LConvConfig as LConvConfig
from raylingvo.models.layers.location_sensitive_attention import (
    LocationSensitiveAttention as LocationSensitiveAttention,
)
from raylingvo.models.layers.losses import ClassScores as ClassScores
from raylingvo.models.layers.losses import class_scores as class_scores
from raylingvo.models.layers.losses import cross_entropy as cross_entropy
from raylingvo.models.layers.losses import weighted_mean as weighted_mean
from raylingvo.models.layers.losses import weighted_sum as weighted_sum
from raylingvo.models.layers.losses import z_loss as z_loss
from raylingvo.models.layers.lstm import LSTMCell as LSTMCell
from raylingvo.models.layers.lstm import LSTMConfig as LSTMConfig
from raylingvo.models.layers.lstm import LSTMState as LSTMState
from raylingvo.models.layers.masks import causal_mask as causal_mask
from raylingvo.models.layers.masks import combine_masks as combine_masks
from raylingvo.models.layers.masks import padding_mask as padding_mask
from raylingvo.models.layers.masks import segment_mask as segment_mask
from raylingvo.models.layers.masks import window_mask as window_mask
from raylingvo.models.layers.moe import MoeConfig as MoeConfig
from raylingvo.models.layers.moe import MoeFeedForward as MoeFeedForward
from raylingvo.models.layers.multi_headed_source_attention import (
    MultiHeadedSourceAttention as MultiHeadedSourceAttention,
)
from raylingvo.models.layers.multi_headed_source_attention import (
    MultiHeadedSourceAttentionConfig as MultiHeadedSourceAttentionConfig,
)
from raylingvo.models.layers.normalization import LayerNorm as LayerNorm
from raylingvo.models.layers.normalization import RmsNorm as RmsNorm
from raylingvo.models.layers.padded_conv import DepthwiseConv2D as DepthwiseConv2D
from raylingvo.models.layers.padded_conv import PaddedConv2D as PaddedConv2D
from raylingvo.models.layers.positions import LearnedPositions as LearnedPositions
from raylingvo.models.layers.positions import Rotary as Rotary
from raylingvo.models.layers.positions import SinusoidalPositions as SinusoidalPositions
from raylingvo.models.layers.positions import harmonics as harmonics
from raylingvo.models.layers.positions import rotate as rotate
from raylingvo.models.layers.positions import sinusoid as sinusoid
from raylingvo.models.layers.projection import Projection as Projection
from raylingvo.models.layers.relative_bias import RelativeBias as RelativeBias
from raylingvo.models.layers.relative_bias import RelativeBiasConfig as RelativeBiasConfig
from raylingvo.models.layers.residual import Residual as Residual
from raylingvo.models.layers.residual import ResidualConfig as ResidualConfig
from raylingvo.models.layers.rnn import RNN as RNN
from raylingvo.models.layers.rnn import BidirectionalRNN as BidirectionalRNN
from raylingvo.models.layers.rnn import StackedBidirectionalRNN as StackedBidirectionalRNN
from raylingvo.models.layers.rnn import StackedRNN as StackedRNN
from raylingvo.models.layers.sampled_softmax import Candidates as Candidates
from raylingvo.models.layers.sampled_softmax import log_uniform_candidates as log_uniform_candidates
from raylingvo.models.layers.sampled_softmax import sampled_cross_entropy as sampled_cross_entropy
from raylingvo.models.layers.softmax import Softmax as Softmax
from raylingvo.models.layers.source_attention import Source as Source
from raylingvo.models.layers.time_windows import TimeWindow as TimeWindow
from raylingvo.models.layers.top2_gating import Gating as Gating
from raylingvo.models.layers.top2_gating import expert_capacity as expert_capacity
from raylingvo.models.layers.transformer import Block as Block
from raylingvo.models.layers.transformer import Transformer as Transformer
from raylingvo.models.layers.transformer import TransformerConfig as TransformerConfig
from raylingvo.models.layers.variables import Initializer as Initializer
from raylingvo.models.layers.variables import logical_axes as logical_axes
from raylingvo.models.layers.variables import param as param
