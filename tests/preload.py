"""What the tests' own processes need, imported once for all that are forked out of the one that imports this."""

from amr.cli.imports import quick_imports

with quick_imports():
    import amr.cli.fit  # noqa: F401
    import tests.training  # noqa: F401
