"""On-the-fly gradient modulation: the encoder of the modality that is ahead takes smaller steps."""

import itertools
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from amr.attribution import evaluating
from amr.model import FusionModel
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.shared import EpochMeans, Window
from amr.utils.distributed import mean_over_ranks
from amr.utils.errors import UserError
from amr.utils.names.ranges import Range

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
        raise ValueError(f"scores: shape {tuple(scores.shape)}, expected (M,) with M >= 2, one score per modality")
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


def modulated_parameters(encoder: nn.Module, which: Modulated) -> list[nn.Parameter]:
    """Weights of the encoder's convolutions, or all its parameters."""
    if which == "all":
        return list(encoder.parameters())
    convolutions = [module for module in encoder.modules() if isinstance(module, _ConvNd)]
    return [p for conv in convolutions for key, p in conv.named_parameters() if key != "bias"]


def check_modulated(method: Regularizer, model: FusionModel, which: Modulated) -> None:
    """Refuses, by name, an encoder without any parameter to modulate."""
    for name, encoder in model.encoders.items():
        if not modulated_parameters(encoder, which):
            raise UserError(
                f"model.{method.name}.parameters={which}: the encoder of {name!r} has no convolution; "
                "set parameters: all"
            )


def right_probabilities(step: Step) -> Tensor:
    """Probability of the true class by each modality's `unimodal_logits`, (N, M), of the N complete clips."""
    encodings, label = step.complete()
    logits = step.model.head.unimodal_logits(encodings)
    return torch.cat([logits[name].softmax(1).gather(1, label.unsqueeze(1)) for name in step.model.modalities], dim=1)


def global_mean(steps: Sequence[Step], of: Callable[[Step], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean over the clips of all micro-batches and ranks, (K,), and how many there are; the head in eval mode.

    Args:
        steps: The micro-batches.
        of: K numbers of each of a micro-batch's clips, (N, K).
    """
    head = steps[0].model.head
    with torch.no_grad(), torch.autocast(steps[0].label.device.type, enabled=False), evaluating(head):
        return mean_over_ranks(torch.cat([of(step) for step in steps]))


class EncoderModulation(Regularizer, abstract=True):
    """Multiplies each encoder's gradient by a coefficient; subclasses say by which.

    Its mean over the epoch's steps is logged as `k/<modality>`.

    Args:
        alpha: Strength, >= 0; 0 switches the method off.
        start_epoch: First epoch in which it acts.
        end_epoch: First epoch in which it acts no more; None for never.

    Raises:
        UserError: If an argument is out of its range.
    """

    min_modalities = 2
    scales_gradients = True
    means: EpochMeans

    def __init__(self, alpha: float, start_epoch: int, end_epoch: int | None) -> None:
        super().__init__()
        self.check("alpha", alpha, alpha >= 0, "a finite number >= 0")
        self.alpha, self.window = alpha, Window(self.name, start_epoch, end_epoch)

    def setup(self, model: FusionModel) -> None:
        """Makes room for the epoch's mean coefficients."""
        self.means = EpochMeans(f"k/{name}" for name in model.modalities)

    def active(self, epoch: int) -> bool:
        """Whether the method acts in this epoch."""
        return self.alpha > 0 and epoch in self.window

    def clip_scores(self, step: Step) -> Tensor:
        """Scores of each complete clip that are compared, (N, M)."""
        raise NotImplementedError

    def scores(self, steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
        """Mean of the clips' scores over the global batch, (M,), and how many there are; the head in eval mode."""
        return global_mean(steps, self.clip_scores)

    def coefficients(self, steps: Sequence[Step]) -> Tensor:
        """Factor of each encoder's gradient, (M,), the same on all ranks; called once per step."""
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
        k = torch.ones_like(self.means.sums)
        if self.active(steps[0].epoch):
            k = self.coefficients(steps)
            for factor, gradients in zip(k, self.gradients(steps[0].model), strict=True):
                for gradient in gradients:
                    gradient.mul_(factor)
        self.means.update(k)


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
        parameters: Gradients of an encoder that are scaled: `conv`: those of convolutions' weights (the released
            code); `all`: all.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "ogm"
    title = "OGM"
    signal = "probability of the true class by each modality's own logits"
    ranges: ClassVar = {"alpha": Range(0.1, 1)}
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
        self.check_choice("parameters", parameters, Modulated)
        self.which: Modulated = parameters  # `parameters` is a method of every module

    def setup(self, model: FusionModel) -> None:
        """Refuses, by name, an encoder of which nothing would be scaled."""
        super().setup(model)
        check_modulated(self, model, self.which)

    def modulated(self, encoder: nn.Module) -> list[nn.Parameter]:
        """Weights of the encoder's convolutions, or all its parameters."""
        return modulated_parameters(encoder, self.which)

    def coefficients(self, steps: Sequence[Step]) -> Tensor:
        """k_m, (M,), of the global batch's scores: the mean, whose ratios are those of the sum."""
        return modulation_coefficients(self.scores(steps)[0], self.alpha)

    def clip_scores(self, step: Step) -> Tensor:
        """Probability of the true class by each modality's own logits."""
        return right_probabilities(step)


class OGMGE(OGM):
    """OGM with generalization enhancement (Peng et al. 2022).

    To every modulated gradient, also where k_m = 1, noise N(0, (std(g) + 1e-8)²) is added, with g that gradient before
    the modulation. All ranks add the same noise. Arguments and errors are those of `OGM`.
    """

    name = "ogm_ge"
    title = "OGM-GE"
    signal = "probability of the true class by each modality's own logits"
    ranges: ClassVar = {"alpha": Range(0.1, 1)}
    conflicts = frozenset({"ogm"})

    @torch.no_grad()
    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Multiplies the gradients in place, and adds noise."""
        gradients = itertools.chain(*self.gradients(steps[0].model)) if self.active(steps[0].epoch) else ()
        generator = torch.Generator(steps[-1].label.device).manual_seed(steps[-1].seed)
        noisy = [(gradient, gradient_noise(gradient, generator)) for gradient in gradients]
        super().on_gradients(steps)
        for gradient, noise in noisy:
            gradient.add_(noise)
