"""On-the-fly gradient modulation: the encoder of the modality that is ahead takes smaller steps."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from amr.attribution import evaluating
from amr.model import FusionModel, complete_rows
from amr.regularizers.base import Regularizer, Step
from amr.utils.distributed import all_reduce_sum
from amr.utils.errors import UserError

Modulated = Literal["conv", "all"]


def modulation_coefficients(scores: Tensor, alpha: float) -> Tensor:
    """Factor of each encoder's gradient (Peng et al. 2022, eq. 10, for any number of modalities).

    With ρ_m = s_m / mean_{j≠m} s_j: k_m = 1 − tanh(α ρ_m) where ρ_m > 1, else 1. A ratio of 0/0 counts as 1; one of
    s/0 as infinite.

    Args:
        scores: Score s_m >= 0 of each modality, (M,) with M >= 2.
        alpha: Strength α >= 0.

    Returns:
        Factors in [0, 1], (M,).

    Raises:
        ValueError: If the scores are not (M,) with M >= 2.
    """
    if scores.ndim != 1 or len(scores) < 2:
        raise ValueError(f"scores: shape {tuple(scores.shape)}, expected (M,) with M >= 2, one score a modality")
    count = len(scores)
    rest = scores.expand(count, count)[~torch.eye(count, dtype=torch.bool, device=scores.device)].view(count, count - 1)
    ratio = (scores / rest.mean(1)).nan_to_num(nan=1.0)  # infinity becomes the largest number
    return torch.where(ratio > 1, 1 - torch.tanh(alpha * ratio), 1.0)


def gradient_noise(gradient: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise with the gradient's own spread: N(0, (std(g) + 1e-8)²) (Peng et al. 2022, GE).

    Args:
        gradient: A parameter's gradient g, of any shape; the std of a single number is 0.
        generator: Source of the noise, on the gradient's device.

    Returns:
        Noise of the gradient's shape and type.
    """
    std = gradient.std() if gradient.numel() > 1 else gradient.new_zeros(())
    noise = torch.randn(gradient.shape, generator=generator, device=gradient.device, dtype=gradient.dtype)
    return noise * (std + 1e-8)


def complete_clips(steps: Sequence[Step]) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Encodings, of at least single precision, and labels of the clips that have every modality, a step at a time."""
    for step in steps:
        rows = complete_rows(step.encodings, step.present)
        label = step.label if rows is None else step.label[rows]
        if len(label):
            yield (
                {
                    name: (e if rows is None else e[rows]).to(torch.promote_types(e.dtype, torch.float32))
                    for name, e in step.encodings.items()
                },
                label,
            )


class EncoderModulation(Regularizer):
    """Multiplies each encoder's gradient by a coefficient; subclasses say by which.

    Args:
        alpha: Strength, >= 0; 0 switches the method off.
        start_epoch: First epoch in which it acts.
        end_epoch: First epoch in which it acts no more; None for never.

    Raises:
        UserError: If an argument is out of its range.
    """

    min_modalities = 2
    needs_steps = True
    scales_gradients = True
    k_mean: Tensor
    k_steps: Tensor
    k_epoch: Tensor

    def __init__(self, alpha: float, start_epoch: int, end_epoch: int | None) -> None:
        super().__init__()
        if not (alpha >= 0 and math.isfinite(alpha)):
            raise UserError(f"model.{self.name}.alpha={alpha}: allowed are finite numbers >= 0")
        if start_epoch < 0 or (end_epoch is not None and end_epoch <= start_epoch):
            raise UserError(
                f"model.{self.name}: start_epoch={start_epoch}, end_epoch={end_epoch}: 0 <= start < end is needed"
            )
        self.alpha, self.start_epoch, self.end_epoch = alpha, start_epoch, end_epoch
        self._names: tuple[str, ...] = ()

    def setup(self, model: FusionModel) -> None:
        """Makes room for the epoch's mean coefficients, (M,), which `report` gives; kept in the checkpoint."""
        self._names = model.modalities
        self.register_buffer("k_mean", torch.ones(len(self._names)))
        self.register_buffer("k_steps", torch.tensor(0))
        self.register_buffer("k_epoch", torch.tensor(-1))

    def active(self, epoch: int) -> bool:
        """Whether the method acts in this epoch."""
        return self.alpha > 0 and self.start_epoch <= epoch and (self.end_epoch is None or epoch < self.end_epoch)

    def coefficients(self, steps: Sequence[Step]) -> Tensor:
        """Factor of each encoder's gradient, (M,), the same on all ranks; called once a step."""
        raise NotImplementedError

    def modulated(self, encoder: nn.Module) -> list[nn.Parameter]:
        """The encoder's parameters whose gradients are changed."""
        return list(encoder.parameters())

    def gradients(self, model: FusionModel) -> list[list[Tensor]]:
        """The gradients to change, of each modality; frozen parameters have none."""
        return [[p.grad for p in self.modulated(e) if p.grad is not None] for e in model.encoders.values()]

    @torch.no_grad()
    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Multiplies the gradients in place."""
        if not steps:
            return
        if self.active(steps[0].epoch):
            k = self.coefficients(steps)
            for factor, gradients in zip(k, self.gradients(steps[0].model), strict=True):
                for gradient in gradients:
                    gradient.mul_(factor)
        else:
            k = torch.ones_like(self.k_mean)
        fresh = self.k_epoch != steps[0].epoch
        self.k_steps.copy_(torch.where(fresh, 1, self.k_steps + 1))
        self.k_mean.copy_(torch.where(fresh, k, self.k_mean + (k - self.k_mean) / self.k_steps))
        self.k_epoch.fill_(steps[0].epoch)

    def report(self) -> dict[str, float]:
        """Mean coefficient of each modality over the epoch's steps, as `k/<modality>`."""
        return {f"k/{name}": value for name, value in zip(self._names, self.k_mean.tolist(), strict=True)}


