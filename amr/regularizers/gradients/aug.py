"""AUG: the modalities take turns, and the weaker one's part of the head grows."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amr.attribution import at_least_float32
from amr.fusion.base import Fusion, pool_all
from amr.fusion.shared import Shared
from amr.model import FusionModel
from amr.regularizers.base import EpochState, Regularizer, Step
from amr.regularizers.shared import EpochMeans, Window, global_means
from amr.utils.distributed import mean_over_ranks
from amr.utils.errors import UserError
from amr.utils.names.ranges import Range


def residual_weights(older: Tensor, label: Tensor, residual: float) -> Tensor:
    """1 − λ q[y], (B,): how much the newest block has to learn of a clip, q = softmax of the older blocks, detached.

    CE(newest, y) − λ CE(newest, y ⊙ q) of the released code is this times CE(newest, y).

    Args:
        older: Logits of all blocks but the newest, (B, C).
        label: Class indices, (B,).
        residual: λ, in [0, 1].
    """
    right = at_least_float32(older).detach().softmax(1).gather(1, label.unsqueeze(1))[:, 0]
    return 1 - residual * right


def weaker(scores: Tensor, tolerance: float) -> int | None:
    """Index of the modality with the smallest score, (M,); None if the largest is within 1 + `tolerance` of it."""
    low, high = float(scores.min()), float(scores.max())
    return int(scores.argmin()) if high > (1 + tolerance) * low else None


class BoostedHead(Fusion):
    """Blocks of each modality before one classifier: f_m = Σ_k (W relu(U_mk e^m + c_mk) + b), over the grown blocks.

    Logits are Σ_m w_m f_m. The penultimate features are Σ_k relu(...) of each modality, side by side, (B, M H). All
    blocks exist from the start, so that an optimizer and a checkpoint know them; `grown` says how many count.

    Args:
        dims: Encoding size of each modality.
        num_classes: Number of classes C.
        width: H, units of a block.
        most: Most blocks per modality.
        weights: w_m; they sum to 1.
    """

    grown: Tensor

    def __init__(
        self, dims: Mapping[str, int], num_classes: int, width: int, most: int, weights: Mapping[str, float]
    ) -> None:
        super().__init__(dims, num_classes, width)
        del self.hidden  # each modality has blocks of its own
        self.width, self.weights = width, dict(weights)
        self.blocks = nn.ModuleDict(
            {name: nn.ModuleList(nn.Linear(size, width) for _ in range(most)) for name, size in dims.items()}
        )
        for blocks in self.blocks.values():
            for block in list(cast(nn.ModuleList, blocks))[1:]:
                nn.init.xavier_normal_(block.get_parameter("weight"))
                nn.init.zeros_(block.get_parameter("bias"))
        self.register_buffer("grown", torch.ones(len(dims)))

    def features(self, name: str, encoding: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_k relu(...) of a modality's grown blocks and that of the newest one, (B, H) each, of (B, D_m)."""
        grown = self.grown[[*self.dims].index(name)]
        total = newest = encoding.new_zeros(())
        for k, block in enumerate(cast(nn.ModuleList, self.blocks[name])):
            out = F.relu(block(encoding))
            total = total + out * (grown > k).to(out)
            newest = newest + out * (grown == k + 1).to(out)
        return total, newest

    def logits_of(self, features: Tensor, blocks: Tensor | float) -> Tensor:
        """W features + (number of blocks) b, (B, C), of features (B, H)."""
        return F.linear(features, self.classifier.weight) + blocks * self.classifier.bias

    def fuse(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Each modality's features side by side, (B, M H)."""
        pooled = pool_all(encodings, self.dims)
        return torch.cat([self.features(name, encoding)[0] for name, encoding in pooled.items()], dim=1)

    def classify(self, fused: Tensor) -> Tensor:
        """Logits, (B, C), of penultimate features (B, M H)."""
        each = self._classify_each(fused)
        return torch.stack([self.weights[name] * logits for name, logits in each.items()]).sum(0)

    @property
    def additive(self) -> bool:
        """True: each modality has blocks of its own."""
        return True

    def unimodal_logits(self, encodings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """f_m, (B, C), of each modality."""
        return self._classify_each(self.fuse(encodings))

    def additive_logits(self, encodings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """w_m f_m, (B, C), whose sum is the head's logits."""
        return {name: self.weights[name] * logits for name, logits in self.unimodal_logits(encodings).items()}

    def _classify_each(self, fused: Tensor) -> dict[str, Tensor]:
        parts = zip(self.dims, torch.split(fused, self.width, dim=1), self.grown, strict=True)
        return {name: self.logits_of(part, grown.to(part)) for name, part, grown in parts}


class AUG(Regularizer):
    """Sustained boosting with an adaptive classifier (Jiang et al. 2025, AUG).

    Every modality has a ReLU block of its own before a shared classifier (`BoostedHead`), and a turn in each batch:
    CE(f_m, y) moves its encoder, its blocks and the classifier. Every `every` epochs the modality that gives the true
    classes the least probability over the epoch's training clips gets a further block, unless all are within
    `tolerance`. With more than one block, the turn's loss is CE(all blocks) + CE(all but the newest) + mean_i (1 − λ
    q_i[y]) CE_i(newest), q the older blocks' prediction. Needs the fusion `Shared` without a hidden layer, which it
    replaces, and one batch per optimizer step.

    Args:
        width: Units of a block, >= 1.
        every: A block may be added after this many epochs, again and again, >= 1; the authors take 20 of 200.
        most: Most blocks per modality, >= 1.
        tolerance: The strongest modality may have this much more of the true class than the weakest, >= 0.
        residual: λ, in [0, 1].
        weights: Weight of each modality in the prediction, > 0; they are divided by their sum. None for equal ones.
        start_epoch: First epoch after which a block may be added.
        end_epoch: First epoch after which none is added any more; None if there is none.

    Raises:
        UserError: If an argument is out of its range, or the fusion is another one.
    """

    name = "aug"
    title = "AUG"
    signal = "probability of the true class by each modality over an epoch"
    ranges: ClassVar = {"every": Range(0.05, 0.3, "epochs", least=1)}
    min_modalities = 2
    # What these do to the fused prediction is not what a turn learns from; encoders that wait are moved by InfoReg;
    # Data Remixing leaves the turn's modality out of half of the batches; two heads cannot be wrapped.
    conflicts = frozenset(
        {"dropout", "modality_dropout", "opm", "amco", "dgl", "info_reg", "data_remixing", "mmcosine"}
    )
    means: EpochMeans

    def __init__(
        self,
        width: int = 256,
        every: int = 20,
        most: int = 10,
        tolerance: float = 0.01,
        residual: float = 0.5,
        weights: dict[str, float] | None = None,
        start_epoch: int = 0,
        end_epoch: int | None = None,
    ) -> None:
        super().__init__()
        for key, value in (("width", width), ("every", every), ("most", most)):
            self.check(key, value, value >= 1, "an integer >= 1")
        self.check("tolerance", tolerance, tolerance >= 0, "a finite number >= 0")
        self.check("residual", residual, 0 <= residual <= 1, "a value in [0, 1]")
        for weight in (weights or {}).values():
            self.check("weights", weight, weight > 0, "positive, finite numbers")
        self.width, self.every, self.most = width, every, most
        self.tolerance, self.residual, self.weights = tolerance, residual, weights
        self.window = Window(self.name, start_epoch, end_epoch)

    def wrap_head(self, head: Fusion) -> Fusion:
        """The head with blocks, in place of `Shared`."""
        if not isinstance(head, Shared) or not isinstance(head.hidden, nn.Identity):
            raise UserError(
                f"model.aug: needs the fusion Shared without a hidden layer, not {type(head).__name__}; "
                "set --model.fusion amr.fusion.Shared"
            )
        self.check_names("weights", self.weights, [*head.dims])
        given = self.weights or dict.fromkeys(head.dims, 1.0)
        weights = {name: given[name] / sum(given.values()) for name in head.dims}
        return BoostedHead(head.dims, head.num_classes, self.width, self.most, weights)

    def setup(self, model: FusionModel) -> None:
        """Makes room for the epoch's scores."""
        self.modalities = model.modalities
        self.means = EpochMeans([*(f"right/{m}" for m in model.modalities), *(f"blocks/{m}" for m in model.modalities)])

    def turns(self, epoch: int) -> Sequence[Sequence[str]]:
        """One turn per modality, in the model's order."""
        return [(name,) for name in self.modalities]

    def main_loss(self, step: Step) -> Tensor:
        """The turn's modality's loss: its mean over the clips of all ranks that have it."""
        assert step.turn is not None
        (name,) = step.turn
        head = _boosted(step.model)
        encoding = pool_all(step.encodings, head.dims)[name]
        total, newest = head.features(name, encoding)
        grown = head.grown[[*head.dims].index(name)].to(total)
        logits = head.logits_of(total, grown)
        each = step.cross_entropy(at_least_float32(logits), reduction="none")
        if float(grown) > 1:
            older, last = head.logits_of(total - newest, grown - 1), head.logits_of(newest, 1.0)
            weights = residual_weights(older, step.label, self.residual)
            each = each + step.cross_entropy(at_least_float32(older), reduction="none")
            each = each + weights * step.cross_entropy(at_least_float32(last), reduction="none")
        means, _, _ = global_means(each.unsqueeze(0), step.has([name]))
        return means[0] + 0 * step.logits.sum()  # every parameter of the head is in the graph, as DDP needs it

    @torch.no_grad()
    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Keeps blocks that no loss reaches from moving, and notes how well the turn's modality does."""
        step = steps[-1]
        head = _boosted(step.model)
        for parameter in head.blocks.parameters():
            if parameter.grad is not None and not parameter.grad.any():
                parameter.grad = None  # neither momentum nor weight decay moves it
        if step.turn is None:
            return
        (name,) = step.turn
        encodings = {m: at_least_float32(e) for m, e in step.encodings.items()}
        with torch.autocast(step.label.device.type, enabled=False):
            logits = head.unimodal_logits(encodings)[name]
        right = logits.softmax(1).gather(1, step.label.unsqueeze(1))[step.has([name])[0]]
        mean, count = mean_over_ranks(right)
        index, modalities = self.modalities.index(name), len(self.modalities)
        weights = F.one_hot(torch.tensor([index, modalities + index]), 2 * modalities).to(count).T
        values = torch.cat([mean.expand(modalities), head.grown.to(mean)])
        self.means.update(values, (weights * torch.stack([count, torch.ones_like(count)])).sum(1))

    def on_epoch_end(self, state: EpochState) -> None:
        """Adds a block to the weaker modality, where it is time."""
        head = _boosted(state.model)
        scores = self.means.compute()[: len(self.modalities)]
        if (state.epoch + 1) % self.every or state.epoch not in self.window or not scores.isfinite().all():
            return
        index = weaker(scores, self.tolerance)
        if index is not None and head.grown[index] < self.most:
            head.grown[index] += 1


def _boosted(model: FusionModel) -> BoostedHead:
    assert isinstance(model.head, BoostedHead)
    return model.head
