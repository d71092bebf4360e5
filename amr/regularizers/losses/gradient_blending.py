"""Gradient-Blending: one loss per modality and the fused one, weighted by how well each generalizes."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from amr.attribution import at_least_float32
from amr.model import FusionModel
from amr.model.batches import made_up
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.shared import UnimodalHeads, global_means
from amr.utils.errors import UserError
from amr.utils.names.ranges import Range

Mode = Literal["online", "offline"]
FUSED = "fused"


def blend_weights(generalization_gain: Tensor, overfitting_growth: Tensor) -> Tensor:
    """Weights of K losses, w_k ∝ G_k / O_k² (Wang et al. 2020).

    They are computed as a softmax of log G − 2 log |O|, so nothing overflows however small O is. A head whose held-out
    loss did not drop (G <= 0) gets 0. O = 0 is the limit: the heads with O = 0 and G > 0 share all the weight in
    proportion to their G. If no head's held-out loss dropped, there is nothing to prefer, and the weights are equal.

    Args:
        generalization_gain: G, drop of each held-out loss, (K,).
        overfitting_growth: O, growth of each gap between held-out and training loss, (K,); its sign does not matter.

    Returns:
        Weights >= 0 of shape (K,) that sum to 1.

    Raises:
        ValueError: If the shapes are not the same (K,), or an entry is not finite.
    """
    gain, growth = generalization_gain.detach().double(), overfitting_growth.detach().double()
    if gain.ndim != 1 or gain.shape != growth.shape or len(gain) == 0:
        raise ValueError(f"gain and growth: shapes {tuple(gain.shape)}, {tuple(growth.shape)}; must be one (K,)")
    if not bool((gain.isfinite() & growth.isfinite()).all()):
        raise ValueError(f"gain={gain.tolist()}, growth={growth.tolist()}: every entry must be finite")
    gained, perfect = gain > 0, (gain > 0) & (growth == 0)
    if bool(perfect.any()):
        gained, growth = perfect, torch.ones_like(growth)
    scores = (gain.log() - 2 * growth.abs().log()).masked_fill(~gained, -torch.inf)
    weights = scores.softmax(0) if bool(gained.any()) else torch.full_like(gain, 1 / len(gain))
    return weights.to(generalization_gain.dtype if generalization_gain.is_floating_point() else torch.float32)


def held_out_rows(ids: Sequence[str], fraction: float) -> list[bool]:
    """Whether each clip is held out, by a hash of its id: the same on every machine, in every run and epoch."""
    limit = fraction * 2**64
    return [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < limit for name in ids]


class GradientBlending(Regularizer):
    """Trains Σ_k w_k L_k over one head per modality and the fused one (Wang, Tran, Feiszli 2020).

    A fraction of the training clips, chosen by a hash of their names, is held out of every loss here; its losses are
    measured in the training pass. Each super-epoch gives the weights of the next: `blend_weights` of how much each
    head's held-out loss dropped and its gap to the training loss grew. Until then they are equal.

    Args:
        mode: `online`: estimated at the end of each super-epoch; `offline`: once, at the end of the first, after which
            the held-out clips are trained on too. Training continues from there: it does not start again, as the
            paper's does; for that pass the weights of one run to a second.
        super_epoch: Epochs a super-epoch, >= 2. The first is measured from the means of its first epoch, the others
            from those of the last epoch before them.
        held_out: Fraction of the training clips that is held out, in (0, 1).
        weights: Constant weights, >= 0, of each modality and `fused`; nothing is held out or estimated then. They are
            used as they are: those of the paper sum to 1.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "gradient_blending"
    title = "G-Blend"
    signal = "each head's loss on held-out training clips and on the rest"
    ranges: ClassVar = {"super_epoch": Range(0.1, 0.5, "epochs", least=2)}
    several_labels = True
    min_modalities = 2

    def __init__(
        self,
        mode: Mode = "online",
        super_epoch: int = 10,
        held_out: float = 0.1,
        weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.check_choice("mode", mode, Mode)
        self.check("super_epoch", super_epoch, super_epoch >= 2, "an integer >= 2")
        self.check("held_out", held_out, 0 < held_out < 1, "a value in (0, 1)")
        for head, weight in (weights or {}).items():
            self.check(f"weights.{head}", weight, weight >= 0, "a finite number >= 0")
        self.mode, self.super_epoch, self.held_out, self.constant = mode, super_epoch, held_out, weights
        self._epochs = 0  # finished ones
        self._warned = False

    def setup(self, model: FusionModel) -> None:
        """Makes the heads, and the buffers in which losses are summed."""
        if FUSED in model.modalities:
            raise UserError(f"model.gradient_blending: {FUSED!r} is the fused head; give that modality another name")
        names = (*model.modalities, FUSED)
        self.check_names("weights", self.constant, names, what="")
        self.names = names
        self.heads = UnimodalHeads(model)
        initial = [1 / len(names) if self.constant is None else self.constant[name] for name in names]
        self.register_buffer("weights", torch.tensor(initial))
        # Rows: training and held-out part; columns: heads. All are sums over ranks, and so the same on each.
        for buffer, value in (("sums", 0.0), ("counts", 0.0), ("reference", torch.nan)):
            self.register_buffer(buffer, torch.full((2, len(names)), value))

    @property
    def measuring(self) -> bool:
        """Whether clips are held out at present."""
        return self.constant is None and (self.mode == "online" or self._epochs < self.super_epoch)

    def main_loss(self, step: Step) -> Tensor:
        """Weighted sum of each head's mean loss over the trained clips of the global batch."""
        logits = {**self.heads(step.encodings), FUSED: step.logits}
        # (K, B); a clip that lacks a modality has no place in that modality's loss
        each = torch.stack([step.cross_entropy(at_least_float32(logits[name]), "none") for name in self.names])
        has, held = step.has(self.names), torch.zeros_like(each[0], dtype=torch.bool)
        if self.measuring:
            if made_up(step.id):  # another clip has the name in the next epoch
                raise UserError(
                    "batch: it has no 'id', by which model.gradient_blending holds the same clips out always"
                )
            held = torch.tensor(held_out_rows(step.id, self.held_out), device=each.device)
        terms, sums, counts = global_means(torch.cat([each, each]), torch.cat([has & ~held, has & held]))
        if self.measuring:
            self.get_buffer("sums").add_(sums.view(2, -1))
            self.get_buffer("counts").add_(counts.view(2, -1))
        means = terms[: len(self.names)]
        if not self.measuring:  # the fused mean is the main loss: a weight of 1 leaves it to the last bit
            means = torch.cat([means[:-1], step.loss.view(1)])
        return (self.get_buffer("weights") * means).sum()

    def on_epoch_end(self, state: Mapping[str, Tensor]) -> None:
        """Ends the epoch's measurement and, with it, perhaps a super-epoch."""
        if not self.measuring:
            return
        sums, counts, reference = self.get_buffer("sums"), self.get_buffer("counts"), self.get_buffer("reference")
        means = sums / counts  # NaN without clips
        self._epochs += 1
        if self._epochs % self.super_epoch == 0:
            self._estimate(reference.cpu(), means.cpu())
        if self._epochs == 1 or self._epochs % self.super_epoch == 0:
            reference.copy_(means)
        sums.zero_()
        counts.zero_()

    def report(self) -> dict[str, float]:
        """The weights by head, as they are after the epoch."""
        return dict(zip(self.names, self.get_buffer("weights").tolist(), strict=True))

    def checkpoint_state(self) -> dict[str, object]:
        """How many epochs have been measured."""
        return {"epochs": self._epochs}

    def restore_state(self, state: Mapping[str, object]) -> None:
        """Continues counting epochs."""
        self._epochs = cast(int, state["epochs"])

    def _estimate(self, before: Tensor, after: Tensor) -> None:
        """New weights from the mean losses, (2, K), at both ends of a super-epoch."""
        gain = before[1] - after[1]
        growth = (after[1] - after[0]) - (before[1] - before[0])
        if bool((gain.isfinite() & growth.isfinite()).all()):
            self.get_buffer("weights").copy_(blend_weights(gain, growth))
        elif not self._warned:
            self._warned = True
            warnings.warn(
                "gradient_blending: a head's training or held-out part had no clip, or its loss was not finite; the "
                "weights stay as they are. Is model.gradient_blending.held_out too small for this data?",
                stacklevel=2,
            )
