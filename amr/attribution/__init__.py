"""Attribution at the encoder outputs: how much each modality counts in a decision.

Pure, differentiable functions: shares by gradients, by integrated gradients, by Shapley values and by what the output
does when a modality is another clip's; and the penalty on their distance from a ratio.
"""

from amr.attribution.output import (
    Gradient,
    change_shares,
    jensen_shannon,
    other_clips,
    output_change,
    output_shares,
    recombined_logits,
)
from amr.attribution.shares import (
    Head,
    Score,
    absolute_shares,
    at_least_float32,
    attributed_rows,
    attribution_shares,
    class_score,
    coalition_index,
    equal_by_construction,
    evaluating,
    modules_in,
    normalised_ratio,
    predicted_shapley_shares,
    ratio_penalty,
    require_gradient,
    shapley_shares,
    shapley_values,
    undisturbed,
)

__all__ = [
    "Gradient",
    "Head",
    "Score",
    "absolute_shares",
    "at_least_float32",
    "attributed_rows",
    "attribution_shares",
    "change_shares",
    "class_score",
    "coalition_index",
    "equal_by_construction",
    "evaluating",
    "jensen_shannon",
    "modules_in",
    "normalised_ratio",
    "other_clips",
    "output_change",
    "output_shares",
    "predicted_shapley_shares",
    "ratio_penalty",
    "recombined_logits",
    "require_gradient",
    "shapley_shares",
    "shapley_values",
    "undisturbed",
]
