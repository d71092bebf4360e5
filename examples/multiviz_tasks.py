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

CELLS = 800  # steps of learning to name single cells
WORDS = len(picture_samples.WORDS)
ANSWERS = len(picture_samples.COLOURS) + len(picture_samples.SHAPES)


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
        loss: Loss of a batch.
        batch: Samples of a batch.
        masks: Probability that a word is masked in training; 0 where another word stands in for one taken away.
    """

    stands_for: str
    make: Callable[[int, int], Samples]
    untrained: Callable[[int], nn.Module]
    steps: int
    rate: float
    hole: int
    loss: m.Loss = m.cross_entropy
    batch: int = 64
    masks: float = 0.05

    def build(self, seed: int = 0, steps: int | None = None, samples: Samples | None = None) -> Any:
        """The model, trained for `steps` (its own number) on `samples` (4000 made with `seed`)."""
        torch.manual_seed(seed)
        steps = self.steps if steps is None else steps
        model = self.untrained(min(CELLS, steps))
        made = self.make(4000 if steps > 10 else 100, 3 * seed) if samples is None else samples
        options: dict[str, Any] = {"batch": self.batch, "masks": self.masks, "seed": seed, "loss": self.loss}
        return m.train(model, made.inputs, made.labels, steps=steps, rate=self.rate, **options)

    def data(self, seed: int = 0, train: int = 600, test: int = 400) -> dict[str, Any]:
        """Loaders for `amr analyze`: other samples than those of `build`."""
        made = {"train": self.make(train, 3 * seed + 1), "test": self.make(test, 3 * seed + 2)}
        about = {"labels": made["test"].classes, "kinds": made["test"].kinds, "name": self.stands_for}
        return {**{split: samples.batches(prefix=split) for split, samples in made.items()}, **about}


def _attention(cells: int) -> nn.Module:
    encoders = {"question": m.Words(WORDS), "image": m.Cells(48, cells)}
    return FusionModel(encoders, m.StackedAttention(dict.fromkeys(encoders, 48), ANSWERS))


def _low_rank(cells: int) -> nn.Module:
    encoders = {"question": m.Words(WORDS), "image": m.PictureTower(m.Cells(48, cells), 48, unit=False)}
    return FusionModel(encoders, LowRank(dict.fromkeys(encoders, 48), ANSWERS))


def _together(cells: int) -> nn.Module:
    network = m.Together(WORDS, m.Cells(48, cells), picture_samples.QUESTION, ANSWERS)
    names = ("question", "image")
    return explained(network, modalities=names, num_classes=ANSWERS, embeddings={"question": "words"})


def _mult(_: int) -> nn.Module:
    encoders = {"text": m.Tokens(len(sentiment_samples.WORDS)), "audio": m.Steps(3), "video": m.Steps(64)}
    return FusionModel(encoders, MulT(dict.fromkeys(encoders, 24), 2, dim=24, layers=1, readout="mean"))


def _late(_: int) -> nn.Module:
    encoders = {"table": MLPEncoder(5, (32,), 16), "series": SeriesEncoder(4, "tcn", 16, 2)}
    return FusionModel(encoders, Concat(dict.fromkeys(encoders, 16), 2, hidden=32))


def _towers(cells: int) -> nn.Module:
    encoders = {"caption": m.CaptionTower(WORDS), "image": m.PictureTower(m.Cells(48, cells))}
    return FusionModel(encoders, m.DotProduct(dict.fromkeys(encoders, 32)))


LXMERT = "VQA 2.0 / LXMERT, Flickr30k / ViLT"
TASKS = {
    "shapes": Task("CLEVR / CNN-LSTM-SA", picture_samples.shapes, _attention, 1200, 5e-3, 4, batch=128),
    "shapes_together": Task(LXMERT, picture_samples.shapes, _together, 1200, 2e-3, 4),
    "shapes_low_rank": Task("MM-IMDb / LRTF", picture_samples.shapes, _low_rank, 1000, 5e-3, 4),
    "captions": Task("Flickr30k / CLIP", picture_samples.captions, _towers, 1200, 5e-3, 2, m.contrastive, masks=0.0),
    "sentiment": Task("CMU-MOSEI / MulT", sentiment_samples.sentiment, _mult, 250, 3e-3, 1),
    "patients": Task("MIMIC / late fusion", patient_samples.patients, _late, 500, 5e-3, 2),
}


def _named(name: str) -> tuple[Callable[[], Any], Callable[[], dict[str, Any]]]:
    """What `amr analyze --model` and `--data` call."""
    return lambda: TASKS[name].build(), lambda: TASKS[name].data()


shapes, shapes_data = _named("shapes")
sentiment, sentiment_data = _named("sentiment")
patients, patients_data = _named("patients")
captions, captions_data = _named("captions")
shapes_low_rank, shapes_low_rank_data = _named("shapes_low_rank")
shapes_together, shapes_together_data = _named("shapes_together")
