"""Definitions of workflows: read from YAML or JSON, checked whole, and named by their content."""
