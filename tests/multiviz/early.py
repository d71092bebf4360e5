"""Networks that are not amr's: modalities that meet early, bags of words, towers."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from amr.datamodules.atoms import Atoms
from amr.multiviz import ExplainedModule, explained

WORDS, LENGTH, WIDTH, CLASSES = 12, 5, 8, 3


class Early(nn.Module):
    """A transformer over [words | image patches], which meet in its first layer; word 0 is padding if `padded`."""

    def __init__(self, padded: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.padded = padded
        self.words = nn.Embedding(WORDS, WIDTH)
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.5, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.out = nn.Linear(WIDTH, CLASSES)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return self.classified(self.words(text), self.patches(image).flatten(2).mT, (text == 0) & self.padded)

    def classified(self, words: Tensor, patches: Tensor, absent: Tensor | None = None) -> Tensor:
        """Logits of embedded words and patches."""
        mask = None if absent is None else torch.cat([absent, absent.new_zeros(len(words), patches.shape[1])], dim=1)
        mixed = self.layers(torch.cat([words, patches], dim=1), src_key_padding_mask=mask)
        logits: Tensor = self.out(mixed[:, -1])
        return logits


class Bag(nn.Module):
    """Logits that are sums of the words' weights, and a linear function of an image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.image = nn.Embedding(WORDS, CLASSES, padding_idx=0).double(), nn.Linear(4, CLASSES).double()

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        logits: Tensor = self.words(text).sum(1) + self.image(image)
        return logits


class Towers(nn.Module):
    """Two towers; the score of (match, no match) is a dot product and its negative."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(6, 4), nn.Linear(5, 4)

    def encode(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Either tower's vectors."""
        return {name: getattr(self, name)(x) for name, x in inputs.items()}

    def score(self, encodings: dict[str, Tensor]) -> Tensor:
        """Logits, (B, 2)."""
        dot = (encodings["one"] * encodings["two"]).sum(1)
        return torch.stack([dot, -dot], dim=1)


class Plain:
    """An `Explained` that is no module, as a user may write one."""

    modalities, num_classes = ("text", "image"), CLASSES

    def __init__(self, net: Early) -> None:
        self.net = net

    def encode(self, inputs: Any) -> dict[str, Tensor]:
        made: dict[str, Any] = {"text": self.net.words, "image": lambda x: self.net.patches(x).flatten(2).mT}
        return {name: made[name](inputs[name]) for name in self.modalities if name in inputs}

    def embedding(self, modality: str) -> nn.Module | None:
        return self.net.words if modality == "text" else None

    def penultimate(self, encodings: Any) -> Tensor:
        mixed: Tensor = self.net.layers(torch.cat([encodings["text"], encodings["image"]], dim=1))
        return mixed[:, -1]

    def classify(self, features: Tensor) -> Tensor:
        logits: Tensor = self.net.out(features)
        return logits


class Answers(nn.Module):
    """A module that is called and answers in another way."""

    def __init__(self, net: nn.Module, way: str) -> None:
        super().__init__()
        self.net, self.way = net, way

    def forward(self, batch: dict[str, Tensor]) -> Any:
        logits = self.net(**batch)
        return {
            "mapping": {"logits": logits},
            "tuple": (logits, None),
            "object": SimpleNamespace(logits=logits),
            "tensor": logits,
        }[self.way]


def early(padded: bool = False, **options: Any) -> ExplainedModule:
    """The transformer, wrapped in the shortest way that gives its ids a gradient."""
    options = {"embeddings": {"text": "words"}, **options}
    return explained(Early(padded), modalities=("text", "image"), num_classes=CLASSES, **options)


def clips(count: int = 4, length: int = LENGTH) -> dict[str, Tensor]:
    """Words, never padding, and images."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(1, WORDS, (count, length), generator=generator)
    return {"text": text, "image": torch.randn(count, 3, 8, 8, generator=generator)}


def words(length: int = LENGTH) -> Atoms:
    """Each word an atom."""
    return Atoms(torch.arange(length), tuple({"token": float(i)} for i in range(length)), (length,))
