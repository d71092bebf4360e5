"""Imports what `fit` needs, once for all processes that are forked from the one that imports this module."""

from amr.cli.imports import quick_imports

with quick_imports():
    import amr.cli.fit  # noqa: F401
