"""The parts behind raylingvo.config."""
