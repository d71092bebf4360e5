"""Clips that are made: their evidence, and where it is planted, is known."""
