"""Functions that the example workflows call through transform.python."""
