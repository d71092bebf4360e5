"""Mixed second derivatives of a score by two modalities' inputs."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from amr.attribution import modules_in, undisturbed
from amr.datamodules.atoms import Atoms
from amr.model import FusionModel, encode_alone
from amr.model.embedded import embed, embedding_layer, encode_vectors
from amr.model.protocol import Explained
from amr.multiviz.base import Target, Unit, fixed_target, target_scores
from amr.multiviz.crossmodal.joint import Side, Space, encode, sides
from amr.utils.errors import UserError


class InteractionMap(Tensor):
    """A map (N, A1, A2) that can say why it is all zeros.

    Attributes:
        reason: Empty, or why every entry is zero and what to do instead.
    """

    reason: str = ""


def second_order(
    model: Explained,
    inputs: Mapping[str, Tensor],
    target: Target,
    first: str | tuple[str, Atoms | Tensor],
    second: str | tuple[str, Atoms | Tensor],
    *,
    space: Space = "inputs",
    batch: int = 64,
) -> InteractionMap:
    """Mixed second derivatives of the score between atoms of two modalities (Liang et al. 2023, section 2.2).

        map[n, i, j] = Σ_{p in i} Σ_{q in j} ∂²f / ∂x^first_p ∂x^second_q   at clip n

    Two forward passes, one without gradients; one backward pass that keeps its graph, and one more for each atom of the
    modality that has fewer. A set of elements as one side gives MultiViz's map: the gradient of a gradient that is
    summed over the set.

    Ids are differentiated by the vectors of their embedding layer, whose dimensions are summed.

    A ReLU network is piecewise linear, so its map is zero although it interacts. Where every entry is zero, a 4-point
    ablation of whole modalities (against zeros, the negated encodings and the next clip's) tells whether the head
    interacts at all, and the map's `reason` says which it is.

    Args:
        model: The model. Convolutions, smooth activations and attention can be differentiated twice; cuDNN's recurrent
            layers and compiled encoders cannot.
        inputs: Input of each modality, (N, ...); their encodings with space="encodings".
        target: Explained class or unit.
        first: A modality, whose every element is an atom; or with it atoms, or one set of elements, boolean of the
            shape of one input.
        second: Another one.
        space: Space of the derivatives.
        batch: Clips at a time.

    Returns:
        Map (N, A1, A2), A = 1 for a set.

    Raises:
        UserError: A modality or the target does not exist, or a layer cannot be differentiated twice.
    """
    one, two = _set_sides(inputs, first, second)
    names = (one[0], two[0])
    _refuse(model, inputs, names, space, cudnn=inputs[names[0]].is_cuda and torch.backends.cudnn.enabled)
    swap = one[2] > two[2]
    outer, inner = (two, one) if swap else (one, two)
    with undisturbed(model):
        layers = {name: embedding_layer(model, name, inputs[name]) for name in names if _is_ids(inputs[name], space)}
        with torch.no_grad():
            encodings = encode(model, inputs, space, batch)
            fixed = fixed_target(model, encodings, target)
        maps = []
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            for start in range(0, len(inputs[names[0]]), batch):
                rows = slice(start, start + batch)
                part = {name: e[rows] for name, e in encodings.items()}
                goal = fixed if isinstance(fixed, Unit) else fixed[rows]
                own = {name: inputs[name][rows].detach() for name in names}
                maps.append(_mixed(model, part, goal, own, layers, outer, inner, space))
        values = torch.cat(maps)
        result = (values.transpose(1, 2) if swap else values).as_subclass(InteractionMap)
        if not values.any():
            with torch.no_grad():
                result.reason = _why_zero(model, encodings, fixed, names)
    return result


def _set_sides(inputs: Mapping[str, Tensor], *given: str | tuple[str, Atoms | Tensor]) -> list[tuple[str, Atoms, int]]:
    """Modality, atoms, and how many of the atoms are wanted: a set is the first of two."""
    plain: list[Side] = []
    wanted: list[int | None] = []
    for side in given:
        if isinstance(side, str):
            plain.append(side)
        elif isinstance(side[1], Atoms):
            plain.append((side[0], side[1]))
        else:
            plain.append((side[0], _set_and_rest(inputs, side[0], side[1])))
        wanted.append(1 if not isinstance(side, str) and isinstance(side[1], Tensor) else None)
    return [(name, atoms, n or len(atoms)) for (name, atoms), n in zip(sides(inputs, *plain), wanted, strict=True)]


def _set_and_rest(inputs: Mapping[str, Tensor], name: str, members: Tensor) -> Atoms:
    """Two atoms, a set of elements and all others; one if there are no others."""
    shape = inputs[name].shape[1:] if name in inputs else members.shape
    if members.shape != shape or members.dtype != torch.bool or not members.any():
        given = f"{members.dtype} {tuple(members.shape)} with {int((members != 0).sum())} members"
        raise UserError(f"{name!r}: a set of elements is boolean, of the input's shape {tuple(shape)}, got {given}")
    count = 1 if bool(members.all()) else 2
    return Atoms((~members).long(), ({},) * count, (count,))


def _mixed(
    model: Explained,
    encodings: Mapping[str, Tensor],
    target: Tensor | Unit,
    inputs: Mapping[str, Tensor],
    layers: Mapping[str, nn.Module],
    outer: tuple[str, Atoms, int],
    inner: tuple[str, Atoms, int],
    space: Space,
) -> Tensor:
    """Mixed derivatives (n, A_outer, A_inner); a backward pass for each of the outer atoms."""
    leaves = {
        name: (embed(model, name, layers[name], x) if name in layers else x).detach().clone().requires_grad_()
        for name, x in inputs.items()
    }
    own = {
        name: encode_vectors(model, name, layers[name], inputs[name], x)
        if name in layers
        else encode_alone(model, name, x)
        if space == "inputs"
        else x
        for name, x in leaves.items()
    }
    score = target_scores(model, {name: own.get(name, e) for name, e in encodings.items()}, target).sum()

    def by_element(name: str, values: Tensor) -> Tensor:
        return values.flatten(inputs[name].ndim).sum(-1) if name in layers else values

    slope = by_element(outer[0], _gradient(score, leaves[outer[0]], create_graph=True))
    label, everyone = outer[1].label.to(slope.device), torch.arange(len(slope))
    rows = []
    for atom in range(outer[2]):
        members = (label == atom).expand(slope.shape)  # a label (*input shape), or one per clip
        curvature = _gradient(slope[members].sum(), leaves[inner[0]])
        rows.append(inner[1].of(everyone).sum(by_element(inner[0], curvature))[:, : inner[2]])
    return torch.stack(rows, dim=1)


def _gradient(output: Tensor, leaf: Tensor, *, create_graph: bool = False) -> Tensor:
    """Gradient of a sum, zeros where the output does not depend on the leaf."""
    if not output.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(
        output, leaf, create_graph=create_graph, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return gradient


def _is_ids(x: Tensor, space: Space) -> bool:
    return space == "inputs" and not x.is_floating_point()


def _refuse(model: Explained, inputs: Mapping[str, Tensor], names: Iterable[str], space: Space, *, cudnn: bool) -> None:
    """Raises UserError, naming it, for an input or a layer that has no second derivative."""
    used = ["head", *(f"encoders.{name}" for name in names if space == "inputs")]
    for name in names:
        if space == "encodings" and not inputs[name].is_floating_point():
            raise UserError(f"second_order: inputs.{name}={inputs[name].dtype}: must be floating-point; use ablation")
    layers = [layer for each in modules_in(model) for layer in each.named_modules()]
    for path, module in layers:
        if isinstance(model, FusionModel) and not any(f"{path}.".startswith(f"{part}.") for part in used):
            continue
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise UserError(f"second_order: {path} is compiled and so has no second derivative; use ablation")
        if cudnn and isinstance(module, nn.RNNBase):
            raise UserError(
                f"second_order: {path} ({type(module).__name__}) has no second derivative with cuDNN; "
                "use ablation, or run on the CPU"
            )


def _why_zero(model: Explained, encodings: Mapping[str, Tensor], target: Tensor | Unit, names: tuple[str, str]) -> str:
    """Explains an all-zero map, by 4-point ablations of the two modalities' whole encodings."""
    one, two = names
    largest, scale = 0.0, 0.0

    def score(replaced: Mapping[str, Tensor]) -> Tensor:
        return target_scores(model, {**encodings, **replaced}, target)

    for change in (torch.zeros_like, torch.neg, lambda e: e.roll(1, 0)):
        a, b = change(encodings[one]), change(encodings[two])
        corners = torch.stack([score({}), score({one: a}), score({two: b}), score({one: a, two: b})])
        largest = max(largest, float((corners[0] - corners[1] - corners[2] + corners[3]).abs().max()))
        scale = max(scale, float(corners.abs().max()))
    if largest <= 1e-5 * scale:
        return f"{one!r} and {two!r} do not interact: the score is additive in them"
    return (
        f"the second derivative is zero although {one!r} and {two!r} interact (4-point ablation of their encodings: "
        f"up to {largest:.3g}), as in networks of ReLUs, which are piecewise linear; use ablation"
    )
