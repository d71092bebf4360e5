"""A score as a function of one modality's input, everything else of the clips held fixed."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amr.datamodules.atoms import Atoms, ClipAtoms
from amr.model import encode_alone, require_modality
from amr.model.embedded import embed, embedding_layer, encode_vectors
from amr.model.protocol import Explained
from amr.multiviz.base import Fixed, Several, Target, at_least, fixed_target, fixed_targets, target_scores, targets_of
from amr.utils.errors import UserError

ENCODED = 1 << 20  # numbers of input that a CPU encodes at once; a quarter of it with a gradient, whose graph is kept


@dataclass(frozen=True, eq=False)
class Held:
    """The score as a function of one modality's input, with everything else of N clips held fixed.

    Attributes:
        leaf: Leaf of the gradients, (N, ...): the input, or the embeddings of ids.
        layer: The layer that embeds the ids; None where gradients are by the input.
    """

    model: Explained
    modality: str
    x: Tensor  # (N, *input shape)
    encodings: dict[str, Tensor]
    target: Fixed
    atoms: Atoms | None
    batch: int
    leaf: Tensor
    layer: nn.Module | None = None

    def rows(self, copies: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices of copy and clip of copies × N rows, `batch` at a time."""
        return row_blocks(copies, len(self.x), self.batch, self.x.device)

    def scores(self, x: Tensor, clip: Tensor) -> Tensor:
        """Scores (R,), or (R, T) of several targets, if inputs x (R, ...) replace those of the clips (R,)."""
        return self._scored(encode_alone(self.model, self.modality, x), clip)

    def leaf_scores(self, leaf: Tensor, clip: Tensor) -> Tensor:
        """Scores (R,), or (R, T) of several targets, if leaves (R, ...) replace those of the clips (R,)."""
        if self.layer is None:
            return self.scores(leaf, clip)
        return self._scored(encode_vectors(self.model, self.modality, self.layer, self.x[clip], leaf), clip)

    def slopes(self, leaf: Tensor, clip: Tensor, factor: Tensor | float = 1.0) -> Tensor:
        """Gradient of each row's score by its own leaf (R, ...), times a factor, summed by atom: (R, ...).

        Several targets share the forward pass, and have a backward pass each: (R, T, ...).
        """
        leaf = leaf.detach().requires_grad_()
        scores = self.leaf_scores(leaf, clip)
        sums = scores.sum(0)  # rows are independent
        if scores.ndim == 1:
            return self.by_atom(factor * input_gradient(sums, leaf), clip)
        last = len(sums) - 1
        each = [
            self.by_atom(factor * input_gradient(total, leaf, again=t < last), clip) for t, total in enumerate(sums)
        ]
        return torch.stack(each, dim=1)

    def leaf_baseline(self, baseline: Tensor | float) -> Tensor:
        """The baseline as one leaf, or one per clip: a number or tensor as it is, ids as their embeddings."""
        if self.layer is None or not _is_ids(baseline):
            return one_baseline(self.leaf, baseline)
        ids = one_baseline(self.x, baseline)
        each = ids if ids.ndim == self.x.ndim else ids[None]
        vectors = torch.cat(
            [embed(self.model, self.modality, self.layer, part) for part in torch.split(each, self.batch)]
        )
        return vectors.detach() if ids.ndim == self.x.ndim else vectors.detach()[0]

    def leaf_baselines(self, baselines: Tensor) -> Tensor:
        """Leaves (K, ...) of inputs (K, *input shape); leaves are returned as they are."""
        if self.layer is None or baselines.is_floating_point():
            return baselines
        parts = [embed(self.model, self.modality, self.layer, part) for part in torch.split(baselines, self.batch)]
        return torch.cat(parts).detach()

    def _scored(self, encoding: Tensor, clip: Tensor) -> Tensor:
        others = {name: e[clip] for name, e in self.encodings.items() if name != self.modality}
        encodings = {name: encoding if name == self.modality else others[name] for name in self.encodings}
        return target_scores(self.model, encodings, targets_of(self.target, clip))

    def unperturbed(self) -> Tensor:
        """Scores of the clips themselves, from their encodings: (N,) or (N, T) float64."""
        with torch.no_grad():
            scores = [
                target_scores(
                    self.model, {m: e[clip] for m, e in self.encodings.items()}, targets_of(self.target, clip)
                )
                for _, clip in self.rows(1)
            ]
        return torch.cat(scores).double()

    def by_atom(self, values: Tensor, clip: Tensor) -> Tensor:
        """Values (R, ...) of leaves of the clips (R,) summed by atom, if there are any; a vector's to its id's."""
        values = values if self.layer is None else values.flatten(self.x.ndim).sum(-1)
        return values if self.atoms is None else self.atoms.of(clip).sum(values)

    def zeros(self, dtype: torch.dtype) -> Tensor:
        """Zeros of the shape of the values: (N, ...), or (N, T, ...) of several targets."""
        targets = (len(self.target),) if isinstance(self.target, Several) else ()
        shape = self.x.shape[1:] if self.atoms is None else (len(self.atoms),)
        return self.x.new_zeros(len(self.x), *targets, *shape, dtype=dtype)


