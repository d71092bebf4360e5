"""Several methods in one run: their order, and which exclude each other."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from amr.fusion.base import Fusion
from amr.model import FusionModel
from amr.regularizers.base import Regularizer, Step
from amr.utils.errors import UserError


class Composite(nn.Module):
    """Calls each hook of every method, in ascending `order` (ties keep the given sequence).

    Args:
        methods: The run's methods; none of them is naive fusion.

    Raises:
        UserError: If two methods have one name or exclude each other.
    """

    def __init__(self, methods: Iterable[Regularizer] = ()) -> None:
        super().__init__()
        self.methods = nn.ModuleDict()
        for method in sorted(methods, key=lambda method: method.order):
            if method.name in self.methods:
                raise UserError(f"model: the method {method.name!r} is given twice")
            self.methods[method.name] = method
        for method in self:
            for other in sorted(method.conflicts & set(self.methods)):
                raise UserError(f"model.{method.name}: cannot be combined with {other!r}; set one of them to null")

    def __iter__(self) -> Iterator[Regularizer]:
        """The methods, in order."""
        return cast(Iterator[Regularizer], iter(self.methods.values()))

    @property
    def name(self) -> str:
        """Name of the combination: `naive`, `amr`, `modality_dropout+amr`, ..."""
        return "+".join(self.methods) or "naive"

    @property
    def title(self) -> str:
        """The combination for people: `Naive fusion`, `Naive fusion w/ AMR`, `UMT w/ AMR`, ..."""
        titles = {method.name: method.title or method.name for method in self}
        amr = titles.pop("amr", None)
        return (" + ".join(titles.values()) or "Naive fusion") + (f" w/ {amr}" if amr else "")

    @property
    def scaling(self) -> list[str]:
        """Names of the methods that act by the size of gradients."""
        return [method.name for method in self if method.scales_gradients]

    @property
    def needs_steps(self) -> bool:
        """Whether any method uses `on_gradients` or `after_step`."""
        return any(method.needs_steps for method in self)

    def wrap_head(self, head: Fusion) -> Fusion:
        """The head after every method."""
        for method in self:
            head = method.wrap_head(head)
        return head

    def setup(self, model: FusionModel) -> None:
        """Sets every method up; refuses, by name, those that cannot work with this model."""
        for method in self:
            if len(model.modalities) < method.min_modalities:
                raise UserError(
                    f"model.{method.name}: needs at least {method.min_modalities} modalities, "
                    f"the model has {len(model.modalities)} ({', '.join(model.modalities)}); set it to null"
                )
            method.setup(model)

    def on_encodings(self, encodings: dict[str, Tensor], present: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Encodings after every method."""
        for method in self:
            encodings = method.on_encodings(encodings, present)
        return encodings

    def on_fused(self, fused: Tensor) -> Tensor:
        """Penultimate features after every method."""
        for method in self:
            fused = method.on_fused(fused)
        return fused

    def losses(self, step: Step) -> dict[str, Tensor]:
        """All extra loss terms, as `<method>/<term>`."""
        return {f"{method.name}/{key}": term for method in self for key, term in method.losses(step).items()}

    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Gradients after every method."""
        for method in self:
            method.on_gradients(steps)

    def after_step(self, steps: Sequence[Step]) -> None:
        """Every method's action after the main step."""
        for method in self:
            method.after_step(steps)

    def on_epoch_end(self, metrics: Mapping[str, Tensor]) -> None:
        """Every method's action at the end of an epoch."""
        for method in self:
            method.on_epoch_end(metrics)

    def report(self) -> dict[str, float]:
        """All coefficients, as `<method>/<key>`."""
        return {f"{method.name}/{key}": value for method in self for key, value in method.report().items()}

    def checkpoint_state(self) -> dict[str, dict[str, object]]:
        """State of the methods that have any, by name."""
        return {method.name: state for method in self if (state := method.checkpoint_state())}

    def restore_state(self, states: Mapping[str, Mapping[str, object]]) -> None:
        """Takes what `checkpoint_state` gave; methods that the checkpoint lacks start afresh."""
        for method in self:
            if method.name in states:
                method.restore_state(states[method.name])
