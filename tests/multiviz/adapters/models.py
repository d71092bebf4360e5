"""Small models of transformers with random weights, and clips for them. Every third question is shorter than others."""

from typing import Any

import torch
import transformers
from torch import Tensor

WORDS, LENGTH, CLASSES = 30, 6, 5
BEGIN, END = 28, 29
SIZES: dict[str, Any] = {
    **{"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 24, "initializer_range": 0.3},
}


def vilt(**options: Any) -> Any:
    torch.manual_seed(0)
    image = {"image_size": 16, "patch_size": 8, "max_position_embeddings": 12}
    config = transformers.ViltConfig(**SIZES, **image, num_labels=CLASSES, **options)
    return transformers.ViltForQuestionAnswering(config).eval()


def lxmert() -> Any:
    torch.manual_seed(0)
    config = transformers.LxmertConfig(
        **{key: value for key, value in SIZES.items() if key != "num_hidden_layers"},
        **{"num_qa_labels": CLASSES, "visual_feat_dim": 7, "max_position_embeddings": 12},
        **{"l_layers": 2, "r_layers": 1, "x_layers": 2},
    )
    return transformers.LxmertForQuestionAnswering(config).eval()


def clip() -> Any:
    torch.manual_seed(0)
    text = {**SIZES, "max_position_embeddings": LENGTH, "eos_token_id": END, "bos_token_id": BEGIN, "pad_token_id": 0}
    vision = {**{key: v for key, v in SIZES.items() if key != "vocab_size"}, "image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    return transformers.CLIPModel(config).eval()


def visual_bert() -> Any:
    torch.manual_seed(0)
    config = transformers.VisualBertConfig(**SIZES, visual_embedding_dim=7, num_labels=CLASSES)
    return transformers.VisualBertForQuestionAnswering(config).eval()


def texts(count: int) -> Tensor:
    """Ids (N, 6) that begin and end, of 4 words or, in every third, of 2, which is filled up with 0."""
    ids = torch.randint(1, BEGIN, (count, LENGTH), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, -1] = BEGIN, END
    ids[::3, 3], ids[::3, 4:] = END, 0
    return ids


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def regions(count: int, width: int = 11) -> Tensor:
    """Features and boxes of four regions, of which the last is not there in every other image."""
    x = torch.rand(count, 4, width, generator=torch.Generator().manual_seed(3))
    x[::2, 3] = 0
    return x
