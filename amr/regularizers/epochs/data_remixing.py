"""Data Remixing: each clip trains the one modality that is least certain of it, modality after modality."""

from typing import ClassVar

import torch
from torch import Tensor

from amr.attribution import at_least_float32
from amr.datamodules.selected import Copies
from amr.model import FusionModel
from amr.model.passes import Scores, Seen, presence
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.shared import UnimodalHeads, Window
from amr.utils.names.ranges import Range


def certainty(logits: Tensor) -> Tensor:
    """KL(p ‖ uniform) = log C − H(p) of each prediction, in nats: 0 for a uniform one, log C for a certain one.

    Args:
        logits: Logits, (..., C).

    Returns:
        (...), in float32 or better.
    """
    log_p = at_least_float32(logits).log_softmax(-1)
    classes = torch.tensor(float(logits.shape[-1]), dtype=log_p.dtype, device=log_p.device)
    return classes.log() + (log_p.exp() * log_p).sum(-1)


def remixed(certainties: Tensor, present: Tensor) -> Tensor:
    """The modality that each clip trains: of those that it has, the one that is least certain of it.

    Args:
        certainties: `certainty` of each modality's own prediction, (N, M).
        present: Boolean (N, M): which modalities each clip has; at least one.

    Returns:
        Index of the modality, (N,) int64; the first of equal ones.
    """
    return certainties.masked_fill(~present, torch.inf).argmin(1)


class DataRemixing(Regularizer):
    """Trains every clip on one modality alone after a warm-up, one modality after the other (Data Remixing 2025).

    A linear classifier per modality learns beside the fused head. Warm-up: the loss is CE + warm_up_weight Σ_m CE_m.
    Then, each epoch, a pass over the training clips gives each to the modality whose classifier is least certain of it.
    The epoch trains the last modality's clips first, then the others' in reverse order; a clip's other modalities count
    as missing, and its loss is CE + weight · CE_m. The classifiers are used in training only.

    Args:
        weight: Factor γ of the clip's unimodal cross-entropy, >= 0.
        warm_up_weight: Factor of the unimodal cross-entropies in the warm-up, >= 0.
        start_epoch: First epoch whose clips are remixed; the warm-up is before.
        end_epoch: First epoch whose clips are no longer remixed; None if they are until the end.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "data_remixing"
    title = "Data Remixing"
    signal = "certainty of each modality's classifier, per training clip"
    ranges: ClassVar = {"start_epoch": Range(0.1, 0.7, "epochs", least=1)}
    min_modalities = 2
    conflicts = frozenset({"mla"})  # whose turns train every modality on every batch
    heads: UnimodalHeads

    def __init__(
        self,
        weight: float = 1.0,
        warm_up_weight: float = 0.5,
        start_epoch: int = 10,
        end_epoch: int | None = None,
    ) -> None:
        super().__init__()
        for key, value in (("weight", weight), ("warm_up_weight", warm_up_weight)):
            self.check(key, value, value >= 0, "a finite number >= 0")
        self.weight, self.warm_up_weight = weight, warm_up_weight
        self.window = Window(self.name, start_epoch, end_epoch)
        self._counts: dict[str, int] = {}

    def setup(self, model: FusionModel) -> None:
        """Makes the classifiers."""
        self.heads = UnimodalHeads(model)

    def select(self, epoch: int, scores: Scores) -> Copies | None:
        """Each clip once, with one modality, in one part of the epoch per modality."""
        self._counts = {}
        if epoch not in self.window:
            return None
        values = scores.each(self._certainties)
        chosen = remixed(values["certainty"], values["present"])
        self._counts = {f"clips/{name}": int((chosen == m).sum()) for m, name in enumerate(scores.modalities)}
        present = {name: chosen == m for m, name in enumerate(scores.modalities)}
        return Copies(torch.arange(len(scores)), present, part=len(scores.modalities) - 1 - chosen)

    def _certainties(self, seen: Seen) -> dict[str, Tensor]:
        logits = self.heads(seen.encodings)
        return {"certainty": torch.stack([certainty(own) for own in logits.values()], 1), "present": presence(seen)}

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Each modality's own cross-entropy: a sum over the clips that have it, divided by the batch size."""
        weight = self.weight if step.epoch in self.window else self.warm_up_weight
        logits = self.heads(step.encodings)
        masks = zip(logits.items(), step.has([*logits]), strict=True)
        each = {name: step.cross_entropy(at_least_float32(own), "none") * has for (name, own), has in masks}
        return {name: weight * term.mean() for name, term in each.items()}

    def report(self) -> dict[str, float]:
        """Number of clips that train each modality."""
        return dict(self._counts)
