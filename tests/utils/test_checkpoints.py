"""A checkpoint's file: whole, undamaged, and as large as it says; whatever else is in it, the user gets one line."""

import copy
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from amr.classifier import FusionClassifier
from amr.encoders import SmallCNN
from amr.load import load_model
from amr.utils.checkpoints import AtomicCheckpointIO, check_checkpoint, checksum, read_checkpoint, unimodal_accuracy
from amr.utils.errors import UserError
from tests.fuzz import outcomes

ENCODER = {"class_path": "amr.encoders.SmallCNN", "init_args": {"width": 4, "out_dim": 8}}
SECTION = {"encoders": {"audio": ENCODER}, "fusion": {"class_path": "amr.fusion.Concat", "init_args": {"hidden": 6}}}


def content() -> dict[str, Any]:
    """A checkpoint's content, as the command line writes it."""
    torch.manual_seed(0)
    from amr.fusion import Concat

    model = FusionClassifier({"audio": SmallCNN(width=4, out_dim=8)}, lambda d, c: Concat(d, c, hidden=6), 4)
    model.config = copy.deepcopy(SECTION)
    checkpoint: dict[str, Any] = {
        "epoch": 0,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": model.state_dict(),
        "callbacks": {"BestCheckpoint": {"monitor": "val/acc", "best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.randn(3, 2)}}, "param_groups": [{"params": [0]}]}],
    }
    model.on_save_checkpoint(checkpoint)
    return checkpoint


def write(path: Path, given: dict[str, Any]) -> Path:
    AtomicCheckpointIO().save_checkpoint(given, path)
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("good") / "good.ckpt", content())


def read(path: Path) -> str:
    """Every way in; the checksum of the model that comes out."""
    check_checkpoint(path)
    model = load_model(path)
    unimodal_accuracy(path, "audio", 4)
    AtomicCheckpointIO().load_checkpoint(path)
    return checksum(model.state_dict())


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_checksum_is_of_every_tensor_and_its_place() -> None:
    base = {"a": torch.arange(6.0).view(2, 3), "b": [torch.tensor(1), {"c": torch.zeros(0)}], "n": 1}
    others: list[Any] = [
        {**base, "a": torch.arange(6.0).view(3, 2)},
        {**base, "a": torch.arange(6.0).view(2, 3).double()},
        {**base, "a": torch.arange(6.0).view(2, 3).nextafter(torch.tensor(9.0))},
        {**base, "b": [torch.tensor(1), {"d": torch.zeros(0)}]},
        {**base, "b": [torch.tensor(2), {"c": torch.zeros(0)}]},
        {"a": base["a"]},
    ]
    sums = [checksum(base), *map(checksum, others)]
    assert len(set(sums)) == len(sums)
    assert checksum({**base, "a": torch.arange(6.0).view(3, 2).T.contiguous().T.reshape(2, 3)}) == sums[0]
    assert checksum({**base, "n": 2}) == sums[0]
    assert checksum({"x": torch.ones(3, dtype=torch.bfloat16)}) != checksum({"x": torch.ones(3, dtype=torch.float16)})


def test_what_is_written_is_read(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, loaded = content(), AtomicCheckpointIO().load_checkpoint(good)
    assert loaded.pop("checksum") == checksum(given)
    assert loaded.keys() == given.keys()
    assert loaded["amr"] == given["amr"]
    for key, value in given["state_dict"].items():
        assert torch.equal(loaded["state_dict"][key], value)
    read(good)
    assert capsys.readouterr().err == ""


def test_a_changed_tensor_is_noticed_wherever_it_is_read(good: Path, tmp_path: Path) -> None:
    """As after an edit that leaves the archive sound."""
    path = tmp_path / "a.ckpt"
    for change in ("state_dict", "optimizer_states"):
        changed = torch.load(good, weights_only=True)
        if change == "state_dict":
            changed["state_dict"]["model.head.classifier.bias"][0] += 1e-6
        else:
            changed["optimizer_states"][0]["state"][0]["momentum_buffer"][0, 0] = 0
        torch.save(changed, path)
        for act in (
            load_model,
            read_checkpoint,
            AtomicCheckpointIO().load_checkpoint,
            lambda file: unimodal_accuracy(file, "audio", 4),
        ):
            with pytest.raises(UserError, match="is damaged: its tensors have another checksum"):
                act(path)


def test_an_older_one_without_a_checksum_is_read_and_says_so(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(content(), path)
    load_model(path)
    assert capsys.readouterr().err == f"{path}: it has no checksum of amr's; only its archive's are compared\n"
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size if "/data/" in entry.filename else 0)
        place = data.index(archive.read(entry))
    data[place + 5] ^= 1
    path.write_bytes(data)
    refused(path, "is damaged, at its entry a/data/")


class Command:
    def __reduce__(self) -> Any:
        return print, ("called",)


def test_files_that_are_larger_than_they_are(tmp_path: Path, good: Path) -> None:
    path = tmp_path / "a.ckpt"
    given = content()
    wide = torch.zeros(1).expand(10**12)
    torch.save({**given, "state_dict": {**given["state_dict"], "model.x": wide}}, path)
    refused(path, "its tensors are larger than the file, at /state_dict/model.x")
    torch.save({**given, "x": torch.empty(10**12, device="meta")}, path)
    refused(path, "is not a checkpoint")
    torch.save({**given, "x": bytearray(10)}, path)
    refused(path, "is not a checkpoint")
    torch.save({**given, "x": Command()}, path)
    refused(path, "is not a checkpoint")
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    refused(path, "is not a checkpoint")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 10**9}, "no weight of the head has that size"),
        ({"num_classes": 10**30}, "`amr.num_classes`"),
        ({"num_classes": True}, "`amr.num_classes`"),
        ({"modalities": []}, "`amr.modalities`"),
        ({"modalities": ["audio", "video"]}, "its list of modalities differ"),
        ({"model": [1]}, "`amr.model` is of type list"),
        ({"model": {}, "built": {}}, "no model section"),
        ({"model": {"encoders": [1]}}, "model.encoders names no encoder"),
        ({"model": {"encoders": {"audio": 1}}}, "model.encoders"),
        ({"methods": 1}, "`amr.methods`"),
        ({"seed": "x"}, "`amr.seed`"),
    ],
)
def test_malformed_facts(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = content()
    given["amr"].update(change)
    refused(write(tmp_path / "a.ckpt", given), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 10**6, "out_dim": 10**6}, "of another architecture"),  # of 10^13 weights, which are never made
        ({"width": 10**12}, "a number beyond 10,000,000"),
        ({"width": -1}, "width=-1: must be at least 1"),
        ({"width": 0.5}, "width"),
        ({"widths": 4}, "widths"),
        ({"width": "x"}, "width"),
    ],
)
def test_absurd_sizes_of_layers(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = content()
    given["amr"]["model"]["encoders"]["audio"]["init_args"].update(arguments)
    refused(write(tmp_path / "a.ckpt", given), message)


def test_more_layers_than_weights(tmp_path: Path) -> None:
    given = content()
    given["amr"]["model"]["fusion"] = {"class_path": "amr.fusion.Attention", "init_args": {"layers": 10**6}}
    refused(write(tmp_path / "a.ckpt", given), "more layers than the file has weights")


# -------------------------------------------------------------------------------------------------------------- fuzz


def mutated(data: bytes, draw: random.Random) -> bytes:
    """One fault: bits, a cut, a hole, a doubled or a moved piece."""
    content, place = bytearray(data), draw.randrange(len(data))
    size = draw.choice([1, 2, 16, 512])
    match draw.randrange(6):
        case 0:
            content[place] ^= 1 << draw.randrange(8)
        case 1:
            content[place : place + size] = draw.randbytes(size)
        case 2:
            del content[place:]
        case 3:
            content[place : place + size] = bytes(len(content[place : place + size]))
        case 4:
            content[place:place] = content[place : place + size]
        case _:
            piece = content[place : place + size]
            del content[place : place + size]
            other = draw.randrange(len(content) + 1)
            content[other:other] = piece
    return bytes(content)


def test_damaged_files_are_refused_or_what_they_were(good: Path, tmp_path: Path) -> None:
    draw, data, files = random.Random(13), good.read_bytes(), []
    ends = len(data) - 4000  # the archive's directory, and the pickle at the beginning, are small: aim at them, too
    for i in range(120):
        region = draw.choice([slice(0, 6000), slice(ends, None), slice(None)])
        fault = bytearray(data)
        fault[region] = mutated(data[region], draw)
        files.append(tmp_path / f"{i}.ckpt")
        files[-1].write_bytes(fault)
    found = outcomes(read, good, files)
    assert [line for line in found if line.startswith("fault")] == []
    assert {line for line in found[:-1] if line.startswith("value")} <= {f"value {read(good)}"}
    assert len([line for line in found if line.startswith("line")]) > 60


JUNK: tuple[Any, ...] = (
    *(None, True, 0, -1, 3, 10**9, 10**18, 10**40, 0.5, float("nan"), float("inf"), "", "x", "subprocess.call"),
    *("amr.fusion.Gated", "amr.encoders.ResNetEncoder", [], [1], {}, {"a": 1}, {1: 2}, [[[]]], {"class_path": "x"}),
    *({"class_path": "amr.fusion.Late"}, {"init_args": 3}, torch.zeros(2), torch.zeros(1).expand(10**12), "x" * 10**6),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value can be replaced."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def test_fields_of_any_kind_are_refused_in_one_line(good: Path, tmp_path: Path) -> None:
    draw, base, files = random.Random(14), content(), []
    of_amr = [place for place in places(base["amr"], ("amr",)) if len(place) > 0]
    others = [place for place in places(base) if place and place[0] != "amr"]
    for i in range(72):
        given = copy.deepcopy(base)
        *path, last = draw.choice(of_amr if i % 3 else others)
        parent: Any = given
        for key in path:
            parent = parent[key]
        if draw.random() < 0.2:
            del parent[last]
        else:
            parent[last] = draw.choice(JUNK)
        files.append(tmp_path / f"{i}.ckpt")
        torch.save(given, files[-1])
    found = outcomes(read, good, files)
    assert [line for line in found if line.startswith("fault")] == []
    assert len([line for line in found if line.startswith("line")]) > 30