class OGM(EncoderModulation):
    """Slows the encoder of the modality whose own logits favour the right class most (Peng et al. 2022).

    s_m is the sum over the batch of softmax(f_m)[y], with f_m the head's `unimodal_logits`: W_m e^m + b/M where the
    head is linear in the encodings, else the logits with every other encoding zeroed. The batch is the whole one: all
    accumulated micro-batches of all ranks. Clips that lack a modality cannot be compared and are left out.

    Args:
        alpha: Strength, >= 0; 0 switches the method off. The authors advise 0.1 for VGGSound, which their code's
            documented setting has and which is the gentler of the two, and 0.8 for CREMA-D.
        start_epoch: First epoch in which it acts.
        end_epoch: First epoch in which it acts no more; None for never.
        parameters: Which of an encoder's gradients are scaled: `conv`: those of convolutions' weights (the released
            code); `all`: all.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "ogm"
    title = "OGM"
    order = 60
    conflicts = frozenset({"ogm_ge"})

    def __init__(
        self,
        alpha: float = 0.1,
        start_epoch: int = 0,
        end_epoch: int | None = None,
        parameters: Modulated = "conv",
    ) -> None:
        super().__init__(alpha, start_epoch, end_epoch)
        if parameters not in get_args(Modulated):
            raise UserError(
                f"model.{self.name}.parameters={parameters!r}: allowed are {', '.join(get_args(Modulated))}"
            )
        self.which: Modulated = parameters  # `parameters` is a method of every module

    def setup(self, model: FusionModel) -> None:
        """Refuses, by name, an encoder of which nothing would be scaled."""
        super().setup(model)
        for name, encoder in model.encoders.items():
            if self.which == "conv" and not self.modulated(encoder):
                raise UserError(
                    f"model.{self.name}.parameters=conv: the encoder of {name!r} has no convolution; "
                    "set parameters: all"
                )

    def modulated(self, encoder: nn.Module) -> list[nn.Parameter]:
        """Weights of the encoder's convolutions, or all its parameters."""
        if self.which == "all":
            return super().modulated(encoder)
        convolutions = [module for module in encoder.modules() if isinstance(module, _ConvNd)]
        return [p for conv in convolutions for key, p in conv.named_parameters() if key != "bias"]

    def coefficients(self, steps: Sequence[Step]) -> Tensor:
        """k_m, (M,), of the global batch's scores."""
        model = steps[0].model
        scores = torch.zeros_like(self.k_mean)
        with torch.autocast(scores.device.type, enabled=False), evaluating(model.head):
            for encodings, label in complete_clips(steps):
                logits = model.head.unimodal_logits(encodings)
                right = [logits[name].softmax(1).gather(1, label.unsqueeze(1)).sum() for name in model.modalities]
                scores += torch.stack(right)
        return modulation_coefficients(all_reduce_sum(scores), self.alpha)


class OGMGE(OGM):
    """OGM with generalization enhancement (Peng et al. 2022).

    To every modulated gradient, also where k_m = 1, noise N(0, (std(g) + 1e-8)²) is added, with g that gradient before
    the modulation. All ranks add the same noise. Arguments and errors are those of `OGM`.
    """

    name = "ogm_ge"
    title = "OGM-GE"
    conflicts = frozenset({"ogm"})

    @torch.no_grad()
    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Multiplies the gradients in place, and adds noise."""
        noisy: list[tuple[Tensor, Tensor]] = []
        if steps and self.active(steps[0].epoch):
            generator = torch.Generator(self.k_mean.device).manual_seed(steps[-1].seed)
            gradients = itertools.chain.from_iterable(self.gradients(steps[0].model))
            noisy = [(gradient, gradient_noise(gradient, generator)) for gradient in gradients]
        super().on_gradients(steps)
        for gradient, noise in noisy:
            gradient.add_(noise)
