"""Training apart from the life of a run: the loop, its optimiser and schedule, validation, and what is measured."""
