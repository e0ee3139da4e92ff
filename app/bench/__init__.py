"""Benchmarks beside peers: one broker, one payload, runs that take turns."""
