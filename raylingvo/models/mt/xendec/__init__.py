"""Crossover encoder-decoder (Lingvo: TransformerXEnDecModel, tasks/mt/model.py)."""

from raylingvo.models.mt.xendec.model import XEnDecModel as XEnDecModel
from raylingvo.models.mt.xendec.task import XEnDec as XEnDec
