"""Greedy: gates between the modalities; the gate of the one that learns too fast through them is held."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from amr.attribution import at_least_float32
from amr.fusion.base import Fusion, pool_all
from amr.model import FusionModel
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.shared import EpochMeans, Window, trained
from amr.utils.distributed import mean_over_ranks
from amr.utils.names.ranges import Range


def relative_speed(parameters: Sequence[nn.Parameter]) -> float:
    """‖g‖² / ‖θ‖² of the parameters, their gradients g; NaN without parameters."""
    weights = sum(float(p.detach().square().sum()) for p in parameters)
    gradients = sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None)
    return gradients / weights if weights else float("nan")


def conditional_speeds(bypass: Tensor, main: Tensor) -> Tensor:
    """log₁₀ of each modality's ratio, (M,): how fast it learns through the others, relative to its own encoder.

    Args:
        bypass: Relative speeds of the gates, summed over steps, (M,).
        main: Those of the encoders, (M,).
    """
    return torch.log10(bypass / main)


def fastest(speeds: Tensor, threshold: float) -> int | None:
    """The modality that is ahead of the others' mean speed, (M,), by more than `threshold`; None if there is none."""
    if not bool(speeds.isfinite().all()):
        return None
    index = int(speeds.argmax())
    rest = (speeds.sum() - speeds[index]) / (len(speeds) - 1)
    return index if float(speeds[index] - rest) > threshold else None


