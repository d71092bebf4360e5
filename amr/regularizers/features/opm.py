"""OPM: the encoding of the modality that is ahead is dropped, the more often the further ahead it is."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor

from amr.model import FusionModel, complete_masks
from amr.regularizers.base import EpochState, Regularizer, Step
from amr.regularizers.gradients.ogm import global_mean, right_probabilities
from amr.regularizers.shared import EpochMeans, Window
from amr.utils.names.ranges import Range


def drop_probabilities(scores: Tensor, base: float, slope: float) -> Tensor:
    """Probability of dropping each modality, (M,): min(1, q₀ (1 + λ ρ_m)) where ρ_m > 0, else 0.

    ρ_m = tanh(max(0, s_m / mean_{j≠m} s_j − 1)). The modality with the lowest score is never dropped. A ratio of 0/0
    counts as 1.

    Args:
        scores: s, >= 0, (M,) with M >= 2.
        base: q₀, in [0, 1].
        slope: λ, >= 0.
    """
    others = (scores.sum() - scores) / (len(scores) - 1)
    lead = torch.tanh(((scores / others).nan_to_num(nan=1.0) - 1).clamp_min(0.0))
    return torch.where(lead > 0, (base * (1 + slope * lead)).clamp_max(1.0), 0.0)


def drop(encodings: Mapping[str, Tensor], has: Tensor, probabilities: Tensor) -> dict[str, Tensor]:
    """Zeroes encodings clip by clip, and divides all of them by 1 − θ, θ = Σ_m D_m q_m / Σ_m D_m.

    Args:
        encodings: Encoding of each modality, (B, ..., D_m).
        has: Boolean (B, M): what each clip has. A clip that would lose everything loses nothing.
        probabilities: q, (M,), not all of them 1; random numbers are torch's global ones.
    """
    kept = has & (torch.rand(has.shape, device=has.device) >= probabilities)
    kept = torch.where(kept.any(1, keepdim=True), kept, has)
    sizes = probabilities.new_tensor([encoding.shape[-1] for encoding in encodings.values()])
    left = 1 - (sizes * probabilities).sum() / sizes.sum()
    rows = zip(kept.T, encodings.items(), strict=True)
    return {
        name: torch.where(keep.view(-1, *[1] * (encoding.ndim - 1)), encoding / left.to(encoding), 0.0)
        for keep, (name, encoding) in rows
    }


class OPM(Regularizer):
    """Drops the encoding of a modality that is ahead, clip by clip (Wei, Hu, Du, Wen 2024, OPM).

    With probability `p` per batch, each clip loses modality m with probability q_m (`drop_probabilities`), and all
    encodings are divided by the mean fraction that is left. s_m is the probability that the head gives the true class
    by modality m alone (`Fusion.unimodal_logits`), the mean over the clips of the step before: all its micro-batches of
    all ranks, without the clips that lack a modality. The scores are in the checkpoint.

    Args:
        base: q₀, the probability of a modality that is barely ahead, in [0, 1).
        slope: λ, how much the lead adds, >= 0.
        p: Probability that a batch is treated at all, in [0, 1]; 0 switches the method off.
        start_epoch: First epoch in which it acts; the authors train 5 epochs before.
        end_epoch: First epoch in which it no longer acts; None if it acts until the end.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "opm"
    title = "OPM"
    signal = "probability of the true class by each modality's own logits"
    ranges: ClassVar = {"base": Range(0.1, 0.9)}
    reads = Regularizer.reads | {"on_gradients"}
    order = 11
    min_modalities = 2
    # They drop encodings too, so that a clip could lose everything; or they take the encodings as they were.
    conflicts = frozenset({"modality_dropout", "tcmax", "mla"})
    means: EpochMeans
    scores: Tensor

    def __init__(
        self, base: float = 0.5, slope: float = 0.5, p: float = 0.7, start_epoch: int = 5, end_epoch: int | None = None
    ) -> None:
        super().__init__()
        self.check("base", base, 0 <= base < 1, "a value in [0, 1)")
        self.check("slope", slope, slope >= 0, "a finite number >= 0")
        self.check("p", p, 0 <= p <= 1, "a value in [0, 1]")
        self.base, self.slope, self.p = base, slope, p
        self.window = Window(self.name, start_epoch, end_epoch)
        self._epoch = 0

    def setup(self, model: FusionModel) -> None:
        """Makes room for the last step's scores, (M,), and the epoch's mean probabilities of a drop."""
        self.register_buffer("scores", torch.ones(len(model.modalities)))
        self.means = EpochMeans(f"q/{name}" for name in model.modalities)

    def on_epoch_start(self, state: EpochState) -> None:
        """Notes the epoch, which `on_encodings` does not see."""
        self._epoch = state.epoch

    def checkpoint_state(self) -> dict[str, object]:
        """The epoch: one that is resumed within does not start again."""
        return {"epoch": self._epoch}

    def restore_state(self, state: Mapping[str, object]) -> None:
        """Takes the epoch."""
        self._epoch = int(cast(int, state["epoch"]))

    def on_encodings(self, encodings: dict[str, Tensor], present: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Drops encodings in the method's epochs."""
        if self._epoch not in self.window:
            return encodings
        q = drop_probabilities(self.scores, self.base, self.slope)
        if not q.any() or float(torch.rand(())) >= self.p:
            return encodings
        return drop(encodings, complete_masks(encodings, present, next(iter(encodings.values()))).T, q)

    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Takes the scores for the next step; a step of which no clip is complete leaves them."""
        scores, clips = global_mean(steps, right_probabilities)
        if clips > 0 and bool(scores.isfinite().all()):
            self.scores.copy_(scores)
        acting = steps[0].epoch in self.window
        self.means.update(drop_probabilities(self.scores, self.base, self.slope) * acting)
