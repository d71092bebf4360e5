import pickle
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pyarrow as pa
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from amr.cli import main
from amr.datamodules import Clips, ListedClips
from amr.datamodules.loader import ClipLoader, ClipSampler, collate_clips
from amr.datamodules.store.media import Clip
from amr.datamodules.store.shards import ClipStore
from amr.datamodules.transforms import AudioTransform, ChosenFrames, VideoTransform
from amr.utils.errors import UserError
from tests.datamodules.conftest import write_clip, write_csv

Make = Callable[..., Clips]
Data = TypeVar("Data", bound=ListedClips)


def batches(loader: Iterable[Any], epoch: int = 0) -> list[dict[str, Any]]:
    if isinstance(loader, ClipLoader) and isinstance(loader.sampler, ClipSampler):
        loader.sampler.set_epoch(epoch)
    return list(loader)


def flat(found: list[list[str]]) -> list[str]:
    return [id for group in found for id in group]


def ids(found: list[dict[str, Any]]) -> list[list[str]]:
    return [batch["id"] for batch in found]


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return ids(a) == ids(b) and all(
        torch.equal(x["label"], y["label"])
        and all(torch.equal(x["inputs"][m], y["inputs"][m]) for m in x["inputs"])
        and x["inputs"].keys() == y["inputs"].keys()
        for x, y in zip(a, b, strict=True)
    )


def test_batch(make_module: Make) -> None:
    module = make_module()
    found = batches(module.train_dataloader())
    assert [len(batch["id"]) for batch in found] == [4, 4, 4, 1]
    assert len(module.train_dataloader()) == 4
    batch = found[0]
    assert batch.keys() == {"inputs", "label", "id"}
    assert list(batch["inputs"]) == ["audio", "video"]
    assert batch["inputs"]["audio"].shape == (4, 1, 16, 31)
    assert batch["inputs"]["video"].shape == (4, 2, 3, 16, 16)
    assert batch["label"].dtype == torch.int64
    label = {clip.id: clip.label for clip in module.clips}
    assert [module.labels[i] for i in batch["label"]] == [label[id] for id in batch["id"]]
    assert sorted(flat(ids(found))) == [f"c{i:02d}" for i in range(13)]
    assert flat(ids(batches(module.val_dataloader()))) == [f"c{i:02d}" for i in range(13, 18)]
    assert flat(ids(batches(module.test_dataloader()))) == [f"c{i:02d}" for i in range(18, 23)]
    assert len(make_module(drop_last=True).train_dataloader()) == 3
    assert list(batches(make_module(modalities=["video"]).val_dataloader())[0]["inputs"]) == ["video"]


def test_batches_do_not_depend_on_workers(make_module: Make) -> None:
    reference: list[list[dict[str, Any]]] = []
    for workers in (0, 1, 2):
        module = make_module(num_workers=workers)
        loader = module.train_dataloader()
        found = [batches(loader, 0), batches(loader, 1), batches(module.val_dataloader())]
        reference = reference or found
        assert all(same(a, b) for a, b in zip(reference, found, strict=True))
    assert ids(reference[0]) != ids(reference[1])


def test_draws(make_module: Make) -> None:
    """Training inputs change with the epoch and the seed; validation inputs, noise included, never do."""
    module, other = make_module(), make_module(seed=1)
    item = module.train_dataloader().dataset
    state = torch.get_rng_state()
    a, b, c = (item[(epoch, 3)]["inputs"] for epoch in (0, 1, 0))
    assert torch.equal(torch.get_rng_state(), state)
    for modality in a:
        assert torch.equal(a[modality], c[modality])
        assert not torch.equal(a["audio"], b["audio"])
        assert not torch.equal(a["audio"], other.train_dataloader().dataset[(0, 3)]["inputs"]["audio"])
    assert same(batches(module.val_dataloader()), batches(other.val_dataloader(), 5))
    only = make_module(modalities=["video"]).train_dataloader().dataset[(0, 3)]["inputs"]
    assert torch.equal(only["video"], a["video"])  # a unimodal run sees the same crops


class _Rank:
    """The part of a Trainer that the data module reads."""

    is_global_zero = True
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    precision_plugin = pl.plugins.Precision()

    def __init__(self, rank: int, world_size: int) -> None:
        self.global_rank, self.world_size = rank, world_size


