"""Private parts of raylingvo.training.schedules."""
