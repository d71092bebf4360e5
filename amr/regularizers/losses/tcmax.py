"""TCMax: the right class and the right pairing together must win over all classes of all re-paired clips."""

import math
from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor

from amr.attribution import at_least_float32
from amr.model import FusionModel
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.shared import Window, recombined


def additive_log_partition(parts: Mapping[str, Tensor]) -> Tensor:
    """Log of the mean over all B^M tuples of clips of Σ_c exp F[c], for logits F that are sums of the modalities'.

    The sum over tuples factors: log Σ_c Π_m Σ_j exp f_m(j)[c] − M log B, in O(B M C).

    Args:
        parts: f_m, each modality's part of the logits, (B, C).

    Returns:
        Scalar.
    """
    totals = torch.stack([torch.logsumexp(part, dim=0) for part in parts.values()])  # (M, C)
    rows = len(next(iter(parts.values())))
    return torch.logsumexp(totals.sum(0), dim=0) - len(parts) * math.log(rows)


def log_partition(logits: Tensor) -> Tensor:
    """Log of the mean over N tuples of clips of Σ_c exp F[c], a scalar, of their logits F, (N, C)."""
    return torch.logsumexp(logits.flatten(), dim=0) - math.log(len(logits))


def tuples(rows: int, modalities: int, most: int, generator: torch.Generator) -> Tensor:
    """Tuples of clips, one per modality: all B^M if there are at most `most`, otherwise `most` random ones.

    Args:
        rows: B.
        modalities: M.
        most: Most tuples.
        generator: Source of the draws, on the device of the result.

    Returns:
        Indices, (N, M).
    """
    device = generator.device
    if rows**modalities <= most:
        return torch.tensor(list(product(range(rows), repeat=modalities)), device=device)
    return torch.randint(rows, (most, modalities), generator=generator, device=device)


class TCMax(Regularizer):
    """Replaces the cross-entropy by a bound on the total correlation of encodings and label (TCMax 2026).

    L = −mean_i [F_ii[y_i]] + log mean_{j,k} Σ_c exp F_jk[c], where F_jk are the logits of modality a of clip j with v
    of clip k. The mean over pairs in place of the paper's sum takes a constant out, so that a batch of one clip has its
    cross-entropy. Exact where the logits are a sum of the modalities' (Concat, Sum, Late, Shared without a joint hidden
    layer); otherwise over `samples` random tuples. Tuples are drawn within a rank, and within a micro-batch. Clips that
    lack a modality are not re-paired and keep the cross-entropy.

    Args:
        samples: Most tuples per batch of a head that is not a sum, >= 1; all of them where they are no more.
        start_epoch: First epoch in which it acts; before, it is naive fusion.
        end_epoch: First epoch in which it no longer acts; None if it acts until the end.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "tcmax"
    title = "TCMax"
    signal = "logits of all re-paired clips of the batch"
    min_modalities = 2
    # They change what the head sees of a clip, and the re-paired clips' logits would be of other encodings.
    conflicts = frozenset({"dropout", "modality_dropout", "mla"})

    def __init__(self, samples: int = 1024, start_epoch: int = 0, end_epoch: int | None = None) -> None:
        super().__init__()
        self.check("samples", samples, samples >= 1, "an integer >= 1")
        self.samples, self.window = samples, Window(self.name, start_epoch, end_epoch)

    def main_loss(self, step: Step) -> Tensor | None:
        """The bound; None out of its epochs."""
        if step.epoch not in self.window:
            return None
        complete = step.has(step.model.modalities).all(0)
        plain = step.cross_entropy(at_least_float32(step.logits), reduction="none")
        rows = int(complete.sum())
        if rows == 0:
            return plain.mean()
        right = plain[complete] - torch.logsumexp(at_least_float32(step.logits[complete]), dim=1)  # −F[y], smoothed
        encodings = {name: encoding[complete] for name, encoding in step.encodings.items()}
        joint = right.sum() + rows * self._log_partition(step.model, encodings, step.seed)
        return (joint + plain[~complete].sum()) / len(plain)

    def _log_partition(self, model: FusionModel, encodings: dict[str, Tensor], seed: int) -> Tensor:
        parts = model.head.additive_logits(encodings)
        if parts is not None:
            return additive_log_partition({name: at_least_float32(part) for name, part in parts.items()})
        first = next(iter(encodings.values()))
        generator = torch.Generator(first.device).manual_seed(seed)
        picks = tuples(len(first), len(encodings), self.samples, generator)
        return log_partition(
            at_least_float32(recombined(model, encodings, dict(zip(encodings, picks.unbind(1), strict=True))))
        )
