"""MCR: makes every modality matter, by the change of the prediction when its encoding is another clip's."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amr.attribution import at_least_float32, jensen_shannon
from amr.fusion.base import pool_all
from amr.model import FusionModel
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.losses.multi_loss import unimodal_losses
from amr.regularizers.shared import UnimodalHeads, Window, recombined
from amr.utils.errors import UserError
from amr.utils.names.ranges import Range

Game = Literal["greedy", "independent", "collaborative"]


def game_terms(game: Game, modalities: tuple[str, ...]) -> dict[tuple[str, str | None], float]:
    """Factor of each D_m^j, by (m, j): m is re-paired, and only j's encodings carry gradient; None: all of them do.

    greedy: Σ_m (−D_m^m + mean_{j≠m} D_m^j), every encoder for itself and against the others; independent: −Σ_m D_m^m;
    collaborative: −Σ_m D_m.
    """
    if game == "collaborative":
        return {(m, None): -1.0 for m in modalities}
    terms: dict[tuple[str, str | None], float] = {(m, m): -1.0 for m in modalities}
    if game == "greedy":
        terms |= {(m, j): 1 / (len(modalities) - 1) for m in modalities for j in modalities if j != m}
    return terms


def supervised_contrast(features: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2), a scalar; a row without a partner does not count.

    Args:
        features: (N, D); brought to length 1.
        label: Class indices, (N,).
        temperature: > 0.
    """
    unit = F.normalize(features, dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    similarity = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)
    logs = (similarity - torch.logsumexp(similarity, dim=1, keepdim=True)).masked_fill(itself, 0.0)
    partners = (label.unsqueeze(1) == label) & ~itself
    counts = partners.sum(1)
    rows = counts > 0
    each = -(logs * partners).sum(1) / counts.clamp_min(1)
    return each[rows].sum() / rows.sum().clamp_min(1)


class MCR(Regularizer):
    """Multimodal competition regularizer (MCR 2025): CE + u Σ_m CE_m + l Σ ± D_m + c L_con + l L_CEB.

    D_m is the mean, over clips and over K permutations of the batch, of the Jensen-Shannon divergence between the
    prediction with modality m of another clip and the clip's own prediction, detached; `game_terms` says which of them
    each encoder raises or lowers. L_con is a supervised contrastive loss over all modalities' encodings; L_CEB the mean
    squared error of the encodings as a small network predicts them from the detached logits. Permutations are within a
    rank and a micro-batch, and of clips that have every modality.

    Args:
        game: greedy, independent or collaborative.
        weight: l, of the game and of L_CEB, >= 0.
        unimodal_weight: u, >= 0.
        contrast_weight: c, >= 0; it needs encodings of one size.
        permutations: K, >= 1. A step costs K rows of the head per term of the game and clip.
        temperature: Temperature of L_con, > 0.
        start_epoch: First epoch in which it acts; before, it is naive fusion.
        end_epoch: First epoch in which it no longer acts; None if it acts until the end.

    Raises:
        UserError: If an argument is out of its range, or the encodings differ in size and `contrast_weight` is not 0.
    """

    name = "mcr"
    title = "MCR"
    signal = "how far the prediction moves when a modality is replaced by another clip's"
    ranges: ClassVar = {"weight": Range(0.01, 1, "log")}
    min_modalities = 2
    heads: UnimodalHeads

    def __init__(
        self,
        game: Game = "greedy",
        weight: float = 0.1,
        unimodal_weight: float = 0.01,
        contrast_weight: float = 1.0,
        permutations: int = 32,
        temperature: float = 0.5,
        start_epoch: int = 0,
        end_epoch: int | None = None,
    ) -> None:
        super().__init__()
        self.check_choice("game", game, Game)
        for key, value in (
            ("weight", weight),
            ("unimodal_weight", unimodal_weight),
            ("contrast_weight", contrast_weight),
        ):
            self.check(key, value, value >= 0, "a finite number >= 0")
        self.check("permutations", permutations, permutations >= 1, "an integer >= 1")
        self.check("temperature", temperature, temperature > 0, "a positive, finite number")
        self.game: Game = game
        self.weight, self.unimodal_weight, self.contrast_weight = weight, unimodal_weight, contrast_weight
        self.permutations, self.temperature = permutations, temperature
        self.window = Window(self.name, start_epoch, end_epoch)

    def setup(self, model: FusionModel) -> None:
        """Makes the unimodal classifiers and the network of L_CEB."""
        sizes = model.head.dims
        if self.contrast_weight > 0 and len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise UserError(
                f"model.mcr.contrast_weight={self.contrast_weight}: must be 0 where the encodings differ in size; "
                f"they have {listed}"
            )
        total = sum(sizes.values())
        self.heads = UnimodalHeads(model)
        self.decoder = nn.Sequential(nn.Linear(model.head.num_classes, total), nn.ReLU(), nn.Linear(total, total))

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The terms; zeros out of the method's epochs, which keep its parameters in the graph."""
        complete = step.has(step.model.modalities).all(0)
        encodings = {name: encoding[complete] for name, encoding in step.encodings.items()}
        pooled = {name: at_least_float32(each) for name, each in pool_all(encodings, step.model.head.dims).items()}
        terms = {
            f"unimodal/{m}": self.unimodal_weight * term
            for m, term in unimodal_losses(self.heads(step.encodings), step).items()
        }
        guess = self.decoder(at_least_float32(step.logits[complete].detach()))
        target = torch.cat([*pooled.values()], dim=1)
        terms["bottleneck"] = self.weight * (guess - target).square().sum() / max(target.numel(), 1)
        if step.epoch not in self.window:
            return {key: 0 * term for key, term in terms.items()}
        if self.contrast_weight > 0:
            features = torch.cat([*pooled.values()])
            labels = step.label[complete].repeat(len(pooled))
            terms["contrast"] = self.contrast_weight * supervised_contrast(features, labels, self.temperature)
        if self.weight > 0 and int(complete.sum()) > 1:
            terms["game"] = self.weight * self._game(step, encodings)
        return terms

    def _game(self, step: Step, encodings: Mapping[str, Tensor]) -> Tensor:
        model, rows = step.model, len(next(iter(encodings.values())))
        reference = at_least_float32(recombined(model, encodings, {}).detach())
        device = reference.device
        generator = torch.Generator(device).manual_seed(step.seed)
        draws = [torch.randperm(rows, generator=generator, device=device) for _ in range(self.permutations)]
        order, same = torch.cat(draws), torch.arange(rows, device=device).repeat(self.permutations)
        total = reference.new_zeros(())
        for (changed, moving), factor in game_terms(self.game, model.modalities).items():
            picks = {name: order if name == changed else same for name in model.modalities}
            detach = [] if moving is None else [name for name in model.modalities if name != moving]
            logits = at_least_float32(recombined(model, encodings, picks, detach))
            total = total + factor * jensen_shannon(logits, reference.repeat(self.permutations, 1)).mean()
        return total
