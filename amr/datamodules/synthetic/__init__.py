"""Synthetic clips, whose evidence and its place are known."""
