"""LXMERT: words and regions have layers of their own before they meet."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amr.datamodules.atoms import Kind
from amr.model.calls import Inputs
from amr.multiviz.adapters.base import Adapter, masked, unmasked
from amr.utils.errors import UserError


class LXMERT(Adapter):
    """`LxmertForQuestionAnswering` (Tan & Bansal 2019): a question and the regions of an image.

    The modality `regions` is the features of each region and its box, (B, R, F + 4), of a detector that transformers
    does not have. A region of zeros is not there.

    Encodings are what the language layers make of the words and the relation layers of the regions, (B, T, D + 1) and
    (B, R, D + 1), with their masks (`masked`). The head is the crossmodal layers and the answer head.

    Args:
        model: The model.
        tokenizer: Its tokenizer, for `inputs`. None: the user makes the inputs.
        batch_rows: Rows that run at once.

    Raises:
        UserError: The model is of another class.
    """

    def __init__(self, model: nn.Module, tokenizer: Any = None, *, batch_rows: int = 64) -> None:
        words, classes = "lxmert.embeddings.word_embeddings", getattr(model, "num_qa_labels", 1)
        super().__init__(
            *(model, "LxmertForQuestionAnswering", tokenizer, ("text", "regions"), classes, words),
            penultimate=None,
            batch_rows=batch_rows,
        )

    def inputs(self, texts: Sequence[str], features: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Inputs of questions, features (B, R, F) and boxes (B, R, 4), whose ends are 0 to 1.

        Raises:
            UserError: There is no tokenizer, or features and boxes are not of the same regions.
        """
        if features.shape[:-1] != boxes.shape[:-1]:
            raise UserError(
                f"LXMERT: features {tuple(features.shape)} and boxes {tuple(boxes.shape)}; must be of the same"
            )
        made = self._require_processor("texts")(list(texts), padding=True, return_tensors="pt")
        return {"text": made["input_ids"], "regions": torch.cat([features, boxes], dim=-1)}

    @property
    def kinds(self) -> dict[str, Kind]:
        """Words and regions; a region that is taken away is not there."""
        return {"text": self.words, "regions": Kind("regions")}

    def native(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) by the model's own forward pass."""
        ids = inputs["text"]
        features, boxes, there = self._split(inputs["regions"])
        said = self.network(
            input_ids=ids,
            attention_mask=self.present(ids).long(),
            visual_feats=features,
            visual_pos=boxes,
            visual_attention_mask=there.long(),
        )
        return self._tensor(said.question_answering_score)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        config = self.network.config
        width, place = config.visual_feat_dim, config.visual_pos_dim
        if x.ndim != 3 or x.shape[-1] != width + place or not x.is_floating_point():
            kind = str(x.dtype).removeprefix("torch.")
            raise UserError(
                f"inputs.regions: {kind} {tuple(x.shape)}; must be floating-point (B, R, {width + place}): "
                f"{width} features and a box"
            )
        return x[..., :width], x[..., width:], (x != 0).any(-1)

    def _encode(self, inputs: Inputs) -> Inputs:
        base: Any = self._layer("lxmert")
        made = {}
        if "text" in inputs:
            ids = inputs["text"]
            there = self.present(ids)
            words = base.embeddings(None, torch.zeros_like(ids), self.vectors(ids))
            for layer in base.encoder.layer:
                words = layer(words, _additive(there, words))[0]
            made["text"] = masked(words, there)
        if "regions" in inputs:
            features, boxes, there = self._split(inputs["regions"])
            regions = base.encoder.visn_fc(features, boxes)
            for layer in base.encoder.r_layers:
                regions = layer(regions, _additive(there, regions))[0]
            made["regions"] = masked(regions, there)
        return made

    def _head(self, encodings: Inputs) -> Tensor:
        base: Any = self._layer("lxmert")
        (words, said), (regions, seen) = (unmasked(encodings[name]) for name in self.modalities)
        for layer in base.encoder.x_layers:
            words, regions = layer(words, _additive(said, words), regions, _additive(seen, regions))[:2]
        logits: Tensor = self._layer("answer_head")(base.pooler(words))
        return logits


def _additive(there: Tensor, vectors: Tensor) -> Tensor:
    """Attention mask to add to the scores of tokens, (B, 1, 1, T): 0, or the least number for absent tokens."""
    return (1 - there.to(vectors))[:, None, None] * torch.finfo(vectors.dtype).min
