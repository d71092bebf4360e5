"""Whether a map changes with what the model has learned: parameters are drawn again."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amr.attribution import modules_in, undisturbed
from amr.model import FusionModel, encoder_of
from amr.model.protocol import Explained
from amr.multiviz.trust.explain import Explain, explained_map, spearman
from amr.utils.errors import UserError


@dataclass(frozen=True, eq=False)
class RankCorrelation:
    """Spearman's rank correlation of two maps, one per clip, in [-1, 1]: 1 if they are equal, 0 if one is constant.

    Args:
        signed: Correlation of the values, (N,).
        absolute: Correlation of their absolute values, (N,).
    """

    signed: Tensor
    absolute: Tensor

    @property
    def likeness(self) -> float:
        """The larger of the two means over clips."""
        return max(float(self.signed.mean()), float(self.absolute.mean()))


def randomisation_test(
    model: Explained,
    inputs: Mapping[str, Tensor],
    explain: Explain,
    *,
    seed: int = 0,
) -> dict[str, RankCorrelation]:
    """Rank correlation of the model's maps with those of copies whose parameters were re-drawn (Adebayo et al. 2018).

    A map that stays as it was does not show what the model has learned. Re-drawn are the head alone, each encoder
    alone, and everything; the model itself is never changed. Another modality's encoder may rightly leave a map alone:
    in an additive head it has no part in it.

    Parameters are re-drawn by their module's `reset_parameters`, and those that this leaves as they were (class tokens,
    position embeddings, weight norms) from a normal distribution of their own mean and standard deviation; constant
    ones, such as a fresh norm layer's, stay. Running statistics of batch norms start again. M + 3 explanations, less
    the parts without parameters, which are left out.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        explain: The method.
        seed: Seed of the parameters, and of the method in all calls.

    Returns:
        By part: "head", "encoders.<modality>", and "model" for everything. A model without encoders has only the last.

    Raises:
        UserError: A map is not finite, or the model has no parameters.
    """
    return randomisation_of(model, inputs, explain, explained_map(explain, model, inputs, seed), seed)


def cascading_randomisation(
    model: Explained,
    inputs: Mapping[str, Tensor],
    modality: str,
    explain: Explain,
    *,
    seed: int = 0,
) -> dict[str, RankCorrelation]:
    """`randomisation_test` from the top down: the head, then one layer of the encoder more at a time.

    The cascading form of Adebayo et al. 2018, section 3. Layers are the modules of the modality's encoder that have
    parameters of their own, from last to first in the order in which they were defined, which is taken for the order
    in which they run. 2 + layers explanations.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality that `explain` explains.
        explain: The method.
        seed: As in `randomisation_test`.

    Returns:
        By the part that was re-drawn last: "head", then "encoders.<modality>..." downwards.

    Raises:
        UserError: The modality does not exist or has no encoder, or a map is not finite.
    """
    encoder_of(model, modality)
    assert isinstance(model, FusionModel)
    reference, found = explained_map(explain, model, inputs, seed), {}
    with undisturbed(model):
        other = copy.deepcopy(model)
    prefix = f"encoders.{modality}"
    layers = [
        path
        for path, module in other.named_modules()
        if (path == prefix or path.startswith(f"{prefix}.")) and any(True for _ in module.parameters(recurse=False))
    ]
    for step, path in enumerate(["head", *reversed(layers)]):
        _redraw(other.get_submodule(path), seed + step, recurse=path == "head")
        found[path] = _rank_correlation(reference, explained_map(explain, other, inputs, seed))
    return found


def randomisation_of(
    model: Explained, inputs: Mapping[str, Tensor], explain: Explain, reference: Tensor, seed: int
) -> dict[str, RankCorrelation]:
    """`randomisation_test` against a map (N, K) that is there already."""
    if not isinstance(model, FusionModel):
        return {"model": _redrawn_in_place(model, inputs, explain, reference, seed)}
    found = {}
    for name in ("head", *(f"encoders.{m}" for m in model.modalities), "model"):
        with undisturbed(model):
            other = copy.deepcopy(model)
        part: nn.Module = other if name == "model" else other.get_submodule(name)
        if any(True for _ in part.parameters()):
            _redraw(part, seed)
            found[name] = _rank_correlation(reference, explained_map(explain, other, inputs, seed))
    return found


def _redrawn_in_place(
    model: Explained, inputs: Mapping[str, Tensor], explain: Explain, reference: Tensor, seed: int
) -> RankCorrelation:
    """Re-draws a model in place and puts it back: functions that a user gave it would miss a copy."""
    modules = modules_in(model)
    states = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    if not any(True for module in modules for _ in module.parameters()):
        raise UserError(f"model={type(model).__name__}: it has no parameters to randomise")
    try:
        for module in modules:
            _redraw(module, seed)
        return _rank_correlation(reference, explained_map(explain, model, inputs, seed))
    finally:
        for module, state in zip(modules, states, strict=True):
            module.load_state_dict(state)


def _redraw(module: nn.Module, seed: int, *, recurse: bool = True) -> None:
    """Re-draws a module's parameters in place, as `randomisation_test` says: on the CPU, so alike on every device."""
    modules = [*module.modules()] if recurse else [module]
    parameters = list(dict.fromkeys(p for each in modules for p in each.parameters(recurse=False)))
    if not parameters:
        return
    device = parameters[0].device
    module.to("cpu")
    with torch.random.fork_rng([]), torch.no_grad():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs, which are not forked
        former = [p.clone() for p in parameters]
        for each in modules:
            reset = getattr(each, "reset_parameters", None)
            if callable(reset):
                reset()
        for parameter, value in zip(parameters, former, strict=True):
            if torch.equal(parameter, value):  # nothing covers it
                noise = torch.randn(value.shape, dtype=torch.float64)
                drawn = value.double().mean() + value.double().std(correction=0) * noise
                parameter.copy_(drawn)
    module.to(device)


def _rank_correlation(first: Tensor, second: Tensor) -> RankCorrelation:
    return RankCorrelation(spearman(first, second), spearman(first.abs(), second.abs()))
