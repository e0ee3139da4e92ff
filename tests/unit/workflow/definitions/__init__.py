"""Definitions of workflows."""
