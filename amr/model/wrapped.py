"""Any `nn.Module` as a model that can be explained: `explained`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from amr.attribution import undisturbed
from amr.model.calls import Inputs, call_of, close, difference, require_ids, require_tensor, substituted
from amr.model.task import Task, check_task
from amr.utils.errors import UserError, listed
from amr.utils.streams import note

ID_SCALE = 2.0**-24
"""Ids below 2^24 are exact in single precision; scaled by this power of two they stay small beside embeddings."""


def explained(
    module: nn.Module,
    *,
    modalities: Sequence[str] | Mapping[str, str],
    num_classes: int,
    forward: Callable[[Inputs], Any] | None = None,
    encode: Callable[[Inputs], Mapping[str, Tensor]] | None = None,
    head: Callable[[Inputs], Any] | None = None,
    embeddings: Mapping[str, str] | None = None,
    carry_ids: Iterable[str] = (),
    penultimate: str | None = None,
    classify: Callable[[Tensor], Tensor] | None = None,
    batch_rows: int = 64,
    task: Task = "classes",
) -> "ExplainedModule":
    """Wraps any module as a model that every analysis accepts, in one of three ways.

    - Nothing but the module: an encoding is the input itself, and the head is the whole network.
    - `embeddings`: an encoding is what the named layer makes of the input, such as the vectors of word ids; the head is
      the whole network with that layer's output given. Gradients and shares then work on ids.
    - `encode` and `head`: your own split. Where no modality's encoding depends on another modality, a large part of the
      network in `encode` makes analyses fast, since encodings are kept and the head alone runs again.

    The first time that inputs of all modalities are encoded, the head's logits are compared with the module's own, and
    `classify` of the penultimate features with the head's.

    Args:
        module: Maps inputs to logits (B, C), or to an object with `.logits`, or to a tuple that begins with them. It
            treats each clip separately.
        modalities: Names of the modalities, in the order of shares; or the argument of `module.forward` by name, such
            as `{"text": "input_ids", "image": "pixel_values"}`. With names alone, inputs are passed by keyword if
            `forward` has these names, as one mapping if it takes one argument, and in order if it takes as many.
        num_classes: Number of classes C, at least 1.
        forward: Maps inputs by modality to what `module` returns, for a module that is called in another way.
        encode: Maps inputs of any of the modalities to their encodings. Needs `head`.
        head: Maps encodings of all modalities to logits. Needs `encode`.
        embeddings: By modality, the name of the layer of `module` that turns its input into vectors and that `module`
            runs once per forward pass, such as `"embed"` or `"text.tokens"`. Modalities that are not named have their
            input as encoding.
        carry_ids: Modalities of `embeddings` whose ids the module reads elsewhere, too, such as for a padding mask. The
            ids are carried as a last channel of the encoding, times 2^-24; it has no gradient and so no share.
        penultimate: Name of the layer whose input is the penultimate feature, (B, D), and whose output is the logits
            unless `classify` is given. None: the last `nn.Linear` whose output is the logits, if there is one; else the
            logits stand for the features.
        classify: Maps the features to logits. Needs `penultimate`.
        batch_rows: Rows that run at once; more only queue, so memory does not grow with their number.
        task: `classes`: a clip has one of the C classes; `labels`: it has any of them, and batches hold (B, C) of 0
            and 1.

    Returns:
        The model, an `amr.multiviz.Explained` and an `nn.Module`.

    Raises:
        UserError: Options do not go together, or a name does not exist.
    """
    return ExplainedModule(
        module,
        modalities,
        num_classes,
        forward,
        encode,
        head,
        embeddings,
        carry_ids,
        penultimate,
        classify,
        batch_rows,
        task,
    )


class ExplainedModule(nn.Module):
    """A module that can be explained; see `explained`.

    Attributes:
        module: The module.
        modalities: Names of the modalities, in the order of shares.
        num_classes: Number of classes C.
        batch_rows: Rows that run at once.
        task: Whether a clip has one class or several labels.
    """

    def __init__(
        self,
        module: nn.Module,
        modalities: Sequence[str] | Mapping[str, str],
        num_classes: int,
        forward: Callable[[Inputs], Any] | None,
        encode: Callable[[Inputs], Mapping[str, Tensor]] | None,
        head: Callable[[Inputs], Any] | None,
        embeddings: Mapping[str, str] | None,
        carry_ids: Iterable[str],
        penultimate: str | None,
        classify: Callable[[Tensor], Tensor] | None,
        batch_rows: int,
        task: Task,
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise UserError(f"module={type(module).__name__}: must be an nn.Module")
        if isinstance(modalities, str) or not modalities:
            raise UserError(f"modalities={modalities!r}: must be names, at least one")
        for key, value in (("num_classes", num_classes), ("batch_rows", batch_rows)):
            if value < 1:
                raise UserError(f"explained: {key}={value}: must be at least 1")
        self.module, self.task = module, check_task(task)
        self.modalities = tuple(modalities)
        self.num_classes, self.batch_rows = num_classes, batch_rows
        self.embeddings, self.carried = dict(embeddings or {}), frozenset(carry_ids)
        self._own_encode, self._own_head, self._own_classify = encode, head, classify
        self._check_options()
        for name in (*self.embeddings.values(), *filter(None, [penultimate])):
            self._layer(name)
        if encode is None and forward is None:
            arguments = modalities if isinstance(modalities, Mapping) else None
            self._pass: Callable[[Inputs], tuple[tuple[Any, ...], Inputs]] | None = call_of(
                module, modalities, arguments
            )
        else:
            self._pass = None
        self._forward = forward
        self._penultimate = penultimate  # "": the logits stand for the features
        self._given: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self._checked = False

    def _check_options(self) -> None:
        if (self._own_encode is None) != (self._own_head is None):
            raise UserError("explained: encode and head must be given together; for a module called anew, use forward")
        for key, names in (("embeddings", self.embeddings), ("carry_ids", self.carried)):
            allowed = self.modalities if key == "embeddings" else tuple(self.embeddings)
            if unknown := [name for name in names if name not in allowed]:
                raise UserError(f"explained: {key} names {unknown[0]!r}; must be of {listed(allowed)}")
        layers = list(self.embeddings.values())
        if twice := [name for name in layers if layers.count(name) > 1]:
            raise UserError(f"explained: embeddings names the layer {twice[0]!r} twice; use encode and head instead")
        if self.carried and self._own_encode is not None:
            raise UserError("explained: carry_ids goes with embeddings, not with your own encode and head")

    # ------------------------------------------------------------------------------------------------- the protocol

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encoding of each modality in `inputs`, (B, ...): the input, its embedding, or what the user's encode says.

        Raises:
            UserError: An input is not a tensor, the clips differ in number, an id does not exist, or, the first time,
                the head does not repeat the module's logits.
        """
        given = {name: inputs[name] for name in self.modalities if name in inputs}
        for name, x in given.items():
            require_tensor(name, x)
        if len({len(x) for x in given.values()}) > 1:
            sizes = ", ".join(f"{name} has {len(x)}" for name, x in given.items())
            raise UserError(f"inputs: {sizes} clips; must be of the same clips")
        whole = len(given) == len(self.modalities)
        if self._own_encode is not None:
            encodings = dict(self._own_encode(dict(given)))
            if absent := [name for name in given if name not in encodings]:
                raise UserError(f"explained: encode gave no encoding of {absent[0]!r}; it gave {listed(encodings)}")
            encodings = {name: encodings[name] for name in given}
        else:
            encodings = {name: self._encoding(name, x) for name, x in given.items()}
        if whole and not self._checked:
            self.check(given, encodings)
        return encodings

    def penultimate(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Penultimate features, (B, D), of encodings (B, ...)."""
        return self._rows(lambda part: self._features(part), encodings)

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, C) of penultimate features (B, D)."""
        if self._own_classify is not None:
            return self._own_classify(features)
        if not self._penultimate:
            return features
        logits: Tensor = self._layer(self._penultimate)(features)
        return logits

    def head(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) of encodings (B, ...), `batch_rows` rows at a time."""
        return self._rows(self._logits, encodings)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C)."""
        return self.head(self.encode(inputs))

    @property
    def meets_early(self) -> bool:
        """Whether a row of the head is a pass of the whole network."""
        return self._own_encode is None

    def embedding(self, modality: str) -> nn.Module | None:
        """The layer that embeds a modality's ids; None if none is named."""
        return self._layer(self.embeddings[modality]) if modality in self.embeddings else None

    def encoded_vectors(self, modality: str, ids: Tensor, vectors: Tensor) -> Tensor | None:
        """Encoding (B, ...) whose ids (B, T) are embedded as `vectors` (B, T, D); None if `encode` is the user's."""
        if self._own_encode is not None:
            return None
        return self._joined(modality, ids, vectors)

    # ----------------------------------------------------------------------------------------------------- checking

    def check(self, inputs: Mapping[str, Tensor], encodings: Mapping[str, Tensor] | None = None) -> None:
        """Compares logits of the head with the module's own, and finds the layer of the penultimate feature.

        Args:
            inputs: Input of each modality, (B, ...).
            encodings: Their encodings; None: made here.

        Raises:
            UserError: The logits differ, or `classify` of the features gives others.
        """
        some = {name: x[: self.batch_rows] for name, x in inputs.items()}
        self._checked = True
        try:
            with undisturbed(self), torch.no_grad():
                encodings = self.encode(some) if encodings is None else encodings
                part = {name: e[: self.batch_rows].detach() for name, e in encodings.items()}
                logits = self._logits(part)
                if self.embeddings and self._own_encode is None:
                    self._compare_whole(some, logits)
                if self._penultimate is None:
                    self._penultimate = self._last_linear(part, logits)
                said = self.classify(self._features(part))
                if said.shape != logits.shape or not close(said, logits):
                    raise UserError(
                        f"explained: classify of the input of penultimate={self._penultimate!r} is not the logits "
                        f"({difference(said, logits)}); name the layer whose output is the logits, or give classify"
                    )
        except BaseException:
            self._checked = False
            raise

    def _compare_whole(self, inputs: Inputs, logits: Tensor) -> None:
        own = self._called({name: x.clone() for name, x in inputs.items()})
        if not close(own, logits):
            raise UserError(
                f"explained: the logits do not follow from the embeddings of {listed(self.embeddings)} "
                f"({difference(own, logits)}); if the module reads the ids elsewhere, as for a padding mask, add "
                f"carry_ids={sorted(self.embeddings)}"
            )

    def _last_linear(self, encodings: Inputs, logits: Tensor) -> str:
        """Name of the last linear layer whose output is the logits; empty if there is none."""
        seen: list[tuple[str, Tensor, Tensor]] = []
        with ExitStack() as stack:
            for name, layer in self.module.named_modules():
                if isinstance(layer, nn.Linear) and layer.out_features == self.num_classes:

                    def keep(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
                        seen.append((name, args[0] if args else output, output))

                    stack.callback(layer.register_forward_hook(keep).remove)
            self._logits(encodings)
        for name, features, output in reversed(seen):
            once = sum(other == name for other, _, _ in seen) == 1
            if once and features.ndim == 2 and output.shape == logits.shape and close(output, logits):
                return name
        note("explained: no linear layer's output is the logits, which stand for the penultimate features")
        return ""

    # ------------------------------------------------------------------------------------------------------ running

    def _encoding(self, modality: str, x: Tensor) -> Tensor:
        if modality not in self.embeddings:
            return x
        self._given[modality] = (x.shape[1:], x.dtype)
        layer = self._layer(self.embeddings[modality])
        if isinstance(layer, nn.Embedding):
            require_ids(modality, x, layer)
        vectors = layer(x.clone())
        if not isinstance(vectors, Tensor):
            where = self.embeddings[modality]
            raise UserError(f"explained: embeddings.{modality}={where}: must return one tensor; use encode and head")
        return self._joined(modality, x, vectors)

    def _joined(self, modality: str, ids: Tensor, vectors: Tensor) -> Tensor:
        if modality not in self.carried:
            return vectors
        return torch.cat([vectors, (ids.to(vectors) * ID_SCALE).unsqueeze(-1)], dim=-1)

    def _called(self, inputs: Inputs) -> Tensor:
        """Logits of the module."""
        if self._forward is not None:
            return self._tensor(self._forward(inputs))
        assert self._pass is not None
        positional, named = self._pass(inputs)
        return self._tensor(self.module(*positional, **named))

    def _logits(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """The head on rows that fit."""
        own = {name: encodings[name].clone() for name in self.modalities}  # a first layer may work in place
        if self._own_head is not None:
            return self._tensor(self._own_head(own))
        with ExitStack() as stack:
            for name, path in self.embeddings.items():
                ids = self._placeholder(name, own[name])
                vectors = own[name][..., :-1] if name in self.carried else own[name]
                stack.enter_context(substituted(self._layer(path), vectors, f"embeddings.{name}={path}"))
                own[name] = ids
            return self._called(own)

    def _placeholder(self, modality: str, encoding: Tensor) -> Tensor:
        """Input of the module in place of embeddings: the carried ids, or zeros."""
        layer = self._layer(self.embeddings[modality])
        if modality in self.carried:
            most = getattr(layer, "num_embeddings", 2**24)
            return (encoding[..., -1].detach() / ID_SCALE).round().long().clamp(0, most - 1)
        if isinstance(layer, nn.Embedding):
            return torch.zeros(encoding.shape[:-1], dtype=torch.long, device=encoding.device)
        if modality not in self._given:
            raise UserError(f"explained: encode the modality {modality!r} first: its input's shape is not known")
        shape, dtype = self._given[modality]
        return torch.zeros(len(encoding), *shape, dtype=dtype, device=encoding.device)

    def _features(self, encodings: Mapping[str, Tensor]) -> Tensor:
        if self._penultimate is None:
            with undisturbed(self), torch.no_grad():
                part = {name: e[: self.batch_rows].detach() for name, e in encodings.items()}
                self._penultimate = self._last_linear(part, self._logits(part))
        if not self._penultimate:
            return self._logits(encodings)
        seen: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.extend([value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)][:1])

        handle = self._layer(self._penultimate).register_forward_pre_hook(keep, with_kwargs=True)
        try:
            logits = self._logits(encodings)
        finally:
            handle.remove()
        if len(seen) != 1 or seen[0].ndim != 2 or len(seen[0]) != len(logits):
            shapes = ", ".join(str(tuple(x.shape)) for x in seen) or "nothing"
            raise UserError(
                f"explained: penultimate={self._penultimate}: must be a layer that runs once and takes features "
                f"({len(logits)}, D); it took {shapes}"
            )
        return seen[0]

    def _rows(self, function: Callable[[Inputs], Tensor], encodings: Mapping[str, Tensor]) -> Tensor:
        if absent := [name for name in self.modalities if name not in encodings]:
            raise UserError(f"encodings: none of {absent[0]!r}; they are of {listed(encodings)}")
        count = len(next(iter(encodings.values())))
        starts = range(0, max(count, 1), self.batch_rows)
        return torch.cat(
            [function({name: encodings[name][i : i + self.batch_rows] for name in self.modalities}) for i in starts]
        )

    def _tensor(self, output: Any) -> Tensor:
        """Logits (B, C) in what a module returned."""
        logits = getattr(output, "logits", output)
        if isinstance(logits, Mapping) and "logits" in logits:
            logits = logits["logits"]
        if isinstance(logits, tuple | list) and logits:
            logits = logits[0]
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != self.num_classes:
            kind = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"explained: {type(self.module).__name__} returned {kind}; must be logits (B, {self.num_classes}), or "
                "an object with them as .logits; say with forward how they are made"
            )
        return logits

    def _layer(self, name: str) -> nn.Module:
        try:
            return self.module.get_submodule(name)
        except AttributeError:
            layers = [path for path, _ in self.module.named_modules() if path]
            near = get_close_matches(name, layers, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {listed(layers[:5])}, ..."
            raise UserError(f"explained: {type(self.module).__name__} has no layer {name!r}{hint}") from None
