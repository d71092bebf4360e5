"""The kinds of maps, with the facts about each."""

from typing import NamedTuple


class Method(NamedTuple):
    """A kind of map.

    Attributes:
        stage: U, C, D, R or P.
        method: Its name in arrays and tables.
        title: Name for people.
        atoms: fine or coarse; None where there are none.
        signed: Whether it tells what speaks for from what speaks against.
        unit: Unit of its values.
        about: Meaning of the map.
        caution: When not to believe it.
    """

    stage: str
    method: str
    title: str
    atoms: str | None
    signed: bool
    unit: str
    about: str
    caution: str


LOGIT, SLOPE = "logit", "logit per unit of input, summed"
METHODS = (
    Method(
        "U",
        "occlusion",
        "Occlusion",
        "fine",
        True,
        LOGIT,
        "How much the logit falls when the piece is taken away.",
        "Pieces that stand in for one another each look unimportant.",
    ),
    Method(
        "U",
        "integrated_gradients",
        "Integrated gradients",
        "fine",
        True,
        LOGIT,
        "The logit's rise from an input in which all pieces are taken away, shared out along a straight path.",
        "The path goes through inputs that are like none of the data.",
    ),
    Method(
        "U",
        "gradient_shap",
        "GradientSHAP",
        "fine",
        True,
        LOGIT,
        "Integrated gradients in expectation over other clips as the starting point.",
        "It is relative to the other clips, and has a sampling error.",
    ),
    Method(
        "U",
        "kernel_shap",
        "KernelSHAP",
        "fine",
        True,
        LOGIT,
        "Shapley values of the pieces, by regression on masked inputs.",
        "A sampling error, which is given; masked inputs are like none of the data.",
    ),
    Method(
        "U",
        "lime",
        "LIME",
        "fine",
        True,
        LOGIT,
        "Weights of a linear model of the logit in which pieces are present.",
        "A linear model may fit badly; the error given is that of sampling alone.",
    ),
    Method(
        "U",
        "gradient_input",
        "Gradient × input",
        "fine",
        True,
        LOGIT,
        "The slope of the logit times the input.",
        "Right for linear models; elsewhere it looks at an infinitely small change.",
    ),
    Method(
        "U",
        "gradient",
        "Gradient",
        "fine",
        True,
        SLOPE,
        "The slope of the logit.",
        "What matters and what the logit would react to are two things.",
    ),
    Method(
        "U",
        "grad_cam",
        "Grad-CAM",
        "fine",
        False,
        "relative",
        "Where the last convolution's channels that speak for the class are active.",
        "As coarse as that layer; it shows no evidence against the class.",
    ),
    Method(
        "U",
        "guided_backprop",
        "Guided backpropagation",
        "fine",
        True,
        SLOPE,
        "The slope through positive paths only.",
        "It tends to show the input's edges whatever the model has learned.",
    ),
    Method(
        "C",
        "ablation",
        "Ablation of pairs",
        "fine",
        True,
        LOGIT,
        "What two pieces bring together beyond what each brings alone.",
        "Pieces that stand in for one another look like a negative interaction.",
    ),
    Method(
        "C",
        "second_order",
        "Second derivative",
        "fine",
        True,
        "logit per unit of both inputs, summed",
        "How the slope by one piece changes with the other.",
        "Zero in networks that are piecewise linear although they interact; then see the ablation.",
    ),
    Method(
        "C",
        "joint_shap",
        "Joint SHAP",
        "coarse",
        True,
        LOGIT,
        "Shapley interactions of pairs, by regression on inputs masked in both modalities.",
        "A sampling error, which is given; no interactions of three pieces.",
    ),
    Method(
        "C",
        "joint_lime",
        "Joint LIME",
        "coarse",
        True,
        LOGIT,
        "Weights of pairs in a model of the logit in which pieces are present in both modalities.",
        "A sampling error, which is given; the model may fit badly.",
    ),
    Method(
        "D",
        "dime_unimodal",
        "DIME, additive part",
        "coarse",
        True,
        LOGIT,
        "LIME on the part of the logit that is a sum over modalities.",
        "The part is relative to the explained clips, with which the clip's modalities are paired.",
    ),
    Method(
        "D",
        "dime_multimodal",
        "DIME, interaction",
        "coarse",
        True,
        LOGIT,
        "LIME on what is left of the logit, which needs the modalities together.",
        "The part is relative to the explained clips, with which the clip's modalities are paired.",
    ),
    Method(
        "R",
        "occlusion",
        "Occlusion of a unit",
        "fine",
        True,
        "activation",
        "How much the unit's activation falls when the piece is taken away.",
        "Pieces that stand in for one another each look unimportant.",
    ),
    Method(
        "R",
        "ablation",
        "Ablation of pairs of a unit",
        "coarse",
        True,
        "activation",
        "What two pieces bring together to the unit's activation.",
        "Pieces that stand in for one another look like a negative interaction.",
    ),
    Method(
        "P",
        "sparse",
        "Sparse classifier",
        None,
        True,
        LOGIT,
        "Each unit's part in the logit of a classifier that uses few of them.",
        "It is another classifier than the model's; see how often the two agree.",
    ),
)
