"""Do no harm: what each modality knows alone, and a factor of AMR's strength that falls when the main loss rises.

A target can ask for more than a modality knows. The penalty then still gets its ratio, at the cost of the model. Here
two things are watched: what a linear classifier reads from each modality's encodings, and the main loss.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amr.attribution import undisturbed
from amr.fusion.base import pool_tokens
from amr.model.task import check_classes
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
LEAST = 0.125
"""A factor below this is 0."""
WAIT = 4
"""Epochs of AMR after which it waits until something has been learnt."""
LEARNT = 0.98
"""Something has been learnt if the loss is at most so much of log C, the loss of guessing."""
FLOOR = 0.25
"""The margin is of the reference or, if that is lower, of this part of log C, the loss of guessing."""


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
    outputs: Tensor = others @ weights + prior
    return outputs


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
    """Modalities from which a target asks for more than they know.

    For each, the share by evidence uses the upper end of its accuracy's interval, so that few clips do not cause an
    alarm.

    Args:
        target: Target share of each modality; they sum to 1.
        accuracies: Accuracy of each modality alone, in [0, 1].
        chance: Accuracy of guessing the most common class, in [0, 1).
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


def limit(reference: float, margin: float, guess: float) -> float:
    """The loss beyond which it is harm: L* + γ · max(L*, log(C) / 4).

    Args:
        reference: L*.
        margin: γ, > 0.
        guess: log C, the loss of guessing. A task that is solved has a loss near 0, of which jitter is a large part:
            hence its quarter.
    """
    return reference + margin * max(reference, FLOOR * guess)


def lowered(factor: float, loss: float, most: float) -> float:
    """The next factor: half or, where the loss is more than twice its limit, that ratio's part; 0 if below `LEAST`."""
    found = factor * min(0.5, most / loss if math.isfinite(loss) else 0.0)
    return found if found >= LEAST else 0.0


def undone(before: float, after: float, margin: float, guess: float) -> bool:
    """Whether a step of AMR is taken back: the batch's main loss rose beyond the margin, or is beyond guessing's.

    Args:
        before: Mean cross-entropy of the batch before the step; NaN of no clips, which undo nothing.
        after: The same after it.
        margin: γ, > 0.
        guess: log C.
    """
    if math.isnan(before):
        return False
    return not after <= min(limit(before, margin, guess), (1 + margin) * guess)


class Trend:
    """Epoch means of a loss: the lowest, and the last two.

    Attributes:
        best: The lowest so far, without the last; infinite if there is none.
        before: The last but one; infinite if there is none.
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

    def reached(self, level: float) -> bool:
        """Whether some epoch's mean was at most so high, or none is known."""
        return self.last is None or min(self.best, self.last) <= level

    def above(self, margin: float, guess: float, probe: float = math.inf) -> bool:
        """Whether the last is beyond the limit of those before, of guessing, and of a probe's loss."""
        return self.last is not None and not self.last <= self.limit(margin, guess, probe)

    def limit(self, margin: float, guess: float, probe: float = math.inf) -> float:
        """The limit for the last."""
        return limit(min(self.best, guess, probe), margin, guess)

    def falls(self, margin: float, guess: float) -> bool:
        """Whether the last is on its way down: by more than the margin below the one before, or below guessing."""
        before = self.before if math.isfinite(self.before) else guess
        return self.last is not None and self.last * (1 + margin) < before


