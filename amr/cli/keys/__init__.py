"""The keys of the command line as data, and what needs nothing else: help, early checks, completion."""

RUN_COMMANDS = ("fit", "validate", "test", "predict")
CONFIGURED = (*RUN_COMMANDS, "prepare", "benchmark")
"""Commands that take configurations."""
