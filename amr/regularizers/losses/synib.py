"""SynIB: if one modality's evidence is corrupted, the prediction should be uniform."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from amr.attribution import at_least_float32
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.shared import Window, global_means
from amr.utils.names.ranges import Range


def spoilt(encoding: Tensor, least: float, most: float, generator: torch.Generator) -> Tensor:
    """Encodings of which features are those of another clip, (B, ..., D).

    Each clip has one other clip, and a share of features to replace, drawn evenly from [least, most]; each feature of
    each token is replaced with that probability.

    Args:
        encoding: (B, ..., D), B >= 2.
        least: Smallest share, in [0, 1].
        most: Largest share, in [least, 1].
        generator: Source of the draws, on the encoding's device.
    """
    rows, device = len(encoding), encoding.device
    order = torch.randperm(rows, generator=generator, device=device)
    other = torch.empty_like(order).scatter_(0, order, order.roll(1))  # no clip is its own other
    share = least + (most - least) * torch.rand([rows, *[1] * (encoding.ndim - 1)], generator=generator, device=device)
    replaced = torch.rand(encoding.shape, generator=generator, device=device) < share
    return torch.where(replaced, encoding[other], encoding)


def surplus(logits: Tensor) -> Tensor:
    """KL(p ‖ uniform) = log C − H(p), nats, (B,), of logits (B, C)."""
    logs = logits.log_softmax(1)
    return math.log(logits.shape[1]) + (logs.exp() * logs).sum(1)


class SynIB(Regularizer):
    """Synergy by an information bottleneck (SynIB 2026): CE + l Σ_m KL(p(e with e^m corrupted) ‖ uniform).

    `spoilt` replaces random features of one modality's encodings by those of other clips. A prediction that is still
    certain then rests on the other modalities alone, and is punished. It is meant for tasks whose answer needs all
    modalities together; elsewhere it unlearns what one of them says. Clips that lack a modality are left out; other
    clips are of the same rank and micro-batch.

    Args:
        weight: l, >= 0; 0 switches the method off.
        least: Smallest share of features that is replaced, in [0, 1].
        most: Largest share, in [least, 1].
        start_epoch: First epoch in which it acts; before, it is naive fusion.
        end_epoch: First epoch in which it no longer acts; None if it acts until the end.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "synib"
    title = "SynIB"
    signal = "certainty of the prediction when one modality is corrupted"
    ranges: ClassVar = {"weight": Range(0.01, 1, "log")}
    min_modalities = 2

    def __init__(
        self,
        weight: float = 0.1,
        least: float = 0.2,
        most: float = 0.9,
        start_epoch: int = 0,
        end_epoch: int | None = None,
    ) -> None:
        super().__init__()
        self.check("weight", weight, weight >= 0, "a finite number >= 0")
        self.check("least", least, 0 <= least <= 1, "a value in [0, 1]")
        self.check("most", most, least <= most <= 1, f"a value in [{least}, 1], from least on")
        self.weight, self.least, self.most = weight, least, most
        self.window = Window(self.name, start_epoch, end_epoch)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """One term per corrupted modality: the mean over the clips of all ranks that have every modality."""
        if self.weight == 0 or step.epoch not in self.window:
            return {}
        names = step.model.modalities
        complete = step.has(names).all(0)
        encodings = {name: encoding[complete] for name, encoding in step.encodings.items()}
        if int(complete.sum()) < 2:  # every rank takes part in the means
            encodings = {name: encoding[:0] for name, encoding in encodings.items()}
        each = torch.stack(
            [surplus(at_least_float32(logits)) for logits in self._spoilt_logits(step, encodings).values()]
        )
        terms, _, _ = global_means(each, torch.ones_like(each, dtype=torch.bool))
        return {name: self.weight * term for name, term in zip(names, terms.unbind(), strict=True)}

    def _spoilt_logits(self, step: Step, encodings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits with each modality corrupted in turn, (N, C)."""
        generator = torch.Generator(step.label.device).manual_seed(step.seed)
        logits = {}
        for name in step.model.modalities:
            changed = spoilt(encodings[name], self.least, self.most, generator)
            logits[name] = step.model.head({**encodings, name: changed})
        return logits
