"""Language models: their networks and tasks. Experiments are in modules of their own."""

from raylingvo.models.lm.generation import Generation as Generation
from raylingvo.models.lm.generation import GenerativeLanguageModel as GenerativeLanguageModel
from raylingvo.models.lm.language_model import LanguageModel as LanguageModel
from raylingvo.models.lm.language_model import NextTokenModel as NextTokenModel
from raylingvo.models.lm.packed_language_model import MaskedLanguageModel as MaskedLanguageModel
from raylingvo.models.lm.packed_language_model import PackedLanguageModel as PackedLanguageModel
from raylingvo.models.lm.rnn_lm import RnnLm as RnnLm
from raylingvo.models.lm.transformer_lm import TransformerLm as TransformerLm
