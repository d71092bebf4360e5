"""Modality dropout: drops whole encodings, per clip, but never all of a clip."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from amr.model import FusionModel, complete_masks
from amr.regularizers.base import Regularizer
from amr.utils.distributed import mean_over_ranks
from amr.utils.names.ranges import Range

Fill = Literal["zero", "mean"]


def draw_kept(present: Tensor, p: float) -> Tensor:
    """Draws the modalities that each clip keeps: each is dropped with probability p, but never all of a clip.

    A clip that would lose everything keeps one of its modalities, each equally likely. A modality of a clip with k of
    them is therefore kept with probability 1 - p + pᵏ/k.

    Args:
        present: Boolean (B, M): what each clip has.
        p: Probability of a drop, in [0, 1).

    Returns:
        Boolean (B, M), a subset of `present`; random numbers are torch's global ones.
    """
    kept = present & (torch.rand(present.shape, device=present.device) >= p)
    lottery = torch.rand(present.shape, device=present.device).masked_fill(~present, -1.0)
    spared = torch.zeros_like(kept).scatter_(1, lottery.argmax(1, keepdim=True), True) & present
    return torch.where(kept.any(1, keepdim=True), kept, spared)


class ModalityDropout(Regularizer):
    """Drops modalities at random, per clip (Neverova et al. 2016, ModDrop).

    Expectation is kept: with `zero`, what survives is divided by its probability of surviving, as in ordinary dropout;
    with `mean`, the dropped encoding is replaced by its running mean, and nothing is scaled.

    Args:
        p: Probability of dropping a modality, in [0, 1).
        fill: Replacement of a dropped encoding.
        momentum: Weight of a new batch in the running mean, in (0, 1].

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "modality_dropout"
    title = "Modality dropout"
    signal = "nothing"
    ranges: ClassVar = {"p": Range(0.1, 0.5)}
    several_labels = True
    order = 10
    min_modalities = 2

    def __init__(self, p: float = 0.3, fill: Fill = "zero", momentum: float = 0.1) -> None:
        super().__init__()
        self.check("p", p, 0 <= p < 1, "a value in [0, 1)")
        self.check_choice("fill", fill, Fill)
        self.check("momentum", momentum, 0 < momentum <= 1, "a value in (0, 1]")
        self.p, self.fill, self.momentum = p, fill, momentum

    def setup(self, model: FusionModel) -> None:
        """Makes room for the running means, (D_m,), which are kept in the checkpoint."""
        if self.fill == "mean":
            for name, dim in model.head.dims.items():
                self.register_buffer(f"mean_{name}", torch.full((dim,), torch.nan))

    def on_encodings(self, encodings: dict[str, Tensor], present: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Replaces dropped rows; a modality that a clip lacks stays zero and is not counted as dropped."""
        has = complete_masks(encodings, present, next(iter(encodings.values()))).T
        kept = draw_kept(has, self.p)
        count, dropped = has.sum(1), {}
        survival = 1 - self.p + self.p**count / count.clamp_min(1)
        for m, (name, encoding) in enumerate(encodings.items()):
            rows = [-1] + [1] * (encoding.ndim - 1)
            keep, lacks = kept[:, m].view(rows), ~has[:, m].view(rows)
            if self.fill == "zero":
                dropped[name] = torch.where(keep, encoding / survival.view(rows).to(encoding), 0.0)
            else:
                self._update_mean(name, encoding.detach()[has[:, m]])
                dropped[name] = torch.where(keep | lacks, encoding, self.get_buffer(f"mean_{name}").to(encoding))
        return dropped

    def _update_mean(self, name: str, encoding: Tensor) -> None:
        """Moves the running mean towards that of the global batch, of encodings (B, ..., D)."""
        mean, count = mean_over_ranks(encoding.float().flatten(0, -2))
        if count > 0:
            running = self.get_buffer(f"mean_{name}")
            running.copy_(torch.where(running.isnan(), mean, torch.lerp(running, mean, self.momentum)))
