"""Unimodal importance (U): which atoms of one modality's input a score rests on, the other modalities held fixed.

Every method encodes the clips once, keeps the other modalities' encodings, and then runs nothing but one encoder and
the head. What that costs is counted in rows of that encoder a clip, the first encoding included.
"""

from amr.multiviz.unimodal.grad_cam import grad_cam
from amr.multiviz.unimodal.gradients import gradient, gradient_input, gradient_shap, integrated_gradients
from amr.multiviz.unimodal.guided import guided_backprop
from amr.multiviz.unimodal.importance import Importance
from amr.multiviz.unimodal.perturbation import kernel_shap, lime, occlusion
from amr.multiviz.unimodal.surrogate import efficient_regression, lime_kernel, shapley_kernel, weighted_ridge

__all__ = [
    "Importance",
    "efficient_regression",
    "grad_cam",
    "gradient",
    "gradient_input",
    "gradient_shap",
    "guided_backprop",
    "integrated_gradients",
    "kernel_shap",
    "lime",
    "lime_kernel",
    "occlusion",
    "shapley_kernel",
    "weighted_ridge",
]
