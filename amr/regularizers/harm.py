"""Do no harm: what each modality knows alone, and a factor of AMR's strength that falls when the main loss rises.

A target can ask for more than a modality knows. The penalty then still gets its ratio, at the cost of the model. Here
two things are watched: what a linear classifier reads from each modality's encodings, and the main loss.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from amr.fusion.base import pool_tokens
from amr.regularizers.base import EpochState, Step
from amr.utils.distributed import all_reduce_sum, gather_objects, rank_and_world
from amr.utils.errors import UserError
from amr.utils.streams import note

CLIPS = 5000
"""Clips of a split from which evidence is measured, at most."""
RIDGE = 0.1
"""Ridge of the probe, for features of variance 1."""
TOO_MUCH = 2.0
"""A target asks for more than a modality knows if it is above so many times the share by evidence."""
HALVINGS = 3
"""After so many halvings, the next step is to stop."""
FLOOR = 0.25
"""The margin is of the reference or, if that is lower, of this fraction of log C, the loss of guessing."""


def ridge_outputs(train: Tensor, train_labels: Tensor, test: Tensor, classes: int) -> Tensor:
    """Outputs of a linear classifier of frozen encodings: ridge regression on the classes, one-hot.

    Features are standardised by the training clips; W = (XᵀX/N + 0.1 I)⁻¹ XᵀY/N with centred Y.

    Args:
        train: Encodings that it is fitted to, (N', D).
        train_labels: Class indices, (N',).
        test: Encodings of the clips to classify, (N, D).
        classes: C.

    Returns:
        (N, C) float64, on the CPU; the class with the highest output is the answer.
    """
    features, others = train.double().cpu(), test.double().cpu()
    answers = F.one_hot(train_labels.cpu(), classes).double()
    mean, scale = features.mean(0), features.std(0, correction=0).clamp_min(1e-12)
    features, others = (features - mean) / scale, (others - mean) / scale
    prior = answers.mean(0)
    gram = features.T @ features / len(features) + RIDGE * torch.eye(features.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, features.T @ (answers - prior) / len(features))
    return others @ weights + prior


def tempered_loss(outputs: Tensor, labels: Tensor) -> float:
    """Lowest mean cross-entropy of softmax(β · outputs) over β = 2^(k/4), k = −8 to 32.

    Args:
        outputs: (N, C).
        labels: Class indices, (N,).
    """
    sharpness = 2 ** (torch.arange(-8, 33, dtype=torch.float64) / 4)
    return min(float(F.cross_entropy(outputs * each, labels)) for each in sharpness)


def evidence(accuracy: float, chance: float) -> float:
    """How much of what guessing leaves is known, in [0, 1]: max(0, (accuracy − chance) / (1 − chance))."""
    return max(0.0, (accuracy - chance) / (1 - chance))


def upper_bound(accuracy: float, clips: int) -> float:
    """Upper end of an accuracy's 95 % interval (Wilson 1927), of that many clips."""
    square = 1.96**2 / clips
    spread = math.sqrt(accuracy * (1 - accuracy) * square + square**2 / 4)
    return (accuracy + square / 2 + spread) / (1 + square)


def overasked(target: Mapping[str, float], accuracies: Mapping[str, float], chance: float, clips: int) -> list[str]:
    """The modalities of which a target asks for more than they know.

    Of each, the share by evidence is taken with the upper end of its accuracy's interval: where few clips are there to
    tell, nothing is said.

    Args:
        target: Target share of each modality; they sum to 1.
        accuracies: Accuracy of each modality alone, in [0, 1].
        chance: Accuracy of guessing the commonest class, in [0, 1).
        clips: How many clips the accuracies are of.
    """
    known = {m: evidence(accuracy, chance) for m, accuracy in accuracies.items()}
    found = []
    for m, accuracy in accuracies.items():
        most = evidence(upper_bound(accuracy, clips), chance)
        others = sum(known.values()) - known[m]
        if others > 0 and target[m] > TOO_MUCH * most / (most + others):
            found.append(m)
    return found


def above(loss: float, best: float, margin: float, classes: int) -> bool:
    """Whether a mean loss is beyond the margin: L > L* + γ · max(L*, log(C) / 4); one that is not finite always is.

    Args:
        loss: L, of this epoch.
        best: L*, the lowest of the epochs before; infinite if there is none.
        margin: γ, > 0.
        classes: C. A task that is solved has a loss near 0, of which jitter is a large part: hence log(C) / 4.
    """
    return not loss <= best + margin * max(best, FLOOR * math.log(classes))


def lowered(factor: float) -> float:
    """The next factor: half, or 0 once it has been halved `HALVINGS` times."""
    return factor / 2 if factor > 0.5**HALVINGS else 0.0


class Trend:
    """Epoch means of a loss: the lowest, and the last two.

    Attributes:
        best: The lowest so far, without the last.
        before: The last but one.
        last: The last; None before the first.
    """

    def __init__(self) -> None:
        self.best, self.before = math.inf, math.inf
        self.last: float | None = None

    def add(self, loss: float) -> None:
        """Takes an epoch's mean."""
        if self.last is not None:
            self.before = self.last
            self.best = min(self.best, self.last) if math.isfinite(self.last) else self.best
        self.last = loss

    def above(self, margin: float, classes: int, probe: float = math.inf) -> bool:
        """Whether the last is beyond the margin of those before, or of a probe's loss."""
        return self.last is not None and above(self.last, min(self.best, probe), margin, classes)

    def falls(self, margin: float) -> bool:
        """Whether the last is on its way down: by more than the margin below the one before."""
        return self.last is not None and self.last * (1 + margin) < self.before


class DoNoHarm:
    """Watches a training for AMR, warns, and says by which factor AMR is to be weakened.

    **Evidence.** After 1, 2, 4, 8, ... epochs of AMR, a ridge classifier is fitted to each modality's encodings of
    training clips and tested on validation clips; without these, it is fitted to every other training clip and tested
    on the rest. Two measurements in a row in which the target asks for more than a modality knows (`overasked`) make a
    warning, once.

    **Rule.** L_t is the mean main loss of epoch t on validation or, where there is none, in training. The reference
    L*_t is the lowest of the epochs before or, if that is lower, the loss of a ridge classifier of all encodings when
    evidence was last measured: a model that never got good has no good epoch to be compared with. The factor is halved,
    and after three halvings becomes 0, when L_t is `above` the margin γ, has not fallen by a part γ since the epoch
    before, and AMR is to blame: the target asks for more than a modality knows, or the mean main loss in training is
    above its own lowest by the margin, too. A validation loss that rises by itself is overfitting. Where evidence
    cannot be measured, the rise alone decides. The factor never rises.

    Everything is equal on all ranks, and in `state`.

    Args:
        guard: Whether the factor may fall; evidence is measured all the same.
        margin: γ, > 0.

    Attributes:
        factor: Of AMR's rate or weight, in [0, 1].
        accuracies: Accuracy of each modality alone, when it was last measured; empty before.
    """

    def __init__(self, guard: bool, margin: float) -> None:
        self.guard, self.margin = guard, margin
        self.factor = 1.0
        self.accuracies: dict[str, float] = {}
        self._asked = 0  # measurements in a row in which the target asked for too much
        self._warned = False
        self._probe = math.inf  # loss of a classifier of all encodings
        self._blind = False  # evidence cannot be measured
        self._train, self._val = Trend(), Trend()
        self._sum, self._count = 0.0, 0  # of this epoch's main losses, over clips and ranks

    def observe(self, steps: Sequence[Step]) -> None:
        """Adds the main loss of a step's micro-batches, over all ranks, to the epoch's mean."""
        if not self.guard or not self.factor or not steps:
            return
        each = torch.stack([torch.stack([step.loss.detach().float(), step.loss.new_ones(())]) for step in steps])
        clips = torch.tensor([[float(len(step.label))] for step in steps], device=each.device)
        total, count = all_reduce_sum((each * clips).sum(0)).tolist()
        self._sum, self._count = self._sum + total, self._count + round(count)

    def judge(self, state: EpochState, target: Callable[[], Mapping[str, float]], epochs: int, acting: bool) -> None:
        """Ends an epoch: measures, warns and lowers the factor.

        Args:
            state: The epoch's.
            target: Gives the target share of each modality; they sum to 1.
            epochs: How many epochs AMR's have been, with this one.
            acting: Whether AMR acted in it.
        """
        if acting and not self._blind and epochs & (epochs - 1) == 0:
            self._measure(state, target())
        if not self.guard or not self.factor:
            return
        if self._count:
            self._train.add(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        trend = self._train
        if "val/loss" in state or self._val.last is not None:  # once validated, training's loss decides no more
            trend, loss = self._val, gather_objects(float(state.get("val/loss", math.nan)))[0]
            if "val/loss" not in state or loss == trend.last:  # no validation in this epoch
                return
            trend.add(loss)
        classes = state.model.head.num_classes
        if acting and trend.above(self.margin, classes, self._probe) and not trend.falls(self.margin):
            blamed = self._asked > 0 or not self.accuracies or self._train.above(self.margin, classes)
            self.factor = lowered(self.factor) if blamed else self.factor

    def report(self) -> dict[str, float]:
        """`evidence/<m>`, the accuracy of each modality alone, and `guard`, the factor."""
        found = {f"evidence/{m}": accuracy for m, accuracy in self.accuracies.items()}
        return found | ({"guard": self.factor} if self.guard else {})

    def state(self) -> dict[str, Any]:
        """Everything, in plain types."""
        own = {key: value for key, value in vars(self).items() if key not in ("guard", "margin", "_train", "_val")}
        return {**own, "_train": vars(self._train).copy(), "_val": vars(self._val).copy()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` gave."""
        for key, value in state.items():
            if key in ("_train", "_val"):
                vars(getattr(self, key)).update(value)
            else:
                setattr(self, key, value)

    def _measure(self, state: EpochState, target: Mapping[str, float]) -> None:
        """Evidence of each modality, and perhaps the warning."""
        try:
            train = state.encodings("train", CLIPS)
            try:
                test, split = state.encodings("val", CLIPS), "validation"
            except UserError:
                halves = [train.part(range(first, len(train.ids), 2)) for first in (0, 1)]
                (train, test), split = halves, "training"
        except UserError as error:
            self._blind = True
            if rank_and_world()[0] == 0:
                note(f"amr: what each modality knows alone is not measured: {error}")
            return
        counts = torch.bincount(test.labels)
        chance, clips = float(counts.max()) / max(len(test.labels), 1), len(test.labels)
        if chance == 1 or len(train.labels) == 0:
            return
        classes, pairs = state.model.head.num_classes, dict[str, tuple[Tensor, Tensor]]()
        for m, encoding in train.encodings.items():
            pairs[m] = pool_tokens(encoding), pool_tokens(test.encodings[m])
        outputs = {m: ridge_outputs(fitted, train.labels, tried, classes) for m, (fitted, tried) in pairs.items()}
        own = {m: float((output.argmax(1) == test.labels).double().mean()) for m, output in outputs.items()}
        whole = [torch.cat(parts, dim=1) for parts in zip(*pairs.values(), strict=True)]
        loss = tempered_loss(ridge_outputs(whole[0], train.labels, whole[1], classes), test.labels)
        self.accuracies, loss = gather_objects((own, loss))[0]  # machines may round differently
        self._probe = loss if test.lacking == 0 else math.inf  # the main loss is of all clips
        over = overasked(target, self.accuracies, chance, clips)
        self._asked = self._asked + 1 if over else 0
        if self._asked >= 2 and not self._warned:
            self._warned = True
            if rank_and_world()[0] == 0:
                said = warning(over, target, self.accuracies, chance, f"{clips} {split} clips", self.guard)
                warnings.warn(said, stacklevel=2)


def warning(
    over: Sequence[str],
    target: Mapping[str, float],
    accuracies: Mapping[str, float],
    chance: float,
    clips: str,
    guard: bool,
) -> str:
    """One line: what was measured, the target, the ratio by evidence, and what to set."""
    known = {m: evidence(accuracy, chance) for m, accuracy in accuracies.items()}
    least = 0.01 * sum(known.values())  # a ratio's numbers are positive
    whole = sum(max(value, least) for value in known.values())
    fair = {m: max(value, least) / whole for m, value in known.items()}
    right, asked, wise = (
        ", ".join(f"{m}{between}{value:{form}}" for m, value in values.items())
        for values, between, form in ((accuracies, " ", ".1%"), (target, " ", ".2f"), (fair, ": ", ".2f"))
    )
    does = "the guard lowers AMR's rate where the main loss rises" if guard else "or set model.amr.guard=true"
    return (
        f"model.amr.ratio: asks for more than {' and '.join(over)} can tell: right alone in {right} of {clips} "
        f"(chance {chance:.1%}), target {asked}; a ratio by evidence is model.amr.ratio={{{wise}}}: set that, "
        f"{does}"
    )
