"""Finds things by name: configurations, modules that moved, the version."""
