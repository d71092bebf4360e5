"""The keys of the command line as data, and what needs nothing else: help, early checks, completion."""
