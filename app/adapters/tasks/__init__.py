"""Executors of tasks, and the types of tasks they know."""
