"""AMR's attribution `output` in training: what replaces a modality, and what each step's gradient reaches."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import torch
from torch import Tensor

from amr.attribution import Gradient, change_shares, other_clips, output_change
from amr.model import complete_rows
from amr.regularizers.base import Regularizer, Step
from amr.utils.distributed import gathered_rows

Push = Literal["both", "weak"]
Replacement = Literal["permutation", "mean", "zeros"]
PERMUTATIONS = 4


@dataclass(frozen=True)
class Output:
    """How far the output changes when a modality of a training step's clips is replaced.

    Attributes:
        gradient: Where the gradient of the changes flows; see `amr.attribution.output_change`.
        push: Whether the penalty moves every modality's change, or raises those of modalities below their target.
        replacement: Other clips' encodings, the mean encoding of the global batch, or zeros.
        permutations: Number of other clips per clip, K.
        different_label: Whether only clips of another class replace a clip's encodings.
    """

    gradient: Gradient = "head"
    push: Push = "both"
    replacement: Replacement = "permutation"
    permutations: int = PERMUTATIONS
    different_label: bool = False

    @property
    def in_loss(self) -> bool:
        """Whether the penalty is a term of the main loss, since its gradient reaches encoders."""
        return self.gradient != "head"

    @classmethod
    def checked(
        cls,
        method: Regularizer,
        gradient: Gradient | None,
        push: Push | None,
        replacement: Replacement | None,
        permutations: int | None,
        different_label: bool,
    ) -> "Output":
        """Made of a method's arguments, of which None is the default.

        Raises:
            UserError: If an argument is out of its range, or means nothing beside another.
        """
        for key, value, choice in (
            ("gradient", gradient, Gradient),
            ("push", push, Push),
            ("replacement", replacement, Replacement),
        ):
            if value is not None:
                method.check_choice(key, value, choice)
        ok = permutations is None or permutations >= 1
        method.check("permutations", permutations, ok, "an integer >= 1, or null")
        if replacement in ("mean", "zeros"):
            allowed = f"with replacement {replacement}, which takes nothing from another clip"
            method.check("permutations", permutations, permutations is None, f"null {allowed}")
            method.check("different_label", different_label, not different_label, f"false {allowed}")
        ok = not (replacement == "zeros" and gradient == "encoder")
        method.check("replacement", replacement, ok, "permutation or mean with gradient encoder: zeros have no encoder")
        return cls(
            gradient or "head",
            push or "both",
            replacement or "permutation",
            permutations or PERMUTATIONS,
            different_label,
        )

    def change(self, steps: Sequence[Step]) -> Tensor:
        """D of this rank's clips that have every modality, (B, M), with the graph that `gradient` asks for.

        What replaces a modality comes from the clips of all steps and all ranks. The draw is a function of the run's
        seed, the epoch and the names of these clips. Every rank must call this, and with gradient to encoders, every
        rank must go through the backward pass.

        Args:
            steps: The micro-batches to take together.
        """
        model = steps[0].model
        parts = [step.complete() for step in steps]
        encodings = {name: torch.cat([given[name] for given, _ in parts]) for name in model.modalities}
        if not self.in_loss:
            encodings = {name: encoding.detach() for name, encoding in encodings.items()}
        flat = [encoding.flatten(1) for encoding in encodings.values()]
        everyone, own = gathered_rows(torch.cat(flat, dim=1))
        pieces = zip(encodings.items(), torch.split(everyone, [x.shape[1] for x in flat], dim=1), strict=True)
        donors = {name: piece.reshape(-1, *encoding.shape[1:]) for (name, encoding), piece in pieces}
        if self.replacement == "permutation":
            picks = self._picks(steps, torch.cat([label for _, label in parts]))[own]
        else:
            picks = torch.zeros(len(flat[0]), 1, dtype=torch.int64, device=everyone.device)
            factor = 1.0 if self.replacement == "mean" else 0.0
            donors = {name: factor * pool.sum(0, keepdim=True) / max(len(everyone), 1) for name, pool in donors.items()}
        change = output_change(model.head, encodings, picks, donors=donors, gradient=self.gradient)
        # A rank without clips of its own still takes part in the backward pass of the others' donors.
        return change + 0 * everyone[:1].sum() if everyone.requires_grad else change

    def shares(self, change: Tensor, target: Tensor, mean: Tensor | None) -> Tensor:
        """Shares of the changes, (B, M), with the gradient that `push` asks for.

        Args:
            change: D, (B, M), with its graph.
            target: Normalised target ratio, (M,).
            mean: Mean share over all ranks' clips, (M,), which is to have the ratio; None where every clip's is.
        """
        if self.push == "weak":
            now = change_shares(change.detach()) if mean is None else mean
            change = torch.where(now < target, change, change.detach())
        return change_shares(change)

    def _picks(self, steps: Sequence[Step], labels: Tensor) -> Tensor:
        """Indices (N, K), over the clips of all ranks, of the clips that replace a clip's encodings; -1 for none."""
        numbers = torch.tensor([number for step in steps for number in _numbers(step)], dtype=torch.int64)
        clips, _ = gathered_rows(torch.stack([numbers.to(labels.device), labels], dim=1))
        first = steps[0]
        draw = hash((first.run_seed, first.epoch, int(clips[:, 0].sum()))) & (2**63 - 1)
        generator = torch.Generator().manual_seed(draw)
        classes = clips[:, 1] if self.different_label else None
        return other_clips(clips[:, 0], self.permutations, generator, labels=classes)


def _numbers(step: Step) -> list[int]:
    """A number for each clip that has every modality, by its name: the same on every rank and in every batch."""
    rows = complete_rows(step.encodings, step.present)
    names = step.id if rows is None else [name for name, kept in zip(step.id, rows.tolist(), strict=True) if kept]
    return [int.from_bytes(blake2b(str(name).encode(), digest_size=8).digest(), signed=True) for name in names]
