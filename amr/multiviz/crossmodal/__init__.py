"""Cross-modal interactions (C): what a score owes to modalities together, beyond what each brings alone.

An interaction can only come from the head, so encoders run once an atom and the head does the rest. EMAP is in
`amr.evaluation.emap`, for evaluation needs it too; it can be imported here like all other names.
"""

from amr.evaluation.emap import Estimate, emap, emap_estimate, emap_gap
from amr.multiviz.crossmodal.ablation import ablation
from amr.multiviz.crossmodal.contributions import contributions
from amr.multiviz.crossmodal.dime import Dime, dime
from amr.multiviz.crossmodal.joint import JointExplanation, Side, Space, joint_lime, joint_shap
from amr.multiviz.crossmodal.second_order import InteractionMap, second_order
from amr.multiviz.crossmodal.shapley import SamplingError, interaction_error, interaction_index, modality_shapley

__all__ = [
    "Dime",
    "Estimate",
    "InteractionMap",
    "JointExplanation",
    "SamplingError",
    "Side",
    "Space",
    "ablation",
    "contributions",
    "dime",
    "emap",
    "emap_estimate",
    "emap_gap",
    "interaction_error",
    "interaction_index",
    "joint_lime",
    "joint_shap",
    "modality_shapley",
    "second_order",
]
