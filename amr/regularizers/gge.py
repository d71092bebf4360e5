"""Greedy gradient ensemble: the model learns what the dominant modality alone leaves unexplained."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amr.fusion.base import pool_tokens
from amr.model import FusionModel
from amr.regularizers.base import Regularizer, Step
from amr.utils.distributed import all_reduce_sum
from amr.utils.errors import UserError


def residual_targets(labels_one_hot: Tensor, bias_probabilities: Tensor) -> Tensor:
    """What a biased model leaves of the label: ỹ = clamp(y − p, 0, 1) (Han et al. 2021, softmax form).

    y − p is the negative gradient of the biased model's cross-entropy by its logits; only its positive part can be a
    target.

    Args:
        labels_one_hot: Labels y, (B, C), one-hot or smoothed: rows of non-negative numbers that sum to 1.
        bias_probabilities: Class probabilities p of the biased model, (B, C).

    Returns:
        Targets, (B, C), in [0, 1], without gradient; a row's sum is in [0, 1] and near 0 where the bias is right.
    """
    return (labels_one_hot - bias_probabilities).clamp(0, 1).detach()


class GGE(Regularizer):
    """Trains the model on the residual of a biased branch, that of the dominant modality (Han et al. 2021).

    The biased branch is a linear head on the modality's pooled, detached encoding, trained by its own cross-entropy in
    every epoch; the encoders never feel it. In the epochs [start_epoch, end_epoch) the main loss is replaced by
    −Σ_c ỹ_c log p_c, its mean over the clips. A clip that lacks the biased modality keeps its plain label.

    Args:
        bias: Name of the biased modality; None: the one whose head has the lowest running training cross-entropy. The
            first batch decides the start, ties go to the first modality.
        momentum: Weight of a new batch in the running cross-entropy, in (0, 1]; without effect if `bias` is given.
        start_epoch: First epoch in which it acts; before, it is naive fusion and the biased branch warms up.
        end_epoch: First epoch in which it acts no more; None for never.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "gge"
    title = "GGE"
    conflicts = frozenset({"gradient_blending"})  # it replaces the main loss, too
    min_modalities = 2

    running: Tensor
    tally: Tensor

    def __init__(
        self, bias: str | None = None, momentum: float = 0.1, start_epoch: int = 0, end_epoch: int | None = None
    ) -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise UserError(f"model.gge.momentum={momentum}: allowed are values in (0, 1]")
        if start_epoch < 0 or (end_epoch is not None and end_epoch <= start_epoch):
            raise UserError(f"model.gge: start_epoch={start_epoch}, end_epoch={end_epoch}: 0 <= start < end is needed")
        self.bias, self.momentum = bias, momentum
        self.start_epoch, self.end_epoch = start_epoch, end_epoch
        self._report: dict[str, float] = {}

    def setup(self, model: FusionModel) -> None:
        """Makes the biased branches, one a candidate, and their running cross-entropy."""
        if self.bias is not None and self.bias not in model.modalities:
            names = ", ".join(map(repr, model.modalities))
            raise UserError(f"model.gge.bias={self.bias!r}: allowed are null and {names}")
        candidates = model.modalities if self.bias is None else (self.bias,)
        sizes, classes = model.head.dims, model.head.num_classes
        self.heads = nn.ModuleDict({name: nn.Linear(sizes[name], classes) for name in candidates})
        self.register_buffer("running", torch.full((len(candidates),), torch.nan))
        # Of the epoch so far: steps in which each candidate was the bias, sum of the residuals, clips in that sum.
        self.register_buffer("tally", torch.zeros(len(candidates) + 2))

    def active(self, epoch: int) -> bool:
        """Whether the residual replaces the label in this epoch."""
        return self.start_epoch <= epoch and (self.end_epoch is None or epoch < self.end_epoch)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The biased branches' cross-entropy, and the residual loss less the main one."""
        with torch.autocast(step.label.device.type, enabled=False):
            logits = _at_least_single(step.logits)
            classes, smoothing = logits.shape[1], step.label_smoothing
            labels = F.one_hot(step.label, classes).to(logits) * (1 - smoothing) + smoothing / classes
            everywhere = torch.ones_like(step.label, dtype=torch.bool)
            has = torch.stack([(step.present or {}).get(name, everywhere) for name in self.heads])  # (H, B)
            guesses = [
                head(pool_tokens(_at_least_single(step.encodings[name].detach()))) for name, head in self.heads.items()
            ]
            errors = torch.stack([step.cross_entropy(guess, reduction="none") for guess in guesses]) * has  # (H, B)
            residuals = torch.stack([residual_targets(labels, guess.softmax(1)) for guess in guesses])  # (H, B, C)
            masses = (residuals.sum(2) * has).sum(1)
            totals = all_reduce_sum(torch.cat([errors.detach().sum(1), has.sum(1), masses, labels.new_ones(1)]))
            sums, counts, masses, ranks = torch.split(totals, [len(has)] * 3 + [1])
            chosen = self._choose(sums, counts, masses)
            # Over this rank's part of the global count: the ranks' mean is the mean over the global batch's clips.
            terms = {"bias": (errors.sum(1) / torch.where(counts > 0, counts / ranks, 1.0)).sum()}
            if self.active(step.epoch):
                target = torch.where(has.unsqueeze(2), residuals, labels).index_select(0, chosen).squeeze(0)
                # The trainer adds the main loss, whose gradient this takes back exactly: g - g = 0.
                terms["residual"] = F.cross_entropy(logits, target) - step.loss
        return terms

    def on_epoch_end(self, metrics: Mapping[str, Tensor]) -> None:
        """Makes the epoch's report."""
        *steps, mass, clips = self.tally.tolist()
        total = max(sum(steps), 1.0)
        self._report = {f"bias/{name}": count / total for name, count in zip(self.heads, steps, strict=True)}
        self._report["residual"] = mass / max(clips, 1.0)
        self.tally.zero_()

    def report(self) -> dict[str, float]:
        """Share of the epoch's steps in which each modality was the bias; the label's mean part that it left."""
        return self._report

    def _choose(self, sums: Tensor, counts: Tensor, masses: Tensor) -> Tensor:
        """Index, (1,), of the biased modality, from global sums over a batch's clips, (H,) each."""
        mean = (sums / counts.clamp_min(1)).to(self.running)
        moved = torch.where(self.running.isnan(), mean, torch.lerp(self.running, mean, self.momentum))
        self.running.copy_(torch.where((counts > 0) & mean.isfinite(), moved, self.running))
        chosen = self.running.nan_to_num(nan=torch.inf).argmin().view(1)
        steps = F.one_hot(chosen[0], len(mean))
        self.tally += torch.cat([steps, masses.index_select(0, chosen), counts.index_select(0, chosen)]).to(self.tally)
        return chosen


def _at_least_single(x: Tensor) -> Tensor:
    """In single precision at least: sums of half-precision exponentials are too coarse."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
