"""`amr benchmark`: a grid of methods x seeds, each cell trained and tested in its own process.

Nothing is imported here: `cell` is started with `python -m`, which must find it not imported yet.
"""
