"""The tasks of docs/multiviz/tasks.md: data that are made, and small models that are trained on them when asked for.

    amr analyze --model examples.multiviz_tasks:patients --data examples.multiviz_tasks:patients_data --out patients

`TASKS` names them all; `TASKS["shapes"].build()` gives the model from Python.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from amr.datamodules.synthetic import patients as patient_samples
from amr.datamodules.synthetic import sentiment as sentiment_samples
from amr.datamodules.synthetic import shapes as picture_samples
from amr.datamodules.synthetic.samples import Samples
from amr.encoders import MLPEncoder, SeriesEncoder
from amr.fusion import Concat, LowRank, MulT
from amr.model import FusionModel
from amr.multiviz import explained
from examples import multiviz_models as m

CELLS = 400  # steps of learning to name single cells
WORDS = len(picture_samples.WORDS)


@dataclass(frozen=True)
class Task:
    """A task and the model for it.

    Attributes:
        stands_for: The data set and model of the paper.
        make: Makes samples: of a count and a seed.
        untrained: Makes the model of random weights; the argument is the number of steps for its cells, if it has any.
        steps: Steps of training.
        rate: Largest rate of learning.
        hole: The group of samples that the debugging round's training data lack.
        loss: Of a batch.
    """

    stands_for: str
    make: Callable[[int, int], Samples]
    untrained: Callable[[int], nn.Module]
    steps: int
    rate: float
    hole: int
    loss: m.Loss = m.cross_entropy

    def build(self, seed: int = 0, steps: int | None = None, samples: Samples | None = None) -> Any:
        """The model, trained for `steps` (its own number) on `samples` (4000 made with `seed`)."""
        torch.manual_seed(seed)
        steps = self.steps if steps is None else steps
        model = self.untrained(min(CELLS, steps))
        made = self.make(4000 if steps > 10 else 100, 3 * seed) if samples is None else samples
        return m.train(model, made.inputs, made.labels, steps=steps, rate=self.rate, seed=seed, loss=self.loss)

    def data(self, seed: int = 0, train: int = 600, test: int = 400) -> dict[str, Any]:
        """Loaders for `amr analyze`: other samples than those of `build`."""
        made = {"train": self.make(train, 3 * seed + 1), "test": self.make(test, 3 * seed + 2)}
        about = {"labels": made["test"].classes, "kinds": made["test"].kinds, "name": self.stands_for}
        return {**{split: samples.batches(prefix=split) for split, samples in made.items()}, **about}


def _questions(head: Callable[[dict[str, int]], nn.Module]) -> Callable[[int], nn.Module]:
    """An LSTM, convolutions, and a head."""
    dims = {"question": 48, "image": 48}
    return lambda cells: FusionModel({"question": m.Words(WORDS), "image": m.Cells(48, cells)}, head(dims))


def _together(cells: int) -> nn.Module:
    network = m.Together(WORDS, m.Cells(48, cells), picture_samples.QUESTION, 6)
    names = ("question", "image")
    return explained(network, modalities=names, num_classes=6, embeddings={"question": "words"})


def _mult(_: int) -> nn.Module:
    encoders = {"text": m.Tokens(len(sentiment_samples.WORDS)), "audio": m.Steps(3), "video": m.Steps(64)}
    return FusionModel(encoders, MulT(dict.fromkeys(encoders, 24), 2, dim=24, layers=1, readout="mean"))


def _late(_: int) -> nn.Module:
    encoders = {"table": MLPEncoder(5, (32,), 16), "series": SeriesEncoder(4, "tcn", 16, 2)}
    return FusionModel(encoders, Concat(dict.fromkeys(encoders, 16), 2, hidden=32))


def _towers(cells: int) -> nn.Module:
    encoders = {"caption": m.CaptionTower(WORDS), "image": m.PictureTower(m.Cells(48, cells))}
    return FusionModel(encoders, m.DotProduct(dict.fromkeys(encoders, 32)))


TASKS = {
    "shapes": Task("CLEVR / CNN-LSTM-SA", picture_samples.shapes, _questions(lambda d: m.StackedAttention(d, 6)), 1200,
                   5e-3, 4),
    "sentiment": Task("CMU-MOSEI / MulT", sentiment_samples.sentiment, _mult, 250, 3e-3, 1),
    "patients": Task("MIMIC / late fusion", patient_samples.patients, _late, 500, 5e-3, 2),
    "captions": Task("Flickr30k / CLIP", picture_samples.captions, _towers, 500, 5e-3, 2, m.contrastive),
    "shapes_low_rank": Task("MM-IMDb / LRTF", picture_samples.shapes, _questions(lambda d: LowRank(d, 6)), 800, 5e-3,
                            4),
    "shapes_together": Task("VQA 2.0 / LXMERT, Flickr30k / ViLT", picture_samples.shapes, _together, 1000, 2e-3, 4),
}  # fmt: skip


def _named(name: str) -> tuple[Callable[[], Any], Callable[[], dict[str, Any]]]:
    """What `amr analyze --model` and `--data` call."""
    return lambda: TASKS[name].build(), lambda: TASKS[name].data()


shapes, shapes_data = _named("shapes")
sentiment, sentiment_data = _named("sentiment")
patients, patients_data = _named("patients")
captions, captions_data = _named("captions")
shapes_low_rank, shapes_low_rank_data = _named("shapes_low_rank")
shapes_together, shapes_together_data = _named("shapes_together")
