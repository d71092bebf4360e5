"""The model: encoders that see one modality each, and a head that sees only their encodings."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, Self

import torch
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor, nn

from amr.attribution import Head, Score, attribution_shares, evaluating, modules_in, undisturbed
from amr.encoders.base import Encoder
from amr.fusion.base import Fusion
from amr.model.batches import inputs_of
from amr.model.protocol import Explained, lacking
from amr.model.task import Task
from amr.utils.errors import UserError


class FusionModel(nn.Module):
    """Encoders followed by a head (fusion and classifier).

    Everything cross-modal lives in the head, so encodings can be cached and `head` re-run alone.

    Args:
        encoders: Encoder of each modality; the order is the order of shares.
        head: Fusion and classifier over those encodings.

    Attributes:
        task: Whether a clip has one class, several labels or a number.
        section: How the model is built, as a configuration's `model` section; see `model_section`.

    Raises:
        UserError: If a modality's name is not an identifier.
    """

    section: dict[str, Any]
    task: Task = "classes"

    def __init__(self, encoders: Mapping[str, Encoder], head: Fusion) -> None:
        super().__init__()
        for name in encoders:
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise UserError(f"model.encoders: {name!r} cannot name a modality; use letters, digits and _")
        self.encoders = nn.ModuleDict(encoders)
        self.head = head
        self.section = model_section(encoders, head)
        self.frozen: list[nn.Module] = []
        """Parts that stay in eval mode, since none of their parameters is trained."""

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of all parts but the frozen ones."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of shares."""
        return tuple(self.encoders)

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return self.head.num_classes

    def encode(self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Encodes each modality separately.

        Args:
            inputs: Input of each modality, (B, ...); further keys are ignored.
            present: Boolean (B,) for modalities that some clips lack. A missing clip's encoding is zero, and its
                placeholder input never reaches the encoder (nor its running statistics).

        Returns:
            Encoding of each modality, (B, D_m) or (B, T, D_m).

        Raises:
            UserError: If a modality has no input.
        """
        encodings = {}
        for name, encoder in self.encoders.items():
            if name not in inputs:
                raise UserError(f"batch: no input for the modality {name!r}; it has {', '.join(map(repr, inputs))}")
            mask = None if present is None else present.get(name)
            if mask is None or bool(mask.all()):
                encodings[name] = encoder(inputs[name])
            else:
                encodings[name] = _encode_present(encoder, inputs[name], mask)
        return encodings

    def penultimate(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Features that the classifier sees, (B, D)."""
        return self.head.fuse(encodings)

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, C) of penultimate features (B, D)."""
        return self.head.classify(features)

    def additive_logits(self, encodings: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Parts of the logits, (B, C) per modality, whose sum is the logits; None where the head is not such a sum."""
        return self.head.additive_logits(encodings)

    def score_of(self, score: Score) -> Score:
        """The score that attributions take: a label's log-odds are its logit, and of a number it is the output."""
        return score if self.task == "classes" else "logit"

    def forward(self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits, (B, C)."""
        logits: Tensor = self.head(self.encode(inputs, present))
        return logits

    def shares(self, batch: Any, *, score: Score = "probability", ig_steps: int | None = None) -> Tensor:
        """Share of each modality in the predictions, in eval mode: `amr.attribution_shares` of a batch.

        Args:
            batch: A batch as loaders give them, with or without label, or the inputs alone; it may be on any device.
            score: Score that is attributed, `probability` (log-odds) or `logit`.
            ig_steps: Number of points of integrated gradients; None for gradient times input.

        Returns:
            Shares (B, M), in the order of `modalities`; a row sums to 1, or is zeros for a clip that lacks a
            modality or has no attribution.

        Raises:
            UserError: It is not a batch of this model.
        """
        inputs, present = inputs_of(batch, self.modalities)
        inputs, present = move_data_to_device((inputs, present), next(self.parameters()).device)
        with undisturbed(self), torch.no_grad():
            encodings = self.encode(inputs, present)
        shares = attribution_shares(self.head, encodings, score=self.score_of(score), ig_steps=ig_steps)
        rows = complete_rows(self.modalities, present)
        return shares if rows is None else shares * rows.unsqueeze(1)

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of fusion and classifier: all that AMR may change."""
        return self.head.parameters()

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the encoders."""
        return self.encoders.parameters()

    def facts(self) -> dict[str, Any]:
        """Facts for a checkpoint, from which `amr.load_model` builds the model."""
        return {
            "modalities": list(self.modalities),
            "num_classes": self.num_classes,
            "built": self.section,
            "layers": layers_of(self),
            **({} if self.task == "classes" else {"task": self.task}),
        }


class HasModel(Protocol):
    """An object that trains a model, such as `FusionClassifier`."""

    model: FusionModel


def fusion_model(model: object, key: str = "model") -> FusionModel:
    """The `FusionModel` itself, of a model or of what trains it.

    Args:
        model: The model or its classifier.
        key: Name in the message.

    Raises:
        UserError: It is neither.
    """
    bare = getattr(model, "model", model)
    if not isinstance(bare, FusionModel):
        raise UserError(f"{key}={type(model).__name__}: must be a FusionModel or a FusionClassifier")
    return bare


def bare_model(model: object, key: str = "model") -> Explained:
    """The model itself, of anything that can be explained or of what trains it.

    Args:
        model: A `FusionModel`, a `FusionClassifier`, or another `Explained`.
        key: Name in the message.

    Raises:
        UserError: It is none of these.
    """
    if not lacking(model):
        return model  # type: ignore[return-value]
    bare = getattr(model, "model", model)
    if missing := lacking(bare):
        raise UserError(
            f"{key}={type(model).__name__}: it has no {', '.join(missing)}; must be a FusionModel, a FusionClassifier "
            "or an amr.multiviz.Explained, which amr.multiviz.explained(module, ...) makes of any module"
        )
    return bare  # type: ignore[return-value]


class ComposedHead:
    """Encodings to logits by `penultimate` and `classify`; evaluation mode reaches the model's modules through it."""

    def __init__(self, model: Explained) -> None:
        self.model = model

    def __call__(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Logits, (B, C)."""
        return self.model.classify(self.model.penultimate(encodings))


def head_of(model: Explained) -> Head:
    """Module that maps a model's encodings to its logits: a `FusionModel`'s own head, or `ComposedHead`."""
    return model.head if isinstance(model, FusionModel) else ComposedHead(model)


def encoder_of(model: Explained, modality: str) -> nn.Module:
    """The module that encodes a modality and nothing else.

    Raises:
        UserError: The model does not have the modality, or has no such module.
    """
    require_modality(model, modality)
    if not isinstance(model, FusionModel):
        raise UserError(
            f"model={type(model).__name__}: it has no encoder of {modality!r} alone, as a FusionModel has; "
            "use a method that needs none"
        )
    return model.encoders[modality]


def encode_alone(model: Explained, modality: str, x: Tensor) -> Tensor:
    """Encoding (B, ...) of one modality's input; no other modality is encoded.

    Args:
        model: The model.
        modality: The modality.
        x: Its input, (B, ...); left as it is by a first layer that works in place.

    Raises:
        UserError: `encode` wants another modality, too.
    """
    if isinstance(model, FusionModel):
        encoding: Tensor = model.encoders[modality](x.clone())
        return encoding
    try:
        return model.encode({modality: x.clone()})[modality]
    except KeyError as error:
        raise UserError(
            f"model={type(model).__name__}: encode must take {modality!r} alone; it asked for {error}"
        ) from error


def require_modality(model: Explained, modality: str) -> None:
    """Raises UserError unless the model has the modality."""
    if modality not in model.modalities:
        raise UserError(f"modality={modality!r}: must be one of {', '.join(model.modalities)}")


def device_of(model: object) -> torch.device:
    """Where a model's parameters are; the CPU for a model without any."""
    tensors = (tensor for module in modules_in(model) for tensor in (*module.parameters(), *module.buffers()))
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def rows_at_once(model: object, most: int) -> int:
    """Head rows in memory at once: `most`, or fewer if the model says so by `batch_rows`, as a whole network does."""
    return min(most, getattr(model, "batch_rows", most))


def model_section(encoders: Mapping[str, nn.Module], head: nn.Module) -> dict[str, Any]:
    """How encoders and a fusion were made, as a configuration's `model` section.

    What a configuration cannot say is None: a module that is no `Encoder` or `Fusion`, or with an argument that is no
    plain value, such as another module.
    """
    fusion = getattr(head, "description", None)
    if fusion is not None:
        arguments = dict(fusion["init_args"])
        dims, classes, *_ = [*list(inspect.signature(type(head).__init__).parameters)[1:], "", ""]
        sizes, number = arguments.pop(dims, None), arguments.pop(classes, None)
        asked = [(name, getattr(encoder, "out_dim", None)) for name, encoder in encoders.items()]  # in this order
        same = isinstance(sizes, dict) and list(sizes.items()) == asked and number == head.num_classes
        fusion = {**fusion, "init_args": arguments} if same else None
    return {
        "encoders": {name: getattr(encoder, "description", None) for name, encoder in encoders.items()},
        "fusion": fusion,
    }


def layers_of(model: nn.Module) -> dict[str, str]:
    """Name of each layer's class: a layer that was put in another's place is found by it."""
    return {name: type(module).__name__ for name, module in model.named_modules()}


def complete_rows(names: Iterable[str], present: Mapping[str, Tensor] | None) -> Tensor | None:
    """Boolean (B,): the clips that have every named modality; None if all do.

    The others have no shares to balance: AMR and the logged dominance leave them out alike.
    """
    masks = [present[name] for name in names if name in present] if present else []
    return torch.stack(masks).all(0) if masks else None


def complete_masks(names: Iterable[str], present: Mapping[str, Tensor] | None, batch: Tensor) -> Tensor:
    """Boolean (M, B): which clips have each named modality; all True where `present` does not name it.

    Args:
        names: M modalities.
        present: Boolean (B,) of the modalities that some clips lack.
        batch: Any tensor of the batch, (B, ...); gives the size and the device.
    """
    every = torch.ones(len(batch), dtype=torch.bool, device=batch.device)
    return torch.stack([(present or {}).get(name, every) for name in names])


def _encode_present(encoder: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """Encodes the rows where `mask` (B,) is true, and returns zeros elsewhere."""
    if bool(mask.any()):
        encoded: Tensor = encoder(x[mask])
    else:  # keeps every parameter in the graph, which DDP's reducer waits for, and takes the encoding's shape
        with torch.no_grad(), evaluating(encoder):
            sample: Tensor = encoder(x[:1])
        encoded = sample[:0] + 0 * sum(p.sum() for p in encoder.parameters() if p.requires_grad)
    return encoded.new_zeros(len(x), *encoded.shape[1:]).index_put((mask.nonzero().squeeze(1),), encoded)
