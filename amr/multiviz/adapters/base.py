"""Base class of the adapters."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from amr.attribution import undisturbed
from amr.datamodules.atoms import Kind
from amr.model.calls import Inputs, close, difference
from amr.model.wrapped import ID_SCALE, ExplainedModule
from amr.utils.errors import UserError


class Adapter(ExplainedModule):
    """A model of transformers, split into the encoding of each modality and the head.

    An adapter follows a model's own forward pass part by part, so its logits are compared with the model's own when
    clips are first encoded, and a difference is an error.

    Args:
        model: The model.
        kind: Name of the class of transformers that it must be of.
        processor: Makes inputs of texts and images. None: the user does.
        modalities: Names of the modalities, in the order of shares.
        num_classes: Number of classes C.
        words: Name of the layer that embeds the ids of the modality `text`.
        penultimate: As for `amr.multiviz.explained`.
        batch_rows: Rows that run at once.

    Raises:
        UserError: The model is of another class.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: str,
        processor: Any,
        modalities: Sequence[str],
        num_classes: int,
        words: str,
        penultimate: str | None,
        batch_rows: int,
    ) -> None:
        require_model(model, kind)
        embeddings = {"text": words} if "text" in modalities else None
        super().__init__(
            *(model, modalities, num_classes, None, self._encode, self._head),
            *(embeddings, (), penultimate, None, batch_rows, "classes"),
        )
        self.processor = processor
        vocabulary = model.get_submodule(words)
        assert isinstance(vocabulary, nn.Embedding)
        self.vocabulary = vocabulary

    @abstractmethod
    def _encode(self, inputs: Inputs) -> Inputs:
        """Encoding of each modality that is given."""

    @abstractmethod
    def _head(self, encodings: Inputs) -> Tensor:
        """Logits of encodings."""

    @property
    @abstractmethod
    def kinds(self) -> dict[str, Kind]:
        """Kind of each modality's inputs: their atoms and baselines."""

    @abstractmethod
    def native(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) by the model's own forward pass."""

    @property
    def network(self) -> Any:
        """The wrapped model, whose parts are untyped."""
        return self.module

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer, or the processor if it is one; None without a processor."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def padding(self) -> int:
        """Id of the token that fills texts up: the tokenizer's, else the embedding layer's, else 0 as in BERT's."""
        given = getattr(self.tokenizer, "pad_token_id", None)
        return int((self.vocabulary.padding_idx or 0) if given is None else given)

    @property
    def words(self) -> Kind:
        """The kind of the modality `text`, whose atoms are words with their text.

        A word that is taken away becomes the tokenizer's mask token, if it has one.
        """
        return Kind("tokens", tokenizer=self.tokenizer, vocabulary=None if self.tokenizer is not None else "ids")

    def check(self, inputs: Mapping[str, Tensor], encodings: Mapping[str, Tensor] | None = None) -> None:
        """Compares logits with the model's own.

        Raises:
            UserError: They differ.
        """
        super().check(inputs, encodings)
        some = {name: x[: self.batch_rows] for name, x in inputs.items()}
        with undisturbed(self), torch.no_grad():
            said, own = self.head(self.encode(some)), self.native(some)
        if not close(said, own):
            self._checked = False
            raise UserError(
                f"{type(self).__name__}: logits are not those of {type(self.module).__name__} "
                f"({difference(said, own)}); the adapter does not fit transformers {version('transformers')}"
            )

    # ----------------------------------------------------------------------------------------------- parts of adapters

    def vectors(self, ids: Tensor) -> Tensor:
        """The words' vectors (B, T, D) of ids (B, T), which exist."""
        if ids.ndim != 2:
            raise UserError(f"inputs.text: {tuple(ids.shape)}; must be ids (B, T)")
        return self._encoding("text", ids)

    def present(self, ids: Tensor) -> Tensor:
        """The tokens that are no padding, boolean (B, T)."""
        return ids != self.padding

    def _require_processor(self, what: str) -> Any:
        if self.processor is None:
            raise UserError(f"{type(self).__name__}: processor: must be given to make inputs of {what}")
        return self.processor


def require_model(model: object, kind: str) -> None:
    """Raises UserError unless a model is of a class of transformers."""
    if not isinstance(model, getattr(transformers, kind)):
        raise UserError(f"model={type(model).__name__}: must be a transformers.{kind}")


def masked(vectors: Tensor, present: Tensor) -> Tensor:
    """Encoding (B, T, D + 1) of vectors (B, T, D) that carries which of them are there, (B, T).

    The mask is a last channel of 0 and 2^-24, which has no gradient and so no share.
    """
    return torch.cat([vectors, (present.to(vectors) * ID_SCALE).unsqueeze(-1)], dim=-1)


def unmasked(encoding: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (B, T, D) and the int64 mask (B, T) of an encoding; of a mean encoding, what most clips have is there."""
    return encoding[..., :-1], (encoding[..., -1].detach() > ID_SCALE / 2).long()


def require_images(x: Tensor, channels: int, size: tuple[int, int] | None = None) -> None:
    """Raises UserError unless images are (B, channels, H, W), of one size if that is given."""
    if x.ndim != 4 or x.shape[1] != channels or not x.is_floating_point() or (size and tuple(x.shape[2:]) != size):
        height, width = size or ("H", "W")
        kind = str(x.dtype).removeprefix("torch.")
        raise UserError(
            f"inputs.image: {kind} {tuple(x.shape)}; must be floating-point (B, {channels}, {height}, {width})"
        )
