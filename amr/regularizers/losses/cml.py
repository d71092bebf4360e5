"""CML: the prediction may not become more confident when a modality is taken away."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from amr.attribution import at_least_float32
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.shared import Window, global_means, recombined
from amr.utils.names.ranges import Range

Hinge = Literal["clip", "batch"]


def confidence_gains(more: Tensor, fewer: Tensor) -> Tensor:
    """How much confidence rises when a modality is taken away, (B,): max_c p_fewer[c] − max_c p_more[c].

    Args:
        more: Logits of the larger set of modalities, (B, C).
        fewer: Logits of the smaller set, (B, C).
    """
    more_sure, less_sure = (at_least_float32(logits).softmax(1).amax(1) for logits in (more, fewer))
    return less_sure - more_sure


def removals(modalities: tuple[str, ...], generator: torch.Generator) -> list[str]:
    """All modalities but one, in a random order: those that are taken away one after the other."""
    order = torch.randperm(len(modalities), generator=generator)
    return [modalities[i] for i in order[:-1].tolist()]


class CML(Regularizer):
    """Calibrating multimodal learning (Ma et al. 2023).

    In each step the modalities are taken away in a random order until one is left: S_0 is the set of all, S_k lacks k
    of them, and their encodings are zeros. Added are w Σ_k CE(S_k) + λ Σ_k mean_i max(0, conf_i(S_k) − conf_i(S_{k−1}))
    for k = 1 to M − 1, where conf is the largest probability. The order is equal on all ranks.

    A clip counts in the terms of S_k if it has the modality that is taken away and one of those that stay.

    Args:
        weight: λ, >= 0.
        part_weight: w, >= 0.
        hinge: `clip`: the rise of each clip's confidence counts separately; `batch`: falls make up for rises within the
            batch, as in BalanceBenchmark's code.
        start_epoch: First epoch in which it acts; before, it is naive fusion.
        end_epoch: First epoch in which it no longer acts; None if it acts until the end.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "cml"
    title = "CML"
    signal = "confidence with and without each modality"
    ranges: ClassVar = {"weight": Range(0.1, 10, "log")}
    min_modalities = 2
    # The full prediction's confidence would reach the encoders, past the cut.
    conflicts = frozenset({"dgl"})

    def __init__(
        self,
        weight: float = 1.0,
        part_weight: float = 1.0,
        hinge: Hinge = "clip",
        start_epoch: int = 0,
        end_epoch: int | None = None,
    ) -> None:
        super().__init__()
        for key, value in (("weight", weight), ("part_weight", part_weight)):
            self.check(key, value, value >= 0, "a finite number >= 0")
        self.check_choice("hinge", hinge, Hinge)
        self.weight, self.part_weight = weight, part_weight
        self.hinge: Hinge = hinge
        self.window = Window(self.name, start_epoch, end_epoch)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """`parts`, the cross-entropies of fewer modalities, and `confidence`."""
        if step.epoch not in self.window or not (self.weight or self.part_weight):
            return {}
        names = step.model.modalities
        has = dict(zip(names, step.has(names), strict=True))
        picks: dict[str, Tensor | None] = {}
        logits = recombined(step.model, step.encodings, {})
        parts, gains, counted = [], [], []
        for name in removals(names, torch.Generator().manual_seed(step.seed)):
            picks[name] = None
            fewer = recombined(step.model, step.encodings, picks)
            parts.append(step.cross_entropy(at_least_float32(fewer), reduction="none"))
            gains.append(confidence_gains(logits, fewer))
            counted.append(has[name] & torch.stack([has[m] for m in names if m not in picks]).any(0))
            logits = fewer
        kept, rise = torch.stack(counted), torch.stack(gains)
        entropies, _, _ = global_means(torch.stack(parts), kept)
        if self.hinge == "clip":
            rises, _, _ = global_means(rise.relu(), kept)
        else:
            means, sums, _ = global_means(rise, kept)
            rises = torch.where(sums > 0, means, 0.0)
        return {"parts": self.part_weight * entropies.sum(), "confidence": self.weight * rises.sum()}
