"""Small models for the tasks of docs/multiviz/tasks.md, and how they are trained."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amr.datamodules.synthetic.shapes import COLOURS, SHAPES, cells
from amr.encoders.base import Encoder
from amr.fusion.base import Fusion

MASK = 1  # the id of <mask> in the tasks' vocabularies
Loss = Callable[[nn.Module, dict[str, Tensor], Tensor], Tensor]


class Words(Encoder):
    """An LSTM over word ids (B, T); its last state, (B, dim), is the encoding."""

    def __init__(self, vocabulary: int, dim: int = 48) -> None:
        super().__init__()
        self.out_dim = dim
        self.words, self.lstm = nn.Embedding(vocabulary, dim), nn.LSTM(dim, dim, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lstm(self.words(x))[0][:, -1]
        return out


class Cells(Encoder):
    """A network for each of the 4 x 4 cells of a picture (B, 3, 32, 32): a token each, (B, 16, dim).

    Args:
        dim: Size of a token.
        steps: Steps of learning to name what a single cell shows; then the weights are fixed. 0: they stay random.
    """

    def __init__(self, dim: int = 48, steps: int = 0) -> None:
        super().__init__()
        self.out_dim = dim
        self.cells = nn.Sequential(nn.Conv2d(3, 64, 8, 8), nn.ReLU(), nn.Conv2d(64, dim, 1), nn.ReLU())
        namer = nn.Sequential(self.cells, nn.Flatten(), nn.Linear(dim, 1 + len(SHAPES) * len(COLOURS)))
        if steps:
            pixels, shown = cells(6000, seed=99)

            def named(model: nn.Module, given: dict[str, Tensor], labels: Tensor) -> Tensor:
                return F.cross_entropy(model(given["image"]), labels)

            train(namer, {"image": pixels}, shown, steps=steps, rate=5e-3, batch=128, loss=named)
            self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cells(x).flatten(2).mT
        return out


class StackedAttention(Fusion):
    """Stacked attention (Yang et al. 2016, section 3.3): the question looks at the picture twice.

    With v_i the cells and u the question, a hop is p = softmax(w · tanh(W v_i + U u)), u + Σ_i p_i v_i.
    """

    def __init__(self, dims: Mapping[str, int], num_classes: int, hops: int = 2) -> None:
        (_, dim), _ = dims.items()
        super().__init__(dims, num_classes, dim, hidden=dim)
        self.look = nn.ModuleList(nn.Linear(dim, dim) for _ in range(hops))
        self.ask = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(hops))
        self.score = nn.ModuleList(nn.Linear(dim, 1) for _ in range(hops))

    def combine(self, encodings: Mapping[str, Tensor]) -> Tensor:
        u, cells = (encodings[name] for name in self.dims)
        for look, ask, score in zip(self.look, self.ask, self.score, strict=True):
            weights = score(torch.tanh(look(cells) + ask(u)[:, None])).softmax(1)
            u = u + (weights * cells).sum(1)
        return u


class Tokens(Encoder):
    """The vector of each word id: (B, T) to (B, T, dim)."""

    def __init__(self, vocabulary: int, dim: int = 24) -> None:
        super().__init__()
        self.out_dim, self.words = dim, nn.Embedding(vocabulary, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.words(x)
        return out


class Steps(Encoder):
    """A network for each second or frame: (B, T, ...) of `size` numbers each to (B, T, dim)."""

    def __init__(self, size: int, dim: int = 24) -> None:
        super().__init__()
        self.out_dim = dim
        self.layers = nn.Sequential(nn.Linear(size, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x.flatten(2))
        return out


class CaptionTower(Encoder):
    """Pairs of neighbouring words of ids (B, T), added up to a vector of length 1, (B, dim)."""

    def __init__(self, vocabulary: int, dim: int = 32) -> None:
        super().__init__()
        self.out_dim, self.words = dim, nn.Embedding(vocabulary, 32)
        self.pairs, self.out = nn.Conv1d(32, 96, 2), nn.Linear(96, dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.out(self.pairs(self.words(x).mT).relu().sum(2)), dim=1)


class PictureTower(Encoder):
    """The cells of a picture, added up to a vector, (B, dim); of length 1 if `unit`."""

    def __init__(self, cells: Cells, dim: int = 32, unit: bool = True) -> None:
        super().__init__()
        self.out_dim, self.cells, self.unit = dim, cells, unit
        self.each, self.out = nn.Linear(cells.out_dim, 96), nn.Linear(96, dim)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.out(self.each(self.cells(x)).relu().sum(1))
        return F.normalize(whole, dim=1) if self.unit else whole


class DotProduct(Fusion):
    """Two vectors' scaled product as the log-odds of "fits" against "differs"; its terms are the features, (B, dim)."""

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__(dims, 2, next(iter(dims.values())))
        del self.classifier  # the terms are added up
        self.scale, self.bias = nn.Parameter(torch.tensor(10.0)), nn.Parameter(torch.tensor(-5.0))

    @property
    def multiaffine(self) -> bool:
        return True

    def combine(self, encodings: Mapping[str, Tensor]) -> Tensor:
        first, second = (encodings[name] for name in self.dims)
        return first * second

    def classify(self, fused: Tensor) -> Tensor:
        score = self.scale * fused.sum(1) + self.bias
        return torch.stack([score, -score], dim=1) / 2


class Together(nn.Module):
    """A transformer over words and cells, which meet in its first layer; for `amr.multiviz.explained`."""

    def __init__(self, vocabulary: int, cells: Cells, length: int, num_classes: int, layers: int = 2) -> None:
        super().__init__()
        dim = cells.out_dim
        self.words, self.cells = nn.Embedding(vocabulary, dim), cells
        self.places = nn.Parameter(0.02 * torch.randn(length + 16, dim))
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Linear(dim, num_classes)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        tokens = torch.cat([self.words(inputs["question"]), self.cells(inputs["image"])], dim=1)
        out: Tensor = self.out(self.layers(tokens + self.places).mean(1))
        return out


def cross_entropy(model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """The loss of a model that maps inputs to logits."""
    return F.cross_entropy(model(inputs), labels)


def contrastive(model: Any, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """The loss of two towers: which of the batch's captions fits a picture (as CLIP), and whether a pair's own does."""
    encodings = model.encode(inputs)
    captions, pictures = (encodings[name] for name in model.modalities)
    fits = (labels == 0).nonzero()[:, 0]
    chosen = F.cross_entropy(model.head.scale * pictures[fits] @ captions.mT, fits)
    return chosen + F.cross_entropy(model.head(encodings), labels)


def masked(ids: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Ids (B, T), each replaced by the mask token with a probability."""
    return torch.where(torch.rand(ids.shape, generator=generator) < share, MASK, ids)


def train(
    model: nn.Module,
    inputs: dict[str, Tensor],
    labels: Tensor,
    *,
    steps: int,
    rate: float = 3e-3,
    batch: int = 64,
    seed: int = 0,
    loss: Loss = cross_entropy,
    masks: float = 0.05,
) -> nn.Module:
    """Trains with Adam, the rate warmed up and then lowered along a cosine, and leaves the model in eval mode.

    A word is masked with probability `masks`, so that a model knows the token that replaces a word.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], rate)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
        rows = torch.randint(len(labels), (batch,), generator=generator)
        given = {
            name: x[rows] if x.is_floating_point() else masked(x[rows], masks, generator) for name, x in inputs.items()
        }
        value = loss(model, given, labels[rows])
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()
