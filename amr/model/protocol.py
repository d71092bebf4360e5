"""Interface that an analysis requires of a model: `Explained`."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

MEMBERS = ("modalities", "num_classes", "encode", "penultimate", "classify")


@runtime_checkable
class Explained(Protocol):
    """A model that can be explained: an encoding per modality, features of all encodings, logits of the features.

    `FusionModel` is one, and `amr.multiviz.explained(module, ...)` makes one of any `nn.Module`. A class of your own
    needs these five members and no base class.

    Logits are `classify(penultimate(encode(inputs)))`. Rows are independent: no clip changes another clip's logits.
    """

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of shares."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        ...

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encoding of each modality in `inputs`, (B, ...), from that modality alone.

        A network whose modalities meet early returns the inputs themselves, or their embeddings.

        Args:
            inputs: Input of all modalities or of some, (B, ...).
        """
        ...

    def penultimate(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Features that the classifier sees, (B, D), from the encodings of all modalities."""
        ...

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, D)."""
        ...


def lacking(model: object) -> list[str]:
    """Members of `Explained` that an object does not have. A submodule counts, which `isinstance` overlooks."""
    return [name for name in MEMBERS if not hasattr(model, name)]
