"""The decision-time dial: a trained model's logits with each modality's part weighted after training.

It is the control for every dial that is set in training: a method that moves decisions must do better than this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from amr.attribution import absolute_shares, class_score, shapley_values, undisturbed
from amr.evaluation import use
from amr.evaluation.table import Table
from amr.model import device_of
from amr.model.protocol import Explained

STEPS = 10
"""Steps of the weight from 0 to 1."""
_CLIPS = 1024  # at a time
_ROUNDING = 1e-12  # of the logits: less than this is not moved by any modality


@dataclass(frozen=True, eq=False)
class Setting:
    """A position of the dial.

    Attributes:
        modality: Modality whose weight is set; the others share what is left.
        part: Its part r of the weights, in [0, 1]; 1/M is the model as it is.
        weights: w_m = M · r_m of each modality, (M,) float64; they add up to M.
    """

    modality: str
    part: float
    weights: Tensor

    @property
    def name(self) -> str:
        """`<modality>=<part>`, as in a measure's name."""
        return f"{self.modality}={round(self.part, 3):g}"


def settings(names: Sequence[str], steps: int = STEPS) -> list[Setting]:
    """Positions of the dial on lines through w = 1, which is on each of them.

    On modality m's line r_m goes from 0 to 1 in equal steps and the others have (1 − r_m) / (M − 1) each. For M = 2 the
    two lines are one, and only the first modality's is listed.

    Args:
        names: Modalities, at least 2.
        steps: Number of steps.
    """
    count, found = len(names), []
    for m, name in enumerate(names[:1] if count == 2 else names):
        for part in sorted({*(step / steps for step in range(steps + 1)), 1 / count}):
            weights = torch.full((count,), count * (1 - part) / (count - 1), dtype=torch.float64)
            weights[m] = count * part
            found.append(Setting(name, part, torch.ones_like(weights) if part == 1 / count else weights))
    return found


def dial_matrix(weights: Tensor) -> Tensor:
    """Matrix (2^M, 2^M), float64, of the dial's effect on the logits of all coalitions; the identity for w = 1.

    With Harsanyi's dividends d(T) = Σ_{S⊆T} (−1)^{|T|−|S|} v(S), the dialled v_w(S) = v(∅) + Σ_{∅≠T⊆S} w̄_T d(T), w̄_T
    being the mean weight of the modalities in T. Since φ_m = Σ_{T∋m} d(T) / |T| is m's Shapley value, the logits with
    all modalities are v(∅) + Σ_m w_m φ_m.

    Args:
        weights: w_m, (M,).
    """
    count = len(weights)
    matrix = torch.eye(1 << count, dtype=torch.float64)
    for whole in range(1, 1 << count):
        members = [m for m in range(count) if whole >> m & 1]
        surplus = weights[members].double().mean() - 1
        inside = [s for s in range(1 << count) if s & whole == s]
        signs = torch.tensor([(-1.0) ** (len(members) - s.bit_count()) for s in inside], dtype=torch.float64)
        for coalition in range(1 << count):
            if coalition & whole == whole:
                matrix[coalition, inside] += surplus * signs
    return matrix


@dataclass(frozen=True, eq=False)
class Dial:
    """The dial of one model.

    Attributes:
        settings: Its positions.
        offsets: Modality m's part for its mean encoding, (M, C) float64, on the CPU. Of an
            additive head it is f_m(mean), which is weighted with the rest of the part; zeros (M, 1) otherwise.
        exact: Whether the parts are those of an additive head, so that the dialled logits are Σ_m w_m f_m exactly;
            otherwise they are Shapley values, and v(∅) is a constant.
        matrices: `dial_matrix` of each position.
    """

    settings: list[Setting]
    offsets: Tensor
    exact: bool
    matrices: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Makes the matrices."""
        object.__setattr__(self, "matrices", [dial_matrix(setting.weights) for setting in self.settings])

    @classmethod
    def of(cls, model: Explained, means: Mapping[str, Tensor], steps: int = STEPS) -> "Dial":
        """The dial of a model, whose head sees one row.

        Args:
            model: The model, of at least 2 modalities.
            means: Encoding of each modality where it is missing, (1, ...).
            steps: Number of steps of each line.
        """
        with undisturbed(model), torch.no_grad():
            additive = getattr(model, "additive_logits", None)  # a whole network has none
            device = device_of(model)
            parts = additive({m: e.to(device) for m, e in means.items()}) if callable(additive) else None
        none = torch.zeros(len(means), 1, dtype=torch.float64)
        offsets = none if parts is None else torch.cat([parts[name] for name in means]).cpu().double()
        return cls(settings([*means], steps), offsets, parts is not None)

    def logits(self, position: int, logits: Tensor) -> Tensor:
        """Logits of all coalitions at a position of the dial; at w = 1 they are those given, to the bit.

        Args:
            position: Index in `settings`.
            logits: Logits of all coalitions, (2^M, N, C) float64, missing modalities having the mean encoding.

        Returns:
            (2^M, N, C).
        """
        dialled: Tensor = torch.tensordot(self.matrices[position], logits, 1) + self._shift(position)
        return dialled

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether each clip is right with all modalities at each position, (K, N) bool.

        Args:
            logits: Logits of all coalitions, (2^M, N, C) float64, on the CPU.
            labels: Class of each clip, (N,), on the CPU.
        """
        found = torch.empty(len(self.settings), len(labels), dtype=torch.bool)
        for start in range(0, len(labels), _CLIPS):
            part = slice(start, start + _CLIPS)
            for position in range(len(self.settings)):
                whole = torch.tensordot(self.matrices[position][-1], logits[:, part], 1) + self._shift(position)
                found[position, part] = whole.argmax(1) == labels[part]
        return found

    def _shift(self, position: int) -> Tensor:
        """Change by the weights in an additive head's parts for mean encodings, (C,)."""
        return ((self.settings[position].weights - 1)[:, None] * self.offsets).sum(0)


def dial_rows(table: Table, names: Sequence[str], dial: Dial, logits: Tensor, labels: Tensor) -> None:
    """Adds accuracy, accuracy without each modality and decision share at each position of the dial. No head row.

    Args:
        table: Table of the N clips.
        names: Modalities.
        dial: The model's dial.
        logits: Logits of all coalitions, (2^M, N, C) float64, on the CPU.
        labels: Class of each clip, (N,), on the CPU.
    """
    exact = torch.full((len(labels),), float(dial.exact), dtype=torch.float64)
    table.mean("dial_exact", "", exact)
    for position, setting in enumerate(dial.settings):
        right, shares = [], []
        for start in range(0, len(labels), _CLIPS):
            part = slice(start, start + _CLIPS)
            at = dial.logits(position, logits[:, part])
            correct = use.right(at, labels[part])
            right.append(torch.cat([correct[-1:], use.missing(correct)]))
            values = shapley_values(class_score(at, at[-1].argmax(1), "probability"))
            moved = values.abs().sum(1, keepdim=True) > _ROUNDING * at.abs().amax((0, 2))[:, None]
            shares.append(absolute_shares(torch.where(moved, values, 0.0)))
        rows = [(f"dial_acc@{setting.name}", "", ""), *((f"dial_missing@{setting.name}", name, "") for name in names)]
        table.means(rows, torch.cat(right, dim=1).T)
        share = torch.cat(shares)
        own = share[:, list(names).index(setting.modality)]
        table.mean(f"dial_share@{setting.name}", setting.modality, own, share.sum(1) > 0)
