"""Capitals and punctuation for text without them (Lingvo: tasks/punctuator)."""
