"""What `predict` writes of clips that lack something."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import pytorch_lightning as pl

from amr.callbacks.predictions import PredictionWriter
from amr.classifier import FusionClassifier
from amr.datamodules import Clips
from amr.datamodules.transforms import AudioTransform, VideoTransform
from amr.encoders import SmallCNN, SmallFrameCNN
from tests.datamodules.conftest import write_clip, write_csv

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own
LACKING = {"c2": "audio", "c5": "video", "c6": "audio", "c7": "audio"}  # c6 and c7: a whole batch without shares


@pytest.fixture
def data(tmp_path: Path) -> Clips:
    """Eight clips of each split, four of which lack a modality."""
    rows = []
    for i in range(8):
        for split in ("train", "test"):
            id = f"c{i}" if split == "test" else f"t{i}"
            lacks = LACKING.get(id)
            write_clip(tmp_path / f"{id}.mp4", hz=300 + 100 * i, audio=lacks != "audio", video=lacks != "video")
            rows.append({"id": id, "file": f"{id}.mp4", "label": "ab"[i % 2], "split": split})
    return Clips(
        write_csv(tmp_path / "clips.csv", rows),
        store=tmp_path / "store",
        audio=AudioTransform(seconds=0.4, n_mels=16),
        video=VideoTransform(frames=2, size=16, grayscale=True),
        missing="keep",
        batch_size=2,
        num_workers=0,
        prepare_workers=0,
    )


@pytest.mark.parametrize("dead", [False, True])
def test_a_clip_that_lacks_a_modality_has_no_shares(data: Clips, tmp_path: Path, dead: bool) -> None:
    encoders = {"audio": SmallCNN(width=4, out_dim=8), "video": SmallFrameCNN(frames=2, width=4, out_dim=8)}
    module = FusionClassifier(encoders, num_classes=2)
    if dead:  # the classifier reads nothing: there is no attribution to share
        module.model.head.classifier.weight.data.zero_()
    out = tmp_path / "predictions.parquet"
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    pl.Trainer(accelerator="cpu", callbacks=[PredictionWriter(out)], **options).predict(module, data)  # type: ignore[arg-type]
    rows = pq.read_table(out).to_pylist()
    assert [row["id"] for row in rows] == [f"c{i}" for i in range(8)]
    for row in rows:
        assert len(row["logits"]) == 2
        shares = [row["share/audio"], row["share/video"]]
        if dead or row["id"] in LACKING:
            assert shares == [None, None]
        else:
            assert sum(shares) == pytest.approx(1)
