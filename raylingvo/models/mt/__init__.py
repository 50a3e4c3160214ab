"""Machine translation (Lingvo: tasks/mt)."""
