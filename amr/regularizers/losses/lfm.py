"""LFM: the modalities' predictions are drawn together, by a weight that follows a schedule or is learned."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from amr.attribution import at_least_float32, evaluating
from amr.model import FusionModel
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.shared import EpochMeans, Window, global_means, trained
from amr.utils.distributed import all_reduce_sum
from amr.utils.names.ranges import Range

Integration = Literal["schedule", "learned"]
MOST = 0.95  # of the learned weight, and 0.05 the least: the released code's bounds


def alignment(logits: Mapping[str, Tensor]) -> Tensor:
    """Mean over modalities of KL(p̄ ‖ p_m), (B,), with p̄ the mean of their predictions p_m, of their logits, (B, C)."""
    logs = torch.stack([each.log_softmax(1) for each in logits.values()])
    mean = logs.exp().mean(0)
    return (mean * (torch.logsumexp(logs, 0) - torch.log(mean.new_tensor(len(logits))) - logs)).sum(2).mean(0)


def moved_weight(alpha: Tensor, labels: Tensor, before: Tensor, rate: float) -> Tensor:
    """α after a step: α − rate <∇CE now, ∇CE − ∇KL of the step before>, in [0.05, 0.95].

    That step moved θ by −2η [(1 − α) ∇CE + α ∇KL], so the product times 2η is the slope by α of the CE of a batch that
    it had not seen.

    Args:
        alpha: α, a scalar.
        labels: ∇CE now, (P,).
        before: ∇CE − ∇KL of the step before, (P,).
        rate: Step size of α, >= 0.
    """
    return (alpha - rate * torch.dot(labels, before)).clamp(1 - MOST, MOST)


class LFM(Regularizer):
    """Learning to fit labels by the modality gap (Yang et al. 2024, LFM): 2 [(1 − α) CE + α Σ_m KL(p̄ ‖ p_m) / M].

    p_m is what modality m predicts alone (`Fusion.unimodal_logits`), and CE the main loss, also one of another method.
    α starts at `weight`. With `schedule` it goes to `end_weight` by equal steps from one epoch to the next. With
    `learned`, each step looks back: had α been larger in the step before, would the cross-entropy of this batch, which
    that step had not seen, be lower (`moved_weight`)? The gradients are by the head's parameters, over all
    micro-batches of all ranks, and the rate follows the main schedule. Clips that lack a modality are left out of KL.

    Args:
        weight: α at the start, in [0, 1].
        end_weight: α at the end of the schedule, in [0, 1]; None for a constant one.
        epochs: Epochs after which the schedule has reached its end, >= 1.
        integration: `schedule` or `learned`.
        rate: Rate of the learned weight, >= 0.
        start_epoch: First epoch in which it acts; before, it is naive fusion.
        end_epoch: First epoch in which it no longer acts; None if it acts until the end.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "lfm"
    title = "LFM"
    signal = "divergence between the modalities' predictions"
    ranges: ClassVar = {"weight": Range(0.05, 0.5)}
    reads = Regularizer.reads | {"on_gradients"}
    min_modalities = 2
    means: EpochMeans
    alpha: Tensor
    before: Tensor

    def __init__(
        self,
        weight: float = 0.05,
        end_weight: float | None = None,
        epochs: int = 20,
        integration: Integration = "schedule",
        rate: float = 0.01,
        start_epoch: int = 0,
        end_epoch: int | None = None,
    ) -> None:
        super().__init__()
        self.check("weight", weight, 0 <= weight <= 1, "a value in [0, 1]")
        self.check("end_weight", end_weight, end_weight is None or 0 <= end_weight <= 1, "a value in [0, 1] or null")
        self.check("epochs", epochs, epochs >= 1, "an integer >= 1")
        self.check_choice("integration", integration, Integration)
        self.check("rate", rate, rate >= 0, "a finite number >= 0")
        self.weight, self.end_weight, self.epochs, self.rate = weight, end_weight, epochs, rate
        self.integration: Integration = integration
        self.window = Window(self.name, start_epoch, end_epoch)

    def setup(self, model: FusionModel) -> None:
        """Makes room for the learned weight and the last step's gradient, which are in the checkpoint."""
        self.means = EpochMeans(["alpha"])
        if self.integration == "learned":
            size = sum(parameter.numel() for parameter in trained(model.head))
            self.register_buffer("alpha", torch.tensor(self.weight))
            self.register_buffer("before", torch.zeros(size))  # ∇CE − ∇KL

    def weight_in(self, epoch: int) -> Tensor | float:
        """α in an epoch of the method's; the learned one as it is."""
        if self.integration == "learned":
            return self.alpha.clone()  # it moves before the gradient is taken by a later backward pass
        end = self.weight if self.end_weight is None else self.end_weight
        return self.weight + (end - self.weight) * min((epoch - self.window.start) / self.epochs, 1.0)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """`labels`, (1 − 2α) CE beside the main loss, and `alignment`, 2α KL."""
        if step.epoch not in self.window:
            return {}
        alpha = self.weight_in(step.epoch)
        return {"labels": (1 - 2 * alpha) * step.loss, "alignment": 2 * alpha * self._alignment(step)}

    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Moves the learned weight."""
        inside = steps[0].epoch in self.window
        if inside:
            self.means.update(torch.as_tensor(self.weight_in(steps[0].epoch)).view(1))
        if self.integration == "schedule" or not inside:
            return
        labels, apart = self._gradients(steps)
        if bool(labels.isfinite().all() & apart.isfinite().all()):  # 16-mixed may overflow
            self.alpha.copy_(moved_weight(self.alpha, labels, self.before, self.rate * steps[0].lr_factor))
            self.before.copy_(labels - apart)

    def _gradients(self, steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
        """Gradients of the cross-entropy and of KL by the head's parameters, (P,) each, of the global batch."""
        head, device = steps[0].model.head, steps[0].label.device
        parameters = trained(head)
        sums = []
        with torch.enable_grad(), torch.autocast(device.type, enabled=False), evaluating(head):
            for step in steps:
                everyone = {name: at_least_float32(encoding) for name, encoding in step.encodings.items()}
                labels = step.cross_entropy(head(everyone), reduction="none")
                apart = alignment(head.unimodal_logits(step.complete()[0]))
                flats = [
                    torch.cat(
                        [g.flatten() for g in torch.autograd.grad(each.sum(), parameters, materialize_grads=True)]
                    )
                    for each in (labels, apart)
                ]
                sums.append(torch.cat([*flats, self.before.new_tensor([len(labels), len(apart)])]))
        total = all_reduce_sum(torch.stack(sums).sum(0))
        labels, apart = total[:-2].chunk(2)
        return labels / total[-2].clamp_min(1), apart / total[-1].clamp_min(1)

    def _alignment(self, step: Step) -> Tensor:
        """The mean over the clips of all ranks that have every modality."""
        logits = step.model.head.unimodal_logits(step.encodings)
        each = alignment({name: at_least_float32(logits[name]) for name in step.model.modalities})
        return global_means(each.unsqueeze(0), step.has(step.model.modalities).all(0, keepdim=True))[0][0]
