"""The four stages of MultiViz (Liang et al. 2023), as pure functions on tensors and a `FusionModel`.

Unimodal importance (U), cross-modal interactions (C), representations (R) and prediction (P). Most of it re-runs the
head alone, on cached encodings.
"""
