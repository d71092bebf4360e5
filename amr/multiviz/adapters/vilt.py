"""ViLT: words and patches meet in the first layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amr.datamodules.atoms import Kind
from amr.model.calls import Inputs
from amr.multiviz.adapters.base import Adapter, masked, require_images, unmasked
from amr.utils.errors import UserError


class ViLT(Adapter):
    """`ViltForQuestionAnswering` (Kim et al. 2021): a question and an image.

    Encodings are the words' vectors (B, T, D + 1), without places and with their mask (`masked`), and the patches'
    (B, D, h, w). The head is all the rest, so a row costs a forward pass.

    The model shuffles the patches, and leaves out a random part of more than `config.max_image_length`. Here they stay
    in their order, which the logits do not depend on, and more of them are refused.

    Args:
        model: The model.
        processor: A `ViltProcessor`, for `inputs`. None: the user makes the inputs.
        batch_rows: Rows that run at once.

    Raises:
        UserError: The model is of another class.
    """

    def __init__(self, model: nn.Module, processor: Any = None, *, batch_rows: int = 64) -> None:
        words = "vilt.embeddings.text_embeddings.word_embeddings"
        classes = getattr(model, "num_labels", 1)
        super().__init__(
            model, "ViltForQuestionAnswering", processor, ("text", "image"), classes, words, None, batch_rows
        )

    def inputs(self, texts: Sequence[str], images: Sequence[Any]) -> dict[str, Tensor]:
        """Inputs of questions and images of one size.

        Raises:
            UserError: There is no processor, or it pads images, which are then of several sizes.
        """
        made = self._require_processor("texts and images")(
            images=list(images), text=list(texts), padding=True, return_tensors="pt"
        )
        if not bool(made.get("pixel_mask", torch.ones(1)).all()):
            raise UserError("ViLT: images of several sizes, which the processor pads; must be of one size: resize them")
        return {"text": made["input_ids"], "image": made["pixel_values"]}

    @property
    def kinds(self) -> dict[str, Kind]:
        """Words and blocks of pixels."""
        return {"text": self.words, "image": Kind("image")}

    def native(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) by the model's own forward pass."""
        x, ids = inputs["image"], inputs["text"]
        whole = torch.ones(len(x), *x.shape[2:], dtype=torch.long, device=x.device)
        mask = self.present(ids).long()
        return self._tensor(self.network(input_ids=ids, attention_mask=mask, pixel_values=x, pixel_mask=whole))

    def _encode(self, inputs: Inputs) -> Inputs:
        made = {}
        if "text" in inputs:
            made["text"] = masked(self.vectors(inputs["text"]), self.present(inputs["text"]))
        if "image" in inputs:
            made["image"] = self._patches(inputs["image"])
        return made

    def _patches(self, x: Tensor) -> Tensor:
        layer: Any = self._layer("vilt.embeddings.patch_embeddings")
        require_images(x, layer.num_channels)
        patches: Tensor = layer(x)
        most, count = _most_patches(self.network), patches.shape[2] * patches.shape[3]
        if most is not None and count > most:
            raise UserError(
                f"inputs.image: {count} patches, of which the model takes {most} by chance; must be {most} at most, or "
                "set model.config.max_image_length to -1"
            )
        return patches

    def _head(self, encodings: Inputs) -> Tensor:
        embedding: Any = self._layer("vilt.embeddings")
        words, mask = unmasked(encodings["text"])
        patches = encodings["image"]
        places = embedding.position_embeddings  # (1, 1 + P, D)
        side = self.network.config.image_size // self.network.config.patch_size
        grid = places[:, 1:].mT.reshape(1, -1, side, side)
        grid = F.interpolate(grid, size=patches.shape[2:], mode="bilinear", align_corners=True)
        first = (embedding.cls_token + places[:, :1]).expand(len(patches), -1, -1)
        tokens = torch.cat([first, (patches + grid).flatten(2).mT], dim=1)
        whole = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        given = {"attention_mask": mask, "image_embeds": tokens, "pixel_mask": whole}
        return self._tensor(self.network(inputs_embeds=words, **given))


def _most_patches(model: Any) -> int | None:
    """Number of patches that the model takes of an image; None: all."""
    most = model.config.max_image_length
    return most if isinstance(most, int) and most >= 0 else None
