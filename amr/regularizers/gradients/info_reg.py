"""InfoReg: while a leading modality takes up information fast, it is held near its weights at the epoch's start."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from amr.attribution import at_least_float32
from amr.model import FusionModel
from amr.regularizers.base import EpochState, Regularizer, Step
from amr.regularizers.losses.multi_loss import unimodal_losses
from amr.regularizers.shared import (
    EpochMeans,
    UnimodalHeads,
    Window,
    flat_gradient,
    set_gradient,
    trained,
)
from amr.utils.distributed import mean_over_ranks
from amr.utils.names.ranges import Range

HISTORY = 11  # epochs: two means of ten, one epoch apart
Scores = Literal["mean", "sum"]


def information_growth(traces: Tensor) -> Tensor:
    """κ_m = (t₁ − t₂) / t₁, (M,): how fast the trace of the Fisher information grows.

    t₁ is the mean of the last ten epochs' traces and t₂ of the ten that end one epoch earlier; of fewer where the run
    is younger.

    Args:
        traces: Traces of up to eleven epochs, (E, M), the newest last; below 0 where there was no epoch.

    Returns:
        κ, without unit; NaN with fewer than two epochs.
    """
    traces = torch.where(traces < 0, torch.nan, traces)
    return (traces[1:].nanmean(0) - traces[:-1].nanmean(0)) / traces[1:].nanmean(0)


def hold_strengths(scores: Tensor, beta: Tensor) -> Tensor:
    """Factor of θ − θ₀ in each encoder's gradient, (M,): β e^{tanh(s_m − mean_{j≠m} s_j)} where that is > 0, else 0.

    Args:
        scores: s, (M,).
        beta: β, (M,).
    """
    lead = scores - (scores.sum() - scores) / (len(scores) - 1)
    return torch.where(lead > 0, beta * torch.exp(torch.tanh(lead)), 0.0)


class InfoReg(Regularizer):
    """Information regulation (Huang et al. 2025, InfoReg).

    L = CE + Σ_m CE_m, each modality by a linear classifier of its own. θ₀ are an encoder's weights at the start of the
    epoch. Where modality m leads, s_m > mean_{j≠m} s_j, and its information still grows, κ_m > `threshold`, the
    gradient of its encoder gets β_m e^{tanh(s_m − mean_{j≠m} s_j)} (θ − θ₀) added. s_m is the probability that its
    classifier gives the true class. The trace in κ is the epoch's mean of the squared length of the encoder's gradient.

    Args:
        beta: β, >= 0, or one per modality; the authors take 0.95 for audio and 0.1 for video.
        threshold: Least growth κ at which a modality is held.
        scores: `mean` over the global batch, or `sum`, as in the released code, where tanh is ±1 at any batch size.
        start_epoch: First epoch in which a modality may be held.
        end_epoch: First epoch in which none is; None if it acts until the end.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "info_reg"
    title = "InfoReg"
    signal = "probability of the true class by each modality's classifier; growth of each encoder's gradients"
    ranges: ClassVar = {"beta": Range(0.1, 5, "log")}
    order = 55
    min_modalities = 2
    # An encoder that waits for its turn would be moved towards the epoch's start.
    conflicts = frozenset({"mla"})
    heads: UnimodalHeads
    means: EpochMeans
    traces: Tensor

    def __init__(
        self,
        beta: float | dict[str, float] = 0.95,
        threshold: float = 0.05,
        scores: Scores = "mean",
        start_epoch: int = 0,
        end_epoch: int | None = None,
    ) -> None:
        super().__init__()
        for value in beta.values() if isinstance(beta, dict) else [beta]:
            self.check("beta", value, value >= 0, "a finite number >= 0")
        self.check("threshold", threshold, True, "a finite number")
        self.check_choice("scores", scores, Scores)
        self.beta, self.threshold = beta, threshold
        self.which: Scores = scores
        self.window = Window(self.name, start_epoch, end_epoch)

    def setup(self, model: FusionModel) -> None:
        """Makes the classifiers, and room for the epoch's first weights and for traces; all are in the checkpoint."""
        names = model.modalities
        if isinstance(self.beta, dict):
            self.check_names("beta", self.beta, names)
        beta = self.beta if isinstance(self.beta, dict) else dict.fromkeys(names, self.beta)
        self.strengths = torch.tensor([beta[name] for name in names])
        self.heads = UnimodalHeads(model)
        for name in names:
            size = sum(parameter.numel() for parameter in trained(model.encoders[name]))
            self.register_buffer(f"start_{name}", torch.zeros(size))
        self.register_buffer("traces", torch.full((HISTORY, len(names)), -1.0))
        self.means = EpochMeans([*(f"hold/{name}" for name in names), *(f"trace/{name}" for name in names)])

    def on_epoch_start(self, state: EpochState) -> None:
        """Keeps the weights. A run that is resumed within an epoch has them from its checkpoint."""
        for name in state.model.modalities:
            if parameters := trained(state.model.encoders[name]):
                self.get_buffer(f"start_{name}").copy_(parameters_to_vector(parameters).detach())

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Each modality's own cross-entropy."""
        return unimodal_losses(self.heads(step.encodings), step)

    @torch.no_grad()
    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Holds the encoder of a leading modality still, and records the gradients' squares."""
        model = steps[0].model
        scores, count = mean_over_ranks(torch.cat([self._right(step) for step in steps]))
        if self.which == "sum":
            scores = scores * count
        factors = hold_strengths(scores, self.strengths.to(scores))
        growing = information_growth(self.traces).to(scores) > self.threshold  # False while it is not known
        active = steps[0].epoch in self.window and bool(count > 0)
        factors = torch.where(growing, factors, 0.0) if active else torch.zeros_like(factors)
        squares = torch.zeros_like(factors)
        for m, name in enumerate(model.modalities):
            if not (parameters := trained(model.encoders[name])):
                continue
            gradient = flat_gradient(parameters)
            squares[m] = gradient.square().sum()
            if factors[m] > 0:
                away = parameters_to_vector(parameters) - self.get_buffer(f"start_{name}")
                set_gradient(parameters, gradient + factors[m] * away)
        self.means.update(torch.cat([factors, squares]))

    def on_epoch_end(self, state: EpochState) -> None:
        """Adds the epoch's traces to those of the last ten."""
        newest = self.means.compute()[self.traces.shape[1] :].nan_to_num(-1.0)  # unknown if no step was finite
        self.traces.copy_(torch.cat([self.traces[1:], newest.unsqueeze(0)]))

    def _right(self, step: Step) -> Tensor:
        """Probability of the true class by each modality's own classifier, (N, M), of the complete clips."""
        encodings, label = step.complete()
        logits = self.heads(encodings)
        return torch.cat(
            [at_least_float32(said).softmax(1).gather(1, label.unsqueeze(1)) for said in logits.values()], dim=1
        )