class GatedHead(Fusion):
    """Scales each encoding's units by gates made from all modalities (MMTM), before another head.

    z = relu(S [e^1; ...; e^M] + s) and gate_m = sigmoid(E_m z + b_m), of the pooled encodings; tokens share a gate.

    Args:
        inner: The head behind.
        ratio: Size of z is 2 Σ_m D_m / ratio, at least 1.
    """

    held: Tensor

    def __init__(self, inner: Fusion, ratio: float) -> None:
        super().__init__(inner.dims, inner.num_classes, 1)
        del self.hidden, self.classifier  # the inner head's are used
        total = sum(inner.dims.values())
        self.squeeze = nn.Linear(total, max(1, int(2 * total / ratio)))
        self.excite = nn.ModuleDict({m: nn.Linear(self.squeeze.out_features, d) for m, d in inner.dims.items()})
        self.inner = inner
        for name, size in inner.dims.items():
            self.register_buffer(f"mean_{name}", torch.full((size,), 0.5))
        self.register_buffer("held", torch.tensor(-1))

    def gates(self, encodings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gate of each modality, (B, D_m), in (0, 1)."""
        pooled = pool_all(encodings, self.dims)
        squeezed = torch.relu(self.squeeze(torch.cat([*pooled.values()], dim=1)))
        return {name: torch.sigmoid(layer(squeezed)) for name, layer in self.excite.items()}

    def gated(self, encodings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The encodings times their gates; in training, the held modality's gate is its mean over earlier steps."""
        scaled = {}
        for index, (name, gate) in enumerate(self.gates(encodings).items()):
            encoding = encodings[name]
            if self.training:
                gate = torch.where(self.held == index, self.get_buffer(f"mean_{name}").to(gate), gate)
            scaled[name] = encoding * gate.view(len(gate), *[1] * (encoding.ndim - 2), -1)
        return scaled

    def fuse(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """The inner head's penultimate features of the gated encodings."""
        return self.inner.fuse(self.gated(encodings))

    def classify(self, fused: Tensor) -> Tensor:
        """The inner head's logits, (B, C)."""
        return self.inner.classify(fused)


class Greedy(Regularizer):
    """Balanced learning by conditional learning speed (Wu et al. 2022), on gates over the encodings.

    The gates (`GatedHead`) are in the model, in evaluation too. Each step adds ‖g‖²/‖θ‖² of modality m's gates (its
    own layer and the common one) and of its encoder; d_m is the log₁₀ of the ratio of both sums. Where the largest d_m
    is ahead of the mean of the others by more than `threshold`, m's gate is held at its mean over all earlier steps for
    `steps` steps, so that m learns by its encoder alone; meanwhile nothing is added.

    Args:
        threshold: Threshold of the difference of d, >= 0.
        steps: Steps for which a gate is held, >= 1.
        ratio: The common layer has 2 Σ_m D_m / ratio units, > 0.
        start_epoch: First epoch in which a gate may be held; sums are kept from the start.
        end_epoch: First epoch in which none is; None if it acts until the end.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "greedy"
    title = "Greedy"
    signal = "relative size of the gradients of gates and encoders: conditional learning speed"
    ranges: ClassVar = {"threshold": Range(0.001, 0.1, "log")}
    reads = Regularizer.reads | {"on_gradients"}
    min_modalities = 2
    # MLA's, AUG's and MMCosine's heads cannot be wrapped, or cannot stand behind gates.
    conflicts = frozenset({"mla", "aug", "mmcosine"})
    speeds: Tensor
    left: Tensor
    seen: Tensor
    means: EpochMeans

    def __init__(
        self,
        threshold: float = 0.01,
        steps: int = 5,
        ratio: float = 4.0,
        start_epoch: int = 2,
        end_epoch: int | None = None,
    ) -> None:
        super().__init__()
        self.check("threshold", threshold, threshold >= 0, "a finite number >= 0")
        self.check("steps", steps, steps >= 1, "an integer >= 1")
        self.check("ratio", ratio, ratio > 0, "a positive, finite number")
        self.threshold, self.steps, self.ratio = threshold, steps, ratio
        self.window = Window(self.name, start_epoch, end_epoch)

    def wrap_head(self, head: Fusion) -> Fusion:
        """The head behind gates."""
        return GatedHead(head, self.ratio)

    def setup(self, model: FusionModel) -> None:
        """Makes room for the sums and the steps that are left, which are in the checkpoint."""
        names = model.modalities
        self.register_buffer("speeds", torch.zeros(2, len(names)))  # of the gates, of the encoders
        self.register_buffer("left", torch.tensor(0))
        self.register_buffer("seen", torch.tensor(0))
        self.means = EpochMeans([*(f"speed/{m}" for m in names), *(f"held/{m}" for m in names)])

    @torch.no_grad()
    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Notes the speeds and the gates of this step, and decides which gate is held in the next one."""
        model = steps[0].model
        head = model.head
        assert isinstance(head, GatedHead)
        holding = torch.arange(len(model.modalities), device=head.held.device) == head.held
        self._note_gates(head, steps)
        if int(self.left) > 0:
            self.left -= 1
            if int(self.left) == 0:
                head.held.fill_(-1)  # for one step at least, whose speeds are added before the next choice
        else:
            common = trained(head.squeeze)
            gates = [relative_speed([*common, *trained(head.excite[name])]) for name in model.modalities]
            encoders = [relative_speed(trained(model.encoders[name])) for name in model.modalities]
            self.speeds += torch.tensor([gates, encoders]).to(self.speeds)
            ahead = fastest(conditional_speeds(*self.speeds), self.threshold)
            if ahead is not None and steps[0].epoch in self.window:
                head.held.fill_(ahead)
                self.left.fill_(self.steps)
        self.means.update(torch.cat([conditional_speeds(*self.speeds), holding.to(self.speeds)]))

    def _note_gates(self, head: GatedHead, steps: Sequence[Step]) -> None:
        """Moves the mean gates by those of the clips with every modality, of the global batch."""
        clips = [{m: at_least_float32(e) for m, e in step.complete()[0].items()} for step in steps]
        with torch.autocast(steps[0].label.device.type, enabled=False):
            gates = [head.gates(encodings) for encodings in clips]
        for name in head.dims:
            mean, count = mean_over_ranks(torch.cat([each[name] for each in gates]))
            if count > 0:
                buffer = head.get_buffer(f"mean_{name}")
                buffer.lerp_(mean.to(buffer), 1 / (int(self.seen) + 1))
        self.seen += int(count > 0)
