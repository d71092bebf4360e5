"""MIDAS: clips whose modalities come from two classes are labelled with both, as far as each modality is certain."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from amr.attribution import at_least_float32, other_clips
from amr.fusion.base import pool_tokens
from amr.model import FusionModel
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.losses.multi_loss import unimodal_losses
from amr.regularizers.shared import EpochMeans, UnimodalHeads, Window, recombined
from amr.utils.distributed import all_reduce_sum
from amr.utils.names.ranges import Range


def soft_targets(kept: Tensor, swapped: Tensor) -> Tensor:
    """Weight of the kept modalities' class and of the swapped one's, (N, 2), rows that sum to 1.

    Args:
        kept: Confidence of the kept modalities in their class, in [0, 1], (N,).
        swapped: Confidence of the swapped modality in its class, in [0, 1], (N,).
    """
    both = torch.stack([kept, swapped], dim=1)
    total = both.sum(1, keepdim=True)
    return torch.where(total > 0, both / torch.where(total > 0, total, 1.0), 0.5)


def misaligned_losses(logs: Tensor, classes: Tensor, targets: Tensor, weights: Tensor, similarity: Tensor) -> Tensor:
    """(1 + max(0, cos)) · Σ_k −w_k t_k log p[y_k], (N,): a weighted cross-entropy with two classes.

    Args:
        logs: Log-probabilities of the misaligned clips, (N, C).
        classes: y, the class of the kept modalities and of the swapped one, (N, 2) int64.
        targets: t, (N, 2).
        weights: w >= 1, (N, 2).
        similarity: Cosine of the swapped encoding and the clip's own, (N,).
    """
    return (1 + similarity.clamp_min(0.0)) * -(weights * targets * logs.gather(1, classes)).sum(1)


class MIDAS(Regularizer):
    """Misalignment-based data augmentation (Hwang, Choi, Whang 2025, MIDAS).

    L = CE + Σ_m CE_m + w L_mis, each modality by a linear classifier of its own. A misaligned clip has the encoding of
    one modality, drawn per step, from a clip of another class of the same rank and micro-batch. Its target is shared by
    both classes, in proportion to the confidence of the classifiers of the modalities that show them (the mean over the
    kept ones). The part of the weakest modality, whose classifier is least sure on all ranks' clips, has a weight that
    grows by `rate` times what the target gives that part beyond what the model gives it, never below 1. A clip counts
    up to twice where the swapped encoding is like its own. Clips that lack a modality are left out of L_mis.

    Args:
        weight: w, >= 0.
        rate: Growth of the weakest modality's weight per step, >= 0; 0 keeps it at 1.
        most: Largest weight of a modality, >= 1.
        start_epoch: First epoch with misaligned clips; before, the classifiers warm up.
        end_epoch: First epoch without them; None if there are until the end.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "midas"
    title = "MIDAS"
    signal = "confidence of each modality's classifier, and the similarity of swapped encodings"
    ranges: ClassVar = {"weight": Range(0.1, 4, "log")}
    reads = Regularizer.reads | {"on_gradients"}
    min_modalities = 2
    heads: UnimodalHeads
    means: EpochMeans
    weights: Tensor

    def __init__(
        self,
        weight: float = 1.0,
        rate: float = 0.1,
        most: float = 5.0,
        start_epoch: int = 5,
        end_epoch: int | None = None,
    ) -> None:
        super().__init__()
        self.check("weight", weight, weight >= 0, "a finite number >= 0")
        self.check("rate", rate, rate >= 0, "a finite number >= 0")
        self.check("most", most, most >= 1, "a finite number >= 1")
        self.weight, self.rate, self.most = weight, rate, most
        self.window = Window(self.name, start_epoch, end_epoch)
        self._seen: list[Tensor] = []  # of the micro-batches since the last step, (3, M) sums each

    def setup(self, model: FusionModel) -> None:
        """Makes the classifiers and the modalities' weights, which are in the checkpoint."""
        self.heads = UnimodalHeads(model)
        self.register_buffer("weights", torch.ones(len(model.modalities)))
        self.means = EpochMeans(f"weight/{name}" for name in model.modalities)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The classifiers' terms and, in the method's epochs, `misaligned`."""
        said = self.heads(step.encodings)
        terms = {f"unimodal/{name}": term for name, term in unimodal_losses(said, step).items()}
        self._seen.append(torch.zeros(4, len(said), device=step.label.device))
        if self.weight > 0 and step.epoch in self.window:
            loss = self._misaligned(step, {name: at_least_float32(each.detach()) for name, each in said.items()})
            terms |= {} if loss is None else {"misaligned": self.weight * loss}
        return terms

    def _misaligned(self, step: Step, said: dict[str, Tensor]) -> Tensor | None:
        names = step.model.modalities
        complete = step.has(names).all(0).nonzero()[:, 0]
        label = step.label[complete]
        generator = torch.Generator().manual_seed(step.seed)
        swapped = int(torch.randint(len(names), (), generator=generator))
        partner = other_clips(complete, 1, generator, labels=label)
        if not partner.numel() or not bool((partner >= 0).any()):
            return None
        rows = (partner[:, 0] >= 0).nonzero()[:, 0]
        first, second = complete[rows], complete[partner[rows, 0]]
        classes = torch.stack([step.label[first], step.label[second]], dim=1)
        right = torch.stack([said[n].softmax(1).gather(1, step.label.unsqueeze(1))[:, 0] for n in names], dim=1)
        others = [m for m in range(len(names)) if m != swapped]
        targets = soft_targets(right[first][:, others].mean(1), right[second, swapped])
        picks = {name: second if m == swapped else first for m, name in enumerate(names)}
        logs = at_least_float32(recombined(step.model, step.encodings, picks)).log_softmax(1)
        own = at_least_float32(pool_tokens(step.encodings[names[swapped]].detach()))
        weights = torch.stack([self.weights[others].mean(), self.weights[swapped]]).expand(len(rows), 2)
        with torch.no_grad():  # what `on_gradients` needs: by modality, how much the target is above the model
            gap = (targets - logs.exp().gather(1, classes)).sum(0)
            sums = self._seen[-1]
            sums[0], sums[1] = right[complete].sum(0), float(len(complete))
            sums[2, others], sums[2, swapped] = gap[0], gap[1]
            sums[3] = float(len(rows))
        return misaligned_losses(logs, classes, targets, weights, F.cosine_similarity(own[first], own[second])).mean()

    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Moves the weight of the weakest modality."""
        kept, self._seen = self._seen[-len(steps) :], []
        right, clips, gap, pairs = all_reduce_sum(torch.stack(kept).sum(0))
        if bool(pairs[0] > 0) and bool((right.isfinite() & gap.isfinite()).all()):
            weakest = int((right / clips.clamp_min(1)).argmin())
            moved = self.weights[weakest] + self.rate * gap[weakest] / pairs[weakest]
            self.weights[weakest] = moved.clamp(1.0, self.most)
        self.means.update(self.weights)
