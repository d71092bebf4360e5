"""G2D: unimodal teachers are distilled, and the encoder whose teacher is the more certain waits."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from amr.model import FusionModel
from amr.regularizers.base import Step
from amr.regularizers.gradients.ogm import Modulated, check_modulated, modulated_parameters
from amr.regularizers.losses.umt import UMT, distillation_loss, teacher_divergences
from amr.regularizers.shared import EpochMeans, Window
from amr.utils.distributed import all_reduce_sum
from amr.utils.names.ranges import Range


def suppressed(confidence: Tensor) -> Tensor:
    """Factor of each encoder's gradient, (M,): 0 for the modality with the largest confidence, (M,), else 1."""
    factors = torch.ones_like(confidence)
    factors[confidence.argmax()] = 0.0
    return factors


class G2D(UMT):
    """Gradient-guided distillation (G2D 2025).

    L = CE + w_p Σ_m KL(teacher_m ‖ fused prediction) + w_f Σ_m MSE(e^m, teacher's e^m). In its epochs, the encoder of
    the modality whose teacher gives the true classes the most probability, summed over the batch, gets its gradients
    times 0. Weight decay and momentum still act on it. Of clips that lack a modality nothing is summed.

    Args:
        teachers: Path of a checkpoint with that modality alone, or in Python the model itself, for every modality.
        features_weight: w_f, >= 0.
        predictions_weight: w_p, >= 0.
        start_epoch: First epoch in which an encoder waits.
        end_epoch: First epoch in which none does; the authors take half of their 300 epochs. None if it acts until the
            end.
        parameters: Gradients of an encoder that are zeroed: `conv`: those of convolutions' weights (the released
            code); `all`: all.

    Raises:
        UserError: If an argument is out of its range, or a modality has no teacher.
    """

    name = "g2d"
    title = "G2D"
    signal = "each teacher's probability of the true class"
    ranges: ClassVar = {"features_weight": Range(0.1, 10, "log"), "end_epoch": Range(0.25, 1, "epochs", least=1)}
    order = 60
    conflicts = frozenset({"umt"})
    scales_gradients = True
    means: EpochMeans

    def __init__(
        self,
        teachers: dict[str, Any],
        features_weight: float = 1.0,
        predictions_weight: float = 1.0,
        start_epoch: int = 0,
        end_epoch: int | None = 150,
        parameters: Modulated = "conv",
    ) -> None:
        super().__init__(teachers, features_weight, predictions_weight)
        self.check_choice("parameters", parameters, Modulated)
        self.which: Modulated = parameters  # `parameters` is a method of every module
        self.window = Window(self.name, start_epoch, end_epoch)
        self._confidence: list[Tensor] = []  # of the micro-batches since the last step, (M,) each

    def setup(self, model: FusionModel) -> None:
        """Loads the teachers, one of each modality, and refuses an encoder of which nothing would be zeroed."""
        self.check_names("teachers", self.teachers, model.modalities)
        super().setup(model)
        check_modulated(self, model, self.which)
        self.means = EpochMeans(f"k/{name}" for name in model.modalities)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """`features` and `predictions`; the teachers' confidence in the true classes is kept for `on_gradients`."""
        encodings, logits = self.teach(step, predictions=True)
        rows = step.label.unsqueeze(1)
        right = [logits[name].float().softmax(1).gather(1, rows)[:, 0] for name in step.model.modalities]
        complete = step.has(step.model.modalities).all(0)
        self._confidence.append((torch.stack(right) * complete).sum(1))
        terms: dict[str, Tensor] = {}
        if self.features_weight > 0:
            students = {name: step.encodings[name] for name in encodings}
            terms["features"] = self.features_weight * distillation_loss(students, encodings)
        if self.predictions_weight > 0:
            divergences, _ = teacher_divergences(step.logits, logits, step.present)
            terms["predictions"] = self.predictions_weight * divergences.sum(0).mean()  # UMT's is a mean over teachers
        return terms

    @torch.no_grad()
    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Zeroes the gradients of the encoder that waits."""
        kept, self._confidence = self._confidence[-len(steps) :], []
        factors = torch.ones_like(self.means.sums)
        if steps[0].epoch in self.window:
            factors = suppressed(all_reduce_sum(torch.stack(kept).sum(0))).to(factors)
            for factor, encoder in zip(factors, steps[0].model.encoders.values(), strict=True):
                for parameter in modulated_parameters(encoder, self.which):
                    if parameter.grad is not None:
                        parameter.grad.mul_(factor)
        self.means.update(factors)
