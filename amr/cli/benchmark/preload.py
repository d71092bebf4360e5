"""What `fit` needs, imported once for all the processes that are forked out of the one that imports this."""

from amr.cli.imports import quick_imports

with quick_imports():
    import amr.cli.fit  # noqa: F401
