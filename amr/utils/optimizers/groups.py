"""Groups of parameters by regular expression: settings of their own for some, no training for others."""

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from amr.utils.errors import UserError

KEY = "model.param_groups"


class ParameterGroups:
    """Settings of the optimizer for the parameters whose names match regular expressions.

    A pattern is searched in a parameter's name within the model, such as `encoders.audio.net.0.weight`, and the first
    that matches wins. `lr: 0` freezes a parameter: it gets no gradient, and the optimizer never sees it.
    Whatever no pattern matches, and the methods' own parameters, get the optimizer's defaults.

    Args:
        settings: Settings of each pattern, such as `{"encoders.video": {"lr": 1e-4}}`; None for none.

    Raises:
        UserError: If a pattern is no regular expression, or its settings are none.
    """

    def __init__(self, settings: Mapping[str, Mapping[str, Any]] | None) -> None:
        self.settings = {pattern: dict(given) for pattern, given in _checked(settings or {}).items()}

    def apply(self, model: nn.Module) -> list[nn.Module]:
        """Freezes what is to be frozen.

        Args:
            model: The model; the parameters of `lr: 0` no longer require gradients.

        Returns:
            The modules all of whose parameters are frozen so, the outermost of each branch, in eval mode: in training
            mode their batch norms would keep following the data.

        Raises:
            UserError: If a pattern matches nothing, or nothing that an earlier one has not taken.
        """
        named = dict(model.named_parameters())
        matches = {name: self._first(name) for name in named}
        for pattern in self.settings.keys() - {*matches.values()}:
            if any(re.search(pattern, name) for name in named):
                raise UserError(
                    f"{KEY}.{pattern}: must match a parameter that no earlier pattern takes; write it before them"
                )
            parts = dict.fromkeys(
                ".".join(name.split(".")[: 2 if name.startswith("encoders.") else 1]) for name in named
            )
            raise UserError(f"{KEY}.{pattern}: must match a parameter's name; names begin with {', '.join(parts)}")
        frozen = {
            id(named[name]) for name, pattern in matches.items() if pattern is not None and not self._rate(pattern, 1.0)
        }
        for parameter in named.values():
            if id(parameter) in frozen:
                parameter.requires_grad_(False)
        still = _wholly(model, frozen)
        for part in still:
            part.eval()
        return still

    def split(self, parameters: Mapping[str, nn.Parameter]) -> list[Any]:
        """Parameter groups for an optimizer.

        Args:
            parameters: Trained parameters by name, the model's as `model.` and their name within it.

        Returns:
            The parameters themselves if no pattern has settings for them; else the optimizer's groups, in the order of
            the patterns, and last `others`, each with its pattern as `name`.

        Raises:
            UserError: If a pattern with a rate matches frozen parameters alone.
        """
        of = {name: self._first(name[6:]) if name.startswith("model.") else None for name in parameters}
        patterns = [pattern for pattern in self.settings if self._rate(pattern, 1.0)]
        if not patterns:
            return list(parameters.values())
        groups: list[Any] = []
        for pattern in patterns:
            members = [parameters[name] for name, first in of.items() if first == pattern]
            if not members:
                raise UserError(f"{KEY}.{pattern}: must match a parameter that is trained; those it matches are frozen")
            groups.append({"name": pattern, "params": members, **self.settings[pattern]})
        others = [parameters[name] for name, first in of.items() if first is None]
        return [*groups, *([{"name": "others", "params": others}] if others else [])]

    def check(self, optimizer: Optimizer) -> None:
        """Refuses settings that an optimizer does not have, or out of their range.

        Args:
            optimizer: The optimizer that was made from `split`; it takes any setting of a group without a word.

        Raises:
            UserError: If it does not have one of the settings, or refuses its value.
        """
        kind, known = type(optimizer), optimizer.defaults
        taken = inspect.signature(kind).parameters
        defaults = {key: value for key, value in known.items() if key in taken}
        for pattern, given in self.settings.items():
            for key, value in given.items():
                if key not in known:
                    raise UserError(
                        f"{KEY}.{pattern}.{key}={value}: must be one of {kind.__name__}'s {', '.join(known)}"
                    )
            try:
                kind(
                    [torch.zeros(1, requires_grad=True)],
                    **{**defaults, **{k: v for k, v in given.items() if k in taken}},
                )
            except (ValueError, TypeError) as error:
                raise UserError(f"{KEY}.{pattern}: {' '.join(str(error).split())}") from error

    def _first(self, name: str) -> str | None:
        return next((pattern for pattern in self.settings if re.search(pattern, name)), None)

    def _rate(self, pattern: str, default: float) -> float:
        return float(self.settings[pattern].get("lr", default))


def _checked(settings: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    for pattern, given in settings.items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{KEY}.{pattern}: must be a regular expression ({error})") from error
        if not isinstance(given, Mapping) or not given:
            raise UserError(f"{KEY}.{pattern}={given}: must be settings of the optimizer, such as {{lr: 1e-4}}")
        if "params" in given or "name" in given:
            raise UserError(f"{KEY}.{pattern}: must be settings of the optimizer; params and name are none")
        rate = given.get("lr", 1.0)
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < math.inf:
            raise UserError(f"{KEY}.{pattern}.lr={rate}: must be a finite number >= 0")
    return settings


def _wholly(module: nn.Module, frozen: set[int]) -> list[nn.Module]:
    """The outermost modules that have parameters, all of them frozen."""
    own = [id(parameter) for parameter in module.parameters()]
    if own and frozen.issuperset(own):
        return [module]
    return [found for child in module.children() for found in _wholly(child, frozen)]
