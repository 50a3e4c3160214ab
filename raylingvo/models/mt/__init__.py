"""Machine translation: its networks and tasks. Experiments are in modules of their own."""

from raylingvo.models.mt.decoding import Decoding as Decoding
from raylingvo.models.mt.model import Predicted as Predicted
from raylingvo.models.mt.model import TranslationModel as TranslationModel
from raylingvo.models.mt.model import TranslationModule as TranslationModule
from raylingvo.models.mt.rnmt_model import RnmtModel as RnmtModel
from raylingvo.models.mt.transformer_model import TransformerModel as TransformerModel
from raylingvo.models.mt.translation import Translation as Translation
