"""Capitals and punctuation for text without them (Lingvo: tasks/punctuator). Experiments are in modules of their own."""

from raylingvo.models.punctuator.punctuator import Punctuator as Punctuator
