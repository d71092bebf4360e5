"""Trust: how far a map of one modality's atoms can be trusted.

Scores that perturb inputs encode the clips once and then run nothing but that modality's encoder and the head; scores
of a method call it again: on noisy clips, on copies of the model with other parameters, with other seeds. `synergy` is
of the maps of two modalities together.
"""

from amr.multiviz.trust.areas import Area, deletion, insertion
from amr.multiviz.trust.explain import Explain, spearman
from amr.multiviz.trust.interactions import interaction_sensitivity_n
from amr.multiviz.trust.pointing import Pointing, pointing_game
from amr.multiviz.trust.randomised import RankCorrelation, cascading_randomisation, randomisation_test
from amr.multiviz.trust.scores import Trust, trust
from amr.multiviz.trust.stability import Stability, max_sensitivity, stability
from amr.multiviz.trust.sums import infidelity, sensitivity_n
from amr.multiviz.trust.synergy import Synergy, synergies, synergy

__all__ = [
    "Area",
    "Explain",
    "Pointing",
    "RankCorrelation",
    "Stability",
    "Synergy",
    "Trust",
    "cascading_randomisation",
    "deletion",
    "infidelity",
    "insertion",
    "interaction_sensitivity_n",
    "max_sensitivity",
    "pointing_game",
    "randomisation_test",
    "sensitivity_n",
    "spearman",
    "stability",
    "synergies",
    "synergy",
    "trust",
]
