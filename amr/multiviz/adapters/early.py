"""Any other model of transformers, whose modalities meet early."""

from collections.abc import Mapping
from typing import Any

import transformers
from torch import Tensor, nn

from amr.model.wrapped import ExplainedModule, explained
from amr.utils.errors import UserError, listed


def early_fusion(
    model: nn.Module,
    modalities: Mapping[str, str],
    *,
    masks: Mapping[str, str] | None = None,
    embeddings: Mapping[str, str] | None = None,
    padding: int | None = None,
    num_classes: int | None = None,
    batch_rows: int = 64,
) -> ExplainedModule:
    """Wraps any classifier of transformers as a model that every analysis accepts.

    Encodings are the vectors of ids, and of the other modalities their inputs, or what the layers make of them that
    `embeddings` names. The head is the whole network.

    Args:
        model: A model with logits (B, C), such as `VisualBertForQuestionAnswering`.
        modalities: The argument of the model's `forward` by modality, such as `{"text": "input_ids"}`.
        masks: The argument that takes a modality's mask, such as `{"text": "attention_mask"}`. An id is present unless
            it is `padding`; of numbers (B, T, F), a row is present unless all its values are 0.
        embeddings: Layers by modality, as for `amr.multiviz.explained`. That of the argument `input_ids` is the model's
            `get_input_embeddings()` if it is not given.
        padding: Id that fills texts up; None: the model's `config.pad_token_id`.
        num_classes: Number of classes; None: the model's `config.num_labels`.
        batch_rows: Rows that run at once.

    Raises:
        UserError: The model is none of transformers, or a modality or layer does not exist.
    """
    if not isinstance(model, transformers.PreTrainedModel):
        raise UserError(f"model={type(model).__name__}: must be a model of transformers; use amr.multiviz.explained")
    masks, layers = dict(masks or {}), dict(embeddings or {})
    if unknown := [name for name in (*masks, *layers) if name not in modalities]:
        raise UserError(f"early_fusion: {unknown[0]!r} is no modality; must be of {listed(modalities)}")
    for name, argument in modalities.items():
        if argument == "input_ids" and name not in layers:
            layer = model.get_input_embeddings()
            layers[name] = next(path for path, module in model.named_modules() if module is layer)
    carried = [name for name in masks if name in layers]
    fill = model.config.pad_token_id if padding is None else padding
    if carried and fill is None:
        raise UserError(f"early_fusion: padding: must be given for the mask of {carried[0]!r}; the model names none")

    def forward(inputs: Mapping[str, Tensor]) -> Any:
        given: dict[str, Tensor] = {modalities[name]: x for name, x in inputs.items()}
        for name, argument in masks.items():
            x = inputs[name]
            given[argument] = ((x != 0).any(-1) if x.is_floating_point() else x != fill).long()
        return model(**given)

    return explained(
        model,
        modalities=list(modalities),
        num_classes=model.config.num_labels if num_classes is None else num_classes,
        forward=forward,
        embeddings=layers,
        carry_ids=carried,
        batch_rows=batch_rows,
    )