class DoNoHarm:
    """Watches a training for AMR, warns, and says by which factor AMR is to be weakened.

    **Evidence.** After 1, 2, 4, 8, ... epochs of AMR, a ridge classifier is fitted to each modality's encodings of
    training clips and tested on validation clips; without these, it is fitted to every other training clip and tested
    on the rest. Two measurements in a row in which the target asks for more than a modality knows (`overasked`) make a
    warning, once.

    **Step.** A step of AMR's own optimizer is taken back if it raises the mean cross-entropy of its batch, on the
    encodings that it was made from, by more than γ · max(L, log(C) / 4), or leaves it above (1 + γ) log C (`undone`). A
    few steps can spoil a head for good, which no later factor mends.

    **Rule.** L_t is the mean main loss of epoch t on validation or, where there is none, in training. The reference
    L*_t is the lowest of the epochs before, of log C (guessing), and of the loss of a ridge classifier of all encodings
    when evidence was last measured: a model that never got good has no good epoch to be compared with. It is harm if
    L_t is beyond its `limit` and has not fallen by a part γ since the epoch before, and AMR is to blame: the target
    asks for more than a modality knows, or the mean main loss in training is beyond its own limit, too. A validation
    loss that rises by itself is overfitting. Where evidence cannot be measured, the rise alone decides. The factor is
    then `lowered`, in the end to 0. It never rises.

    **Wait.** After `WAIT` epochs AMR does not act until some L_t has been at most 0.98 log C. A model that has
    not begun to learn shows no harm by a rise, and AMR may be what keeps it from it: where only the modalities together
    tell the class, balance is all that the first epochs find.

    Everything is equal on all ranks, and in `state`.

    Args:
        guard: Whether the factor may fall; evidence is measured all the same.
        margin: γ, > 0.

    Attributes:
        factor: Factor of AMR's rate or weight, in [0, 1], where it does not wait.
        waiting: Whether AMR waits for a loss below guessing's.
        accuracies: Accuracy of each modality alone, when it was last measured; empty before.
    """

    def __init__(self, guard: bool, margin: float) -> None:
        self.guard, self.margin = guard, margin
        self.factor, self.waiting = 1.0, False
        self.accuracies: dict[str, float] = {}
        self._asked = 0  # measurements in a row in which the target asked for too much
        self._warned = False
        self._probe = math.inf  # loss of a classifier of all encodings
        self._blind = False  # evidence cannot be measured
        self._train, self._val = Trend(), Trend()
        self._sum, self._count = 0.0, 0  # of this epoch's main losses, over clips and ranks
        self._steps, self._undone = 0, 0  # of this epoch; after it they stay for the report

    @property
    def allowed(self) -> float:
        """Factor of AMR's rate or weight, in [0, 1]: `factor`, or 0 while it waits."""
        return 0.0 if self.waiting else self.factor

    def observe(self, steps: Sequence[Step]) -> None:
        """Adds the main loss of a step's micro-batches, over all ranks, to the epoch's mean."""
        if not self.guard or not self.factor or not steps:
            return
        each = torch.stack([torch.stack([step.loss.detach().float(), step.loss.new_ones(())]) for step in steps])
        clips = torch.tensor([[float(len(step.label))] for step in steps], device=each.device)
        total, count = all_reduce_sum((each * clips).sum(0)).tolist()
        self._sum, self._count = self._sum + total, self._count + round(count)

    @contextmanager
    def stepping(self, steps: Sequence[Step], parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Around a step of AMR's own optimizer: takes the parameters back if it was harm to its batch.

        Args:
            steps: The step's micro-batches; their clips that have every modality are looked at.
            parameters: The head's, that the step moves.
        """
        if not self.guard:
            yield
            return
        kept, before = [parameter.detach().clone() for parameter in parameters], _batch_loss(steps)
        yield
        self._steps += 1
        guess = math.log(steps[0].model.head.num_classes)
        if undone(before, _batch_loss(steps), self.margin, guess):
            self._undone += 1
            with torch.no_grad():
                for parameter, value in zip(parameters, kept, strict=True):
                    parameter.copy_(value)

    def begin(self) -> None:
        """Starts an epoch's count of steps."""
        self._steps, self._undone = 0, 0

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
        guess = math.log(state.model.head.num_classes)
        if acting or self.waiting:
            self._wait(trend, epochs, guess)
        if acting and trend.above(self.margin, guess, self._probe) and not trend.falls(self.margin, guess):
            blamed = self._asked > 0 or not self.accuracies or self._train.above(self.margin, guess)
            if blamed and trend.last is not None:
                self.factor = lowered(self.factor, trend.last, trend.limit(self.margin, guess, self._probe))

    def _wait(self, trend: Trend, epochs: int, guess: float) -> None:
        """Whether AMR waits, after so many epochs of it; one line says so when it first does."""
        before, most = self.waiting, LEARNT * guess
        self.waiting = epochs >= WAIT and not trend.reached(most)
        if self.waiting and not before and rank_and_world()[0] == 0:
            note(f"amr: waits: after {epochs} epochs the loss was never below {most:.3g}, and guessing has {guess:.3g}")

    def report(self) -> dict[str, float]:
        """`evidence/<m>`, accuracy alone; `guard`, the factor now; `undone`, the part of steps taken back."""
        found = {f"evidence/{m}": accuracy for m, accuracy in self.accuracies.items()}
        if self.guard:
            found["guard"] = self.allowed
        return found | ({"undone": self._undone / self._steps} if self._steps else {})

    def state(self) -> dict[str, Any]:
        """Everything, in plain types."""
        own = {key: value for key, value in vars(self).items() if key not in ("guard", "margin", "_train", "_val")}
        return {**own, "_train": vars(self._train).copy(), "_val": vars(self._val).copy()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` gave; without a guard now, not how far it had gone."""
        for key, value in state.items():
            if key in ("factor", "waiting") and not self.guard:
                continue
            if key in ("_train", "_val"):
                vars(getattr(self, key)).update(value)
            else:
                setattr(self, key, value)

    def _measure(self, state: EpochState, target: Mapping[str, float]) -> None:
        """Evidence of each modality, and perhaps the warning."""
        try:
            check_classes(state.model, "evidence")
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


def _batch_loss(steps: Sequence[Step]) -> float:
    """Mean cross-entropy of the clips of a step, over all ranks, by the head as it is in evaluation; NaN of none."""
    model, (first, *_) = steps[0].model, steps
    total = torch.zeros(2, device=first.label.device)
    with undisturbed(model), torch.no_grad():
        for encodings, label in (step.complete() for step in steps):
            if len(label):
                loss = F.cross_entropy(model.head(encodings).float(), label, reduction="sum")
                total += torch.stack([loss, torch.ones_like(loss) * len(label)])
    loss_sum, count = all_reduce_sum(total).tolist()
    return loss_sum / count if count else math.nan


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
