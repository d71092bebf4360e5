"""CLIP: two towers whose score is a dot product."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from amr.attribution import undisturbed
from amr.datamodules.atoms import Kind
from amr.model.calls import Inputs, require_ids
from amr.multiviz.adapters.base import Adapter, require_images
from amr.utils.errors import UserError


class CLIP(Adapter):
    """`CLIPModel` (Radford et al. 2021): the score of a pair, or the classes that prompts name.

    Encodings are the towers' vectors of length 1, (B, D), so a row of the head costs a dot product.

    - Without prompts the modalities are `text` and `image`, and the classes "match" and "no match", whose
      logits are half the score exp(scale) · cos and minus that. The log-odds of "match" is the score.
    - With prompts the only modality is `image`, and a class's logit is the score of its prompt.

    **A pair's gradient shares are ½ for every clip, whatever the model has learned**: t · ∂s/∂t and v · ∂s/∂v are the
    same vector. Read the Shapley shares (`amr.attribution.shapley_shares`).

    Args:
        model: The model.
        processor: A `CLIPProcessor`, for `inputs`. None: the user makes the inputs.
        prompts: Ids of a text per class, (C, T), such as of "a photo of a cat". None: scores of pairs.
        batch_rows: Rows that run at once.

    Raises:
        UserError: The model is of another class, or a prompt does not end.
    """

    texts: Tensor

    def __init__(
        self, model: nn.Module, processor: Any = None, *, prompts: Tensor | None = None, batch_rows: int = 64
    ) -> None:
        modalities = ("text", "image") if prompts is None else ("image",)
        classes = 2 if prompts is None else len(prompts)
        words = "text_model.embeddings.token_embedding"
        super().__init__(model, "CLIPModel", processor, modalities, classes, words, "", batch_rows)
        self.prompts = prompts
        with undisturbed(model), torch.no_grad():
            texts = torch.zeros(0) if prompts is None else self._text(prompts)
        self.register_buffer("texts", texts, persistent=False)

    def inputs(self, texts: Sequence[str] | None, images: Sequence[Any]) -> dict[str, Tensor]:
        """Inputs of texts, None with prompts, and images.

        Raises:
            UserError: There is no processor.
        """
        processor = self._require_processor("texts and images")
        if texts is None:
            return {"image": processor(images=list(images), return_tensors="pt")["pixel_values"]}
        made = processor(text=list(texts), images=list(images), padding=True, truncation=True, return_tensors="pt")
        return {"text": made["input_ids"], "image": made["pixel_values"]}

    @property
    def kinds(self) -> dict[str, Kind]:
        """Words and blocks of pixels.

        A word that is taken away becomes id 0 ("!"): CLIP has no mask token, and its unknown token ends the text.
        """
        kinds = {"text": replace(self.words, baseline=0), "image": Kind("image")}
        return {name: kinds[name] for name in self.modalities}

    def native(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) by the model's own forward pass."""
        texts = inputs["text"] if self.prompts is None else self.prompts.to(inputs["image"].device)
        scores = self.network(input_ids=texts, pixel_values=inputs["image"]).logits_per_image
        return _pair(scores.diagonal()) if self.prompts is None else self._tensor(scores)

    def _text(self, ids: Tensor) -> Tensor:
        config = self.network.config.text_config
        if ids.ndim != 2 or ids.shape[1] > config.max_position_embeddings:
            raise UserError(
                f"inputs.text: {tuple(ids.shape)}; must be ids (B, T), T <= {config.max_position_embeddings}"
            )
        # 2 is what old configurations say, whose texts end at their highest id.
        if config.eos_token_id != 2 and not bool((ids == config.eos_token_id).any(1).all()):
            raise UserError(f"inputs.text: a text without an end; must have the id {config.eos_token_id} in each")
        require_ids("text", ids, self.vocabulary)
        # No mask: attention is causal, and what comes after the end cannot be seen from it.
        return _unit(self.network.get_text_features(input_ids=ids))

    def _encode(self, inputs: Inputs) -> Inputs:
        made = {}
        if "text" in inputs:
            made["text"] = self._text(inputs["text"])
        if "image" in inputs:
            config = self.network.config.vision_config
            require_images(inputs["image"], config.num_channels, (config.image_size, config.image_size))
            made["image"] = _unit(self.network.get_image_features(pixel_values=inputs["image"]))
        return made

    def _head(self, encodings: Inputs) -> Tensor:
        scale = self.network.logit_scale.exp()
        if self.prompts is None:
            return _pair(scale * (encodings["text"] * encodings["image"]).sum(1))
        scores: Tensor = scale * encodings["image"] @ self.texts.to(encodings["image"]).mT
        return scores


def _unit(features: Any) -> Tensor:
    """The vectors of a tower, (B, D), at length 1."""
    vectors: Tensor = getattr(features, "pooler_output", features)
    return nn.functional.normalize(vectors, dim=1)


def _pair(scores: Tensor) -> Tensor:
    """Logits (B, 2) of "match" and "no match" of scores (B,)."""
    return torch.stack([scores, -scores], dim=1) / 2
