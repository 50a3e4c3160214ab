"""Capitals and punctuation for text without them (Lingvo: tasks/punctuator). Experiments have their own modules."""

from raylingvo.models.punctuator.punctuator import Punctuator as Punctuator