def of_rank(module: Data, rank: int, world_size: int) -> Data:
    module.trainer = _Rank(rank, world_size)  # type: ignore[assignment]
    return module


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_global_batch(make_module: Make, world_size: int) -> None:
    size = 2
    whole = batches(make_module(batch_size=size * world_size).train_dataloader(), 1)
    ranks = [
        batches(of_rank(make_module(batch_size=size), r, world_size).train_dataloader(), 1) for r in range(world_size)
    ]
    assert {len(rank) for rank in ranks} == {len(ranks[0])}
    for k, parts in enumerate(zip(*ranks, strict=True)):
        assert len({len(part["id"]) for part in parts}) == 1  # every rank takes as many steps, with as many clips
        joined = [id for clip in zip(*(part["id"] for part in parts), strict=True) for id in clip]
        assert joined == whole[k]["id"][: len(joined)]
        order = [joined.index(id) for part in parts for id in part["id"]]
        x = torch.cat([part["inputs"]["audio"] for part in parts])
        assert torch.equal(x, whole[k]["inputs"]["audio"][order])
    assert sum(len(part["id"]) for rank in ranks for part in rank) == 13 - 13 % world_size


def test_evaluation_on_ranks_takes_every_clip_once(make_module: Make) -> None:
    found = [flat(ids(batches(of_rank(make_module(), r, 2).val_dataloader()))) for r in range(2)]
    assert [len(rank) for rank in found] == [3, 2]
    assert sorted(flat(found)) == [f"c{i:02d}" for i in range(13, 18)]


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_skips_without_decoding(make_module: Make, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make_module(num_workers=workers).train_dataloader()
    whole = batches(loader, 3)
    iterator = iter(loader)
    assert same([next(iterator), next(iterator)], whole[:2])
    state = pickle.loads(pickle.dumps(loader.state_dict()))  # noqa: S301
    assert (state["epoch"], state["batches"]) == (3, 2)

    fresh = make_module(num_workers=workers).train_dataloader()
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state
    assert len(fresh) == 4
    read: list[str] = []
    get = ClipStore.get

    def noted(store: ClipStore, id: str) -> dict[str, Any]:
        read.append(id)
        return get(store, id)

    monkeypatch.setattr(ClipStore, "get", noted)
    assert same(batches(fresh, 3), whole[2:])
    if not workers:
        assert read == flat(ids(whole[2:]))
    assert len(batches(fresh, 3)) == 4  # only the first pass is shortened


def test_resume_of_a_finished_epoch_starts_the_next(make_module: Make) -> None:
    loader = make_module().train_dataloader()
    batches(loader, 0)
    fresh = make_module().train_dataloader()
    fresh.load_state_dict(loader.state_dict())
    assert len(batches(fresh, 1)) == 4


def test_resume_with_another_plan_is_refused(make_module: Make) -> None:
    loader = make_module().train_dataloader()
    next(iter(loader))
    for change in ({"batch_size": 2}, {"seed": 1}):
        fresh = make_module(**change).train_dataloader()
        fresh.load_state_dict(loader.state_dict())
        with pytest.raises(UserError, match=r"cannot resume in the middle of epoch 0.*use the same"):
            next(iter(fresh))


class Recorder(pl.LightningModule):
    """Notes the clips of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[tuple[int, list[str], float]] = []
        self.validated: list[str] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch["id"], float(batch["inputs"]["audio"].sum())))
        return self.layer(batch["inputs"]["audio"].mean().view(1, 1)).sum()  # type: ignore[no-any-return]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.validated += batch["id"]

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[str]:
        return batch["id"]  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder: Path, **kwargs: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, **{**quiet, **kwargs})


pytestmark = [
    # The run that resumes need not save.
    pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path., callbacks"),
    # Lightning wants more loader processes than a test needs.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    # torch's own use of a deprecated name when a Trainer ends.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("every", [2, 4, 6])  # in the middle of epoch 0, at its end, in the middle of epoch 1
def test_trainer_resumes_with_the_unseen_batches(make_module: Make, tmp_path: Path, workers: int, every: int) -> None:
    whole = Recorder()
    trainer(tmp_path, max_epochs=3, enable_checkpointing=False).fit(whole, datamodule=make_module(num_workers=workers))
    assert len(whole.seen) == 12
    assert {clip for _, clips, _ in whole.seen[4:8] for clip in clips} == {f"c{i:02d}" for i in range(13)}

    save = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=every, save_top_k=-1)
    first = Recorder()
    trainer(tmp_path, max_steps=every, callbacks=[save]).fit(first, datamodule=make_module(num_workers=workers))
    assert first.seen == whole.seen[:every]
    second = Recorder()
    trainer(tmp_path, max_epochs=3, enable_checkpointing=False).fit(
        second,
        datamodule=make_module(num_workers=workers),
        ckpt_path=tmp_path / f"step={every}.ckpt",
        weights_only=False,
    )
    assert second.seen == whole.seen[every:]
    assert second.validated[-5:] == [f"c{i:02d}" for i in range(13, 18)]


def test_trainer_resumes_from_a_checkpoint_after_validation(make_module: Make, tmp_path: Path) -> None:
    whole = Recorder()
    save = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1)
    trainer(tmp_path, max_epochs=3, callbacks=[save]).fit(whole, datamodule=make_module())
    for epoch in (0, 1):
        second = Recorder()
        trainer(tmp_path, max_epochs=3, enable_checkpointing=False).fit(
            second, datamodule=make_module(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt", weights_only=False
        )
        assert second.seen == whole.seen[4 * (epoch + 1) :]


def test_trainer_predicts_every_clip(make_module: Make, tmp_path: Path) -> None:
    predicted = trainer(tmp_path).predict(Recorder(), datamodule=make_module(predict_split="train"))
    assert flat(predicted) == [f"c{i:02d}" for i in range(13)]  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_trainer_overfits_batches(make_module: Make, tmp_path: Path) -> None:
    model = Recorder()
    fit = trainer(tmp_path, max_epochs=2, overfit_batches=1, limit_val_batches=0, enable_checkpointing=False)
    fit.fit(model, datamodule=make_module())
    assert [clips for _, clips, _ in model.seen] == [["c00", "c01", "c02", "c03"]] * 2


@pytest.fixture
def patchy(tmp_path: Path) -> Path:
    """Six clips, the last three of which lack something."""
    rows = []
    for i in range(6):
        write_clip(tmp_path / f"{i}.mp4", seconds=0.4, audio=i != 3, video=i != 4)
        rows.append({"id": i, "file": f"{i}.mp4", "label": "ab"[i % 2], "split": "all"})
    (tmp_path / "5.mp4").write_bytes(b"")
    return write_csv(tmp_path / "clips.csv", rows)


def test_clips_with_problems_are_skipped(patchy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = Clips(patchy, store=tmp_path / "store", num_workers=0, prepare_workers=0, batch_size=9)
    module.prepare_data()
    module.setup("fit")
    assert batches(module.val_dataloader())[0]["id"] == ["0", "1", "2"]
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.endswith(
        "skipped 3 of 6 clips"
        " (audio no audio stream: 1, video no video stream: 1, audio zero bytes: 1, video zero bytes: 1)"
    )


def test_clips_with_problems_are_kept(patchy: Path, tmp_path: Path) -> None:
    module = Clips(patchy, store=tmp_path / "store", num_workers=0, prepare_workers=0, batch_size=9, missing="keep")
    module.prepare_data()
    batch = batches(module.val_dataloader())[0]
    assert batch["id"] == ["0", "1", "2", "3", "4"]
    assert batch["present"]["audio"].tolist() == [True, True, True, False, True]
    assert batch["present"]["video"].tolist() == [True, True, True, True, False]
    assert batch["present"]["audio"].dtype == torch.bool
    assert not batch["inputs"]["audio"][3].any()
    assert not batch["inputs"]["video"][4].any()
    assert batch["inputs"]["video"][3].any()
    audio_only = Clips(patchy, store=tmp_path / "store", num_workers=0, modalities=["audio"], batch_size=9)
    assert batches(audio_only.val_dataloader())[0]["id"] == ["0", "1", "2", "4"]


@pytest.fixture(params=["files", "pixels"])
def late(make_module: Make, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Make:
    """Makes modules whose frames are decoded, or normalised, after the transfer, as on a GPU, but on the CPU."""

    def make(**kwargs: Any) -> Clips:
        module = make_module(**kwargs)
        monkeypatch.setattr(module, "_hands_over", lambda: request.param)
        return module

    return make


def decoded(module: Clips, loader: ClipLoader, epoch: int = 0) -> list[dict[str, Any]]:
    found = batches(loader, epoch)
    for video in (batch["inputs"]["video"] for batch in found):
        assert isinstance(video, ChosenFrames) or video.dtype == torch.uint8
    return [module.on_after_batch_transfer(batch, 0) for batch in found]


@pytest.mark.parametrize("grayscale", [True, False])
@pytest.mark.parametrize("augment", ["none", "shift", "resized_crop"])
def test_late_frames_equal_early_ones(make_module: Make, late: Make, augment: Any, grayscale: bool) -> None:
    for flip in (False, True):
        video = VideoTransform(frames=3, size=(20, 16), augment=augment, flip=flip, grayscale=grayscale, std=0.3)
        one, other = make_module(video=video), late(video=video, predict_split="val")
        for epoch in (0, 1):
            assert same(batches(one.train_dataloader(), epoch), decoded(other, other.train_dataloader(), epoch))
        for split in ("val", "test"):
            loader = getattr(other, f"{split}_dataloader")()
            assert same(batches(getattr(one, f"{split}_dataloader")()), decoded(other, loader))
        assert same(batches(one.val_dataloader()), decoded(other, other.predict_dataloader()))


def test_late_frames_across_workers_and_ranks(make_module: Make, late: Make) -> None:
    module = late(num_workers=2)
    assert same(batches(make_module().train_dataloader(), 1), decoded(module, module.train_dataloader(), 1))
    for rank in range(2):
        one, other = (of_rank(make(), rank, 2) for make in (make_module, late))
        assert same(batches(one.train_dataloader()), decoded(other, other.train_dataloader()))


@pytest.mark.parametrize("kind", ["files", "pixels"])
def test_late_frames_of_clips_that_lack_them(
    patchy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    module = Clips(patchy, store=tmp_path / "store", num_workers=0, prepare_workers=0, batch_size=2, missing="keep")
    module.prepare_data()
    early = [batches(module.train_dataloader()), batches(module.val_dataloader())]
    monkeypatch.setattr(module, "_hands_over", lambda: kind)
    for a, b in zip(early, (module.train_dataloader(), module.val_dataloader()), strict=True):
        found = decoded(module, b)
        assert same(a, found)
        assert any(not batch["present"]["video"].all() for batch in found)
        assert [x["present"]["video"].tolist() for x in a] == [x["present"]["video"].tolist() for x in found]


def test_late_frames_through_a_trainer_that_resumes(make_module: Make, late: Make, tmp_path: Path) -> None:
    class Watcher(Recorder):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            assert batch["inputs"]["video"].dtype == self.layer.weight.dtype
            self.seen[-1] = (*self.seen[-1][:2], float(batch["inputs"]["video"].sum()))
            return loss

    whole, first, second = Watcher(), Watcher(), Watcher()
    options: dict[str, Any] = {"max_epochs": 2, "precision": "64-true"}  # which converts a batch before its transfer
    trainer(tmp_path, enable_checkpointing=False, **options).fit(whole, datamodule=make_module())
    save = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=6)
    trainer(tmp_path, callbacks=[save], max_steps=6, precision="64-true").fit(first, datamodule=late())
    trainer(tmp_path, enable_checkpointing=False, **options).fit(
        second, datamodule=late(), ckpt_path=tmp_path / "step=6.ckpt", weights_only=False
    )
    for seen in (first.seen[:6], first.seen + second.seen):
        assert [s[1] for s in seen] == [s[1] for s in whole.seen[: len(seen)]]
        assert [s[2] for s in seen] == pytest.approx([s[2] for s in whole.seen[: len(seen)]], rel=1e-6)


@pytest.mark.parametrize("late", ["files"], indirect=True)
def test_pinning_leaves_encoded_frames_alone(late: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())  # there may be no GPU to pin for
    module = late()
    batch = next(iter(module.train_dataloader()))
    pinned = pin_memory(batch)  # type: ignore[no-untyped-call]
    assert pinned["inputs"]["video"] is batch["inputs"]["video"]
    assert same(*([module.on_after_batch_transfer(b, 0)] for b in (batch, pinned)))


@pytest.mark.parametrize("late", ["pixels"], indirect=True)
def test_pixels_are_a_quarter_of_the_bytes(make_module: Make, late: Make) -> None:
    early, batch = (batches(make().train_dataloader())[0]["inputs"]["video"] for make in (make_module, late))
    assert batch.shape == early.shape
    assert 4 * batch.nbytes == early.nbytes


@pytest.mark.parametrize("late", ["files"], indirect=True)
def test_frames_of_a_batch_are_those_of_its_clips(late: Make) -> None:
    dataset = late().train_dataloader().dataset
    batch = collate_clips([dataset[i] for i in range(3)])
    for i, clip in enumerate(batch["inputs"]["video"].clips()):
        assert torch.equal(clip.data, dataset[i]["inputs"]["video"].data)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_decodes_nearly_the_same_pixels(make_module: Make, tmp_path: Path) -> None:
    class Kept(Recorder):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            assert batch["inputs"]["video"].device.type == "cuda"
            videos.append(batch["inputs"]["video"].cpu())
            return super().training_step(batch, batch_idx)

    for augment in ("none", "shift", "resized_crop"):
        for grayscale in (True, False):
            video = VideoTransform(
                frames=2, size=16, augment=augment, flip=True, grayscale=grayscale, mean=0.0, std=1.0
            )
            found = []
            for decode_on in ("cpu", "gpu"):
                videos: list[Tensor] = []
                fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False, accelerator="gpu", devices=1)
                fit.fit(Kept(), datamodule=make_module(video=video, decode_on=decode_on))
                found.append(torch.cat(videos))
            assert float((found[0] - found[1]).abs().max()) <= 4 / 255


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_decoding_on_a_gpu_that_is_not_there(make_module: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.decode_on=gpu: must be auto or cpu"):
        trainer(tmp_path, max_epochs=1).fit(Recorder(), datamodule=make_module(decode_on="gpu"))


def rot(store: Path, folder: Path, part: str, ids: Sequence[str] = ()) -> Path:
    """Copy a store of one shard, with the frames of some clips (none named: all) without their first bytes, or their
    sound one byte longer or shorter; returns the shard."""
    shutil.copytree(store, folder)
    (shard,) = folder.glob("shard-*.arrow")
    whole = pa.py_buffer(shard.read_bytes())
    data = bytearray(whole)
    reader = pa.ipc.open_file(pa.BufferReader(whole))
    for number in range(reader.num_record_batches - 1):  # the last is the index
        batch = reader.get_batch(number)
        if ids and batch.column("id")[0].as_py() not in ids:
            continue
        if part == "frames":
            _, offsets, content = batch.column("frames").values.buffers()
            for i in range(len(batch.column("frames").values)):
                place = content.address - whole.address + int.from_bytes(bytes(offsets[8 * i : 8 * i + 8]), "little")
                assert data[place : place + 2] == b"\xff\xd8"
                data[place : place + 2] = b"\0\0"
        else:
            data[batch.column("waveform").buffers()[1].address - whole.address + 8] ^= 1  # where it ends
    shard.write_bytes(data)
    return shard


@pytest.fixture
def in_memory(make_module: Make) -> Make:
    """Makes modules that keep their clips decoded."""
    sound = AudioTransform(seconds=0.3, n_fft=256, n_mels=16, time_shift_ms=20, noise_snr_db=10.0)
    return lambda **kwargs: make_module(**{"in_memory": True, "audio": sound, **kwargs})


def close(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return ids(a) == ids(b) and all(
        torch.equal(x["label"], y["label"])
        and x["inputs"].keys() == y["inputs"].keys()
        and all(torch.allclose(x["inputs"][m], y["inputs"][m], rtol=0, atol=1e-5) for m in x["inputs"])
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("kind", ["log_mel", "log_stft", "waveform"])
@pytest.mark.parametrize("augment", ["none", "shift", "resized_crop"])
def test_in_memory_equals_reading_clip_by_clip(
    in_memory: Make, augment: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "audio": AudioTransform(seconds=0.3, kind=kind, n_fft=256, n_mels=16, time_shift_ms=20, noise_snr_db=10.0),
        "video": VideoTransform(frames=3, size=(20, 16), augment=augment, flip=True, std=0.3),
    }
    one, other = in_memory(**options, in_memory=False), in_memory(**options)
    a, b = one.train_dataloader(), other.train_dataloader()
    assert all(close(batches(a, epoch), batches(b, epoch)) for epoch in (0, 1, 0))
    assert close(batches(one.test_dataloader()), batches(other.test_dataloader()))
    monkeypatch.setattr(ClipStore, "get", lambda self, id: pytest.fail("nothing is read twice"))
    batches(b, 2)


def test_in_memory_keeps_what_clips_lack(patchy: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"store": tmp_path / "store", "num_workers": 0, "batch_size": 4, "missing": "keep"}
    one, other = Clips(patchy, **options), Clips(patchy, **options, in_memory=True)
    one.prepare_data()
    a, b = batches(one.val_dataloader()), batches(other.val_dataloader())
    assert close(a, b)
    assert all(torch.equal(x["present"][m], y["present"][m]) for x, y in zip(a, b, strict=True) for m in x["present"])


def test_in_memory_is_in_memory_on_a_gpu_too(in_memory: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_disk: dict[str, Any] = {"in_memory": False}
    for options, made in ((on_disk, "files"), ({**on_disk, "decode_on": "cpu"}, "pixels"), ({}, "inputs")):
        module = in_memory(**options)
        device = SimpleNamespace(root_device=torch.device("cuda"))
        monkeypatch.setattr(module, "trainer", SimpleNamespace(strategy=device))
        assert module._hands_over() == made
    with pytest.raises(UserError, match=r"data.decode_on=gpu: must be auto or cpu with in_memory"):
        in_memory(decode_on="gpu")


def test_in_memory_has_no_masks(make_module: Make) -> None:
    with pytest.raises(UserError, match=r"data.in_memory=true: must be false with audio.freq_mask"):
        make_module(in_memory=True)


@pytest.mark.parametrize("part", ["frames", "sound"])
@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_clip(
    make_module: Make, late: Make, in_memory: Make, clip_store: Path, tmp_path: Path, part: str, workers: int
) -> None:
    shard = rot(clip_store, tmp_path / "rotten", part, ["c04"])
    for make in (make_module, late, in_memory):
        module = make(store=shard.parent, num_workers=workers)
        with pytest.raises(UserError) as caught:
            trainer(tmp_path, max_epochs=1, enable_checkpointing=False).fit(Recorder(), datamodule=module)
        message = f"{re.escape(str(shard))}: clip 'c04' is damaged \\(.*\\); run prepare --verify"
        assert re.fullmatch(message, str(caught.value))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_clip_on_the_command_line(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = rot(Path(tiny[tiny.index("--data.init_args.store") + 1]), tmp_path / "rotten", "frames")
    data = ["--data.init_args.store", str(shard.parent), "--data.init_args.num_workers", "1"]
    assert main(["fit", *tiny, *data, "--runs_dir", str(tmp_path / "runs"), "--wandb", "disabled"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(f"amr: {re.escape(str(shard))}: clip '.*' is damaged .*; run prepare --verify", last)
    assert "Traceback" not in last


def test_nothing_to_train_on(tmp_path: Path) -> None:
    write_csv(tmp_path / "clips.csv", [{"id": 1, "file": "never-made.mp4", "label": "a", "split": "train"}])
    module = Clips(tmp_path / "clips.csv", store=tmp_path / "store", prepare_workers=0)
    module.prepare_data()
    with pytest.raises(UserError, match=r"no training clip can be used .*file missing: 1.*report.csv"):
        module.setup()


def test_store_of_other_clips(make_module: Make) -> None:
    module = make_module()
    module.clips = [*module.clips, Clip("new", "a", "train", {})]
    with pytest.raises(UserError, match="clip 'new' is not in the store; run prepare again"):
        module.setup()


def test_empty_split(make_module: Make) -> None:
    module = make_module()
    module.clips = [Clip(c.id, c.label, "train", c.files) for c in module.clips]
    module.setup()
    with pytest.raises(UserError, match=r"no usable clip has split 'val'.*limit_val_batches"):
        module.val_dataloader()
