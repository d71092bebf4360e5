"""Re-learning: encoders that have overfitted, or learned little, go part of the way back to their start."""

import math
import warnings
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from amr.fusion.base import pool_tokens
from amr.model import FusionModel
from amr.regularizers.base import EpochState, Regularizer
from amr.regularizers.shared import EpochMeans, pieces
from amr.utils.distributed import gather_objects, rank_and_world
from amr.utils.names.ranges import Range


def purity(labels: Tensor, clusters: Tensor) -> float:
    """Fraction of the clips whose label is the most frequent of their cluster, in (0, 1].

    Args:
        labels: Class indices, (N,).
        clusters: Cluster indices, (N,).
    """
    counts = torch.zeros(int(clusters.max()) + 1, int(labels.max()) + 1)
    counts.index_put_((clusters.long(), labels.long()), torch.ones(len(labels)), accumulate=True)
    return float(counts.max(1).values.sum() / len(labels))


def separability(encodings: Tensor, labels: Tensor, classes: int) -> float:
    """Purity of a k-means clustering of the standardized encodings into as many clusters as there are classes.

    Args:
        encodings: Pooled encodings, (N, D).
        labels: Class indices, (N,).
        classes: Number of classes C. Fewer clips than classes are clusters of their own.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    spread, mean = torch.std_mean(encodings.double(), 0, correction=0)
    scaled = ((encodings.double() - mean) / torch.where(spread > 0, spread, 1.0)).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # clips that are equal make fewer clusters
        found = KMeans(min(classes, len(scaled)), n_init=10, random_state=0).fit_predict(scaled)
    return purity(labels, torch.from_numpy(found))


def return_weight(gap: float, strength: float = 3.0) -> float:
    """tanh(strength · gap): how far an encoder goes back to its initial weights, in [0, 1).

    Args:
        gap: |purity of the training clips − purity of the validation clips|, in [0, 1).
        strength: >= 0.
    """
    return math.tanh(strength * gap)


class Relearning(Regularizer):
    """Mixes each encoder's weights with its initial ones, the more its two purities differ (Wei et al. 2024).

    Before each of the given epochs, the training and the validation clips are encoded. Of each modality's encodings the
    purity of k-means clusters is taken on both, and with gap = |purity_train − purity_val| and
    w = tanh(strength · gap) each parameter of its encoder becomes w θ_initial + (1 − w) θ.

    Args:
        epochs: Numbers of completed epochs after which it acts, each >= 1.
        strength: Factor of the gap, >= 0; 0 leaves the encoders alone.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "relearning"
    title = "Re-learning"
    signal = "gap between the clusters' purity on train and validation, per encoder"
    ranges: ClassVar = {"strength": Range(0.5, 10, "log")}
    reads = frozenset({"on_epoch_end"})  # at an epoch's start it moves the encoders
    means: EpochMeans

    def __init__(self, epochs: Sequence[int] = (20, 40, 60), strength: float = 3.0) -> None:
        super().__init__()
        self.check("epochs", list(epochs), all(epoch >= 1 for epoch in epochs), "a list of integers >= 1")
        self.check("strength", strength, strength >= 0, "a finite number >= 0")
        self.epochs, self.strength = tuple(epochs), strength

    def setup(self, model: FusionModel) -> None:
        """Keeps each encoder's initial weights."""
        for name, encoder in model.encoders.items():
            self.register_buffer(f"initial_{name}", flat(encoder))
        self.means = EpochMeans(f"{what}/{name}" for name in model.modalities for what in ("gap", "return"))

    def on_epoch_start(self, state: EpochState) -> None:
        """Measures the gaps, and takes the encoders back."""
        if state.epoch not in self.epochs or self.strength == 0:
            return
        train, val = state.encodings("train"), state.encodings("val")
        gaps = None
        if rank_and_world()[0] == 0:  # the ranks must agree to the last bit
            gaps = {
                name: abs(
                    separability(pool_tokens(train.encodings[name]), train.labels, state.model.head.num_classes)
                    - separability(pool_tokens(val.encodings[name]), val.labels, state.model.head.num_classes)
                )
                for name in state.model.modalities
            }
        agreed = gather_objects(gaps)[0]
        assert agreed is not None
        numbers = []
        for name, encoder in state.model.encoders.items():
            weight = return_weight(agreed[name], self.strength)
            numbers += [agreed[name], weight]
            parameters = list(encoder.parameters())
            for parameter, start in pieces(parameters, self.get_buffer(f"initial_{name}")):
                parameter.lerp_(start.to(parameter), weight)
        self.means.update(torch.tensor(numbers))


def flat(encoder: nn.Module) -> Tensor:
    """An encoder's parameters as one vector, (P,), without graph."""
    parameters = list(encoder.parameters())
    return parameters_to_vector(parameters).detach().clone() if parameters else torch.zeros(0)
