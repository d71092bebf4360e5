"""SMV: clips are repeated with the modality that contributes too little to their prediction."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from amr.attribution import shapley_values
from amr.datamodules.selected import Copies
from amr.fusion.base import only
from amr.model.passes import Scores, Seen, presence
from amr.regularizers.base import Regularizer
from amr.regularizers.shared import Window
from amr.utils.names.ranges import Range

Level = Literal["sample", "modality"]


def contributions(right: Tensor, present: Tensor) -> Tensor:
    """Contribution φ_m of each modality to each clip: the Shapley value of v(S) = |S| if S predicts it right, else 0.

    Of a clip that lacks modalities, S counts those that it has; what it lacks contributes 0. The contributions of a
    clip sum to the number of its modalities where all of them together are right, and to 0 where not. Two modalities:
    φ_a = ½ (v(a) + v(a, b) − v(b)), in {−½, 0, ½, 1, 1½}.

    Args:
        right: Boolean (2^M, N): whether the clip is predicted right from the modalities whose bit is set in the index.
        present: Boolean (N, M): which modalities each clip has.

    Returns:
        (N, M), float64.
    """
    coalitions = torch.arange(len(right), device=right.device)
    bits = (coalitions[:, None] >> torch.arange(present.shape[1], device=right.device)) & 1
    return shapley_values(right * (bits.double() @ present.double().T))


def repeats(contribution: Tensor, present: Tensor) -> Tensor:
    """How often each clip is repeated with each modality alone: 2 (1 − φ_m), rounded, where φ_m < 1.

    That is once where φ_m = ½, twice where it is 0, three times where it is −½.

    Args:
        contribution: φ, (N, M).
        present: Boolean (N, M); a modality that the clip lacks repeats nothing.

    Returns:
        (N, M) int64.
    """
    return (2 * (1 - contribution)).clamp_min(0).add(0.5).floor().long() * present


def weakest(contribution: Tensor, present: Tensor) -> tuple[int, float]:
    """The modality that contributes least on average, and how far it lies below the others' mean.

    Args:
        contribution: φ, (N, M).
        present: Boolean (N, M); a mean is over the clips that have the modality, 0 if none has.

    Returns:
        Its index, and the mean of the others' mean contributions less its own, >= 0.
    """
    means = (contribution * present).sum(0) / present.sum(0).clamp_min(1)
    least = int(means.argmin())
    others = (means.sum() - means[least]) / (len(means) - 1)
    return least, max(0.0, float(others - means[least]))


class SMV(Regularizer):
    """Repeats a clip with one modality alone if that modality contributes too little (Wei et al. 2024).

    Each epoch a pass over the training clips predicts each from every set of modalities, the others' encodings zeroed
    before the fused head. Sample level: next to every clip once stand `repeats` copies of it by each modality. Modality
    level: `weakest`, measured on a random part of the clips, is trained alone on further clips, N · rate · gap of
    them, drawn at random. In a copy the other modalities count as missing.

    Args:
        level: `sample` or `modality`.
        rate: Factor of the gap, >= 0; of the modality level only.
        fraction: Part of the clips that the modality level evaluates, in (0, 1].
        start_epoch: First epoch in which it acts; before, it is naive fusion.
        end_epoch: First epoch in which it no longer acts; None if it acts until the end.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "smv"
    title = "SMV"
    signal = "Shapley value of each modality for a right prediction, per training clip"
    ranges: ClassVar = {"start_epoch": Range(0.05, 0.6, "epochs")}
    min_modalities = 2

    def __init__(
        self,
        level: Level = "sample",
        rate: float = 2 / 3,
        fraction: float = 0.2,
        start_epoch: int = 5,
        end_epoch: int | None = None,
    ) -> None:
        super().__init__()
        self.check_choice("level", level, Level)
        self.check("rate", rate, rate >= 0, "a finite number >= 0")
        self.check("fraction", fraction, 0 < fraction <= 1, "a number in (0, 1]")
        self.level, self.rate, self.fraction = level, rate, fraction
        self.window = Window(self.name, start_epoch, end_epoch)
        self._report: dict[str, float] = {}

    def select(self, epoch: int, scores: Scores) -> Copies | None:
        """Every clip once, and the copies."""
        self._report = {}
        if epoch not in self.window:
            return None
        count, names = len(scores), scores.modalities
        if self.level == "sample":
            values = scores.each(_right)
            phi = contributions(values["right"].T, values["present"])
            times = repeats(phi, values["present"])
            again = [torch.repeat_interleave(torch.arange(count), times[:, m]) for m in range(len(names))]
        else:
            part = torch.randperm(count, generator=scores.generator)[: max(1, round(count * self.fraction))]
            values = scores.each(_right, part.sort().values)
            phi = contributions(values["right"].T, values["present"])
            least, gap = weakest(phi, values["present"])
            number = min(count, round(count * self.rate * gap))
            drawn = torch.randperm(count, generator=scores.generator)[:number]
            again = [drawn if m == least else drawn[:0] for m in range(len(names))]
        means = (phi * values["present"]).sum(0) / values["present"].sum(0).clamp_min(1)
        for m, name in enumerate(names):
            self._report |= {f"contribution/{name}": float(means[m]), f"repeated/{name}": float(len(again[m]))}
        clips = torch.cat([torch.arange(count), *again])
        owner = torch.cat([torch.full((count,), -1), *(torch.full_like(a, m) for m, a in enumerate(again))])
        return Copies(clips, {name: (owner < 0) | (owner == m) for m, name in enumerate(names)})

    def report(self) -> dict[str, float]:
        """Mean contribution of each modality, and the number of copies by it alone."""
        return dict(self._report)


def _right(seen: Seen) -> dict[str, Tensor]:
    """Whether each clip is right with each set of modalities, (B, 2^M)."""
    names = seen.model.modalities
    sets = [[name for m, name in enumerate(names) if index >> m & 1] for index in range(1 << len(names))]
    logits = torch.stack([seen.model.head(only(seen.encodings, chosen)) for chosen in sets], 1)
    return {"right": logits.argmax(2) == seen.label[:, None], "present": presence(seen)}
