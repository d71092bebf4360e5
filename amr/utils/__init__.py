"""Helpers for every part that depend on no other part: files, errors, work, distributed sums, the parser."""