def row_blocks(copies: int, count: int, batch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices of copy and clip of copies × N rows, `batch` at a time."""
    for start in range(0, copies * count, batch):
        rows = torch.arange(start, min(start + batch, copies * count), device=device)
        yield rows // count, rows % count


def encoder_rows(x: Tensor, most: int, *, gradient: bool = False) -> int:
    """Rows of inputs x (N, ...) that are encoded at once: `most`, on a CPU fewer of large ones.

    More would take gigabytes, for a network's activations are many times its input, and no less time.
    """
    if x.device.type != "cpu":
        return most
    return max(1, min(most, ENCODED // (4 if gradient else 1) // max(1, math.prod(x.shape[1:]))))


def hold(
    model: Explained,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target | Several,
    atoms: Atoms | None,
    batch: int,
    *,
    several: bool = False,
    gradient: bool = False,
) -> Held:
    """Encodes the clips once, looks the target up, and checks what goes together.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The one whose input is free.
        target: Scored class or unit.
        atoms: Pieces of the input.
        batch: Rows at a time, at most.
        several: Whether the caller knows what to do with scores (N, T).
        gradient: Whether the score is differentiated; for ids, that is by their embeddings.

    Raises:
        UserError: The modality or target does not exist, the input cannot be differentiated, or the atoms are of
            another shape.
    """
    require_modality(model, modality)
    at_least("unimodal", batch=(batch, 1))
    sizes = {len(inputs[name]) for name in model.modalities if name in inputs}
    if len(sizes) != 1 or 0 in sizes:
        raise UserError("inputs: every modality must have the same clips, at least one")
    chunks = []
    with torch.no_grad():
        together = min(encoder_rows(x, batch) for name, x in inputs.items() if name in model.modalities)
        for start in range(0, sizes.pop(), together):
            chunk = {
                name: x[start : start + together].clone() for name, x in inputs.items() if name in model.modalities
            }
            chunks.append(model.encode(chunk))
    encodings = {name: torch.cat([chunk[name] for chunk in chunks]) for name in model.modalities}
    x = inputs[modality].detach()
    if atoms is not None:
        check_atoms(atoms, x)
    fixed = fixed_targets(model, encodings, target) if several else fixed_target(model, encodings, target)
    batch = encoder_rows(x, batch, gradient=gradient)
    if not gradient or x.is_floating_point():
        return Held(model, modality, x, encodings, fixed, atoms, batch, x)
    layer = embedding_layer(model, modality, x)
    with torch.no_grad():
        leaf = torch.cat([embed(model, modality, layer, part) for part in torch.split(x, batch)])
    batch = encoder_rows(leaf, batch, gradient=True)  # vectors are larger than their ids
    return Held(model, modality, x, encodings, fixed, atoms, batch, leaf.detach(), layer)


def masked_scores(fixed: Held, atoms: Atoms, keep: Tensor, baseline: Tensor | float) -> Tensor:
    """Scores of every clip with atoms replaced: masks (S, A) to (S, N), or (S, N, T) of several, float64."""
    start = one_baseline(fixed.x, baseline)
    keep = keep.to(fixed.x.device)
    with torch.no_grad():
        scores = [
            fixed.scores(atoms.of(clip).replace(fixed.x[clip], keep[copy], of_clips(start, fixed.x, clip)), clip)
            for copy, clip in fixed.rows(len(keep))
        ]
    found = torch.cat(scores).double()
    return found.reshape(len(keep), len(fixed.x), *found.shape[1:])


def one_baseline(x: Tensor, baseline: Tensor | float) -> Tensor:
    """The baseline as one input, expanded to (*input shape), or one for each clip of x (N, *input shape)."""
    given = torch.as_tensor(baseline).detach()
    start = given.to(x)
    if not x.is_floating_point() and bool((start != given).any()):
        raise UserError(f"baseline={baseline}: must be ids, as the input is")
    shape = x.shape[1:] if start.ndim < x.ndim or len(start) == 1 else x.shape
    start = start[0] if start.ndim == x.ndim and len(start) == 1 else start
    if start.ndim > len(shape) or any(
        size not in (1, n) for size, n in zip(start.shape[::-1], shape[::-1], strict=False)
    ):
        raise UserError(f"baseline: shape {tuple(start.shape)}; must be a number or broadcast to {tuple(shape)}")
    return start.expand(shape)


def of_clips(start: Tensor, x: Tensor, clip: Tensor) -> Tensor:
    """The baseline of the clips (R,): the same for all, or their own rows."""
    return start[clip] if start.ndim == x.ndim else start


def check_atoms(atoms: Atoms, x: Tensor) -> None:
    """Refuses atoms of other inputs, or of other clips, than x (N, *input shape)."""
    if atoms.shape != x.shape[1:]:
        raise UserError(f"atoms: made for inputs of shape {tuple(atoms.shape)}, got {tuple(x.shape[1:])}")
    if isinstance(atoms, ClipAtoms) and len(atoms.label) not in (1, len(x)):
        raise UserError(f"atoms: of {len(atoms.label)} clips, got {len(x)}; say of which clips: atoms.of(clips)")


def _is_ids(baseline: Tensor | float) -> bool:
    """Whether a baseline is an id or ids, and no number to put into an embedding."""
    return isinstance(baseline, int) or (isinstance(baseline, Tensor) and not baseline.is_floating_point())


def input_gradient(score: Tensor, x: Tensor, *, again: bool = False) -> Tensor:
    """Gradient of a sum of scores by the input; zeros where they ignore it.

    Args:
        score: The sum.
        x: The input.
        again: Whether another sum of the same pass will be differentiated.
    """
    if not score.requires_grad:  # the score ignores the input
        return torch.zeros_like(x)
    (gradients,) = torch.autograd.grad(score, [x], retain_graph=again, allow_unused=True, materialize_grads=True)
    return gradients
