"""The command line: thin wrappers around functions that Python users call."""

from amr.cli.main import main

__all__ = ["main"]
