"""Private parts of raylingvo.training.optimizers."""
