"""The four stages of MultiViz (Liang et al. 2023): unimodal importance, cross-modal interactions, representations,
prediction. Pure functions on tensors and a `FusionModel`; most re-run the head alone, on cached encodings.
"""
