"""`amr export`: onnxruntime and torch.export against the model, the stated preprocessing against the loader's."""

import functools
import hashlib
import json
import math
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import soxr
import torch
import torchaudio.functional as AF
import yaml
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg
from torchvision.transforms.v2.functional import resize  # type: ignore[attr-defined]

import amr.exporting
from amr.cli import main
from amr.datamodules import Synthetic
from amr.datamodules.preprocessing import preprocessing
from amr.datamodules.store.media import DecodeOptions
from amr.datamodules.transforms import AudioTransform, VideoTransform
from amr.encoders.base import Encoder
from amr.exporting import export_model
from amr.exporting.readme import FILES
from amr.fusion import Attention, Concat, FiLM, Fusion, Gated, Late, LowRank, MulT, Shared, Sum
from amr.load import load_model
from amr.model import FusionModel
from amr.utils.errors import UserError
from amr.utils.parser import OneLineParser
from tests.conftest import REPOSITORY
from tests.toy import Linear, Tokens

pytestmark = pytest.mark.filterwarnings("ignore")

FUSIONS: list[type[Fusion]] = [Concat, Sum, FiLM, Gated, LowRank, Attention, Late, MulT, Shared]


@pytest.fixture(scope="module", autouse=True)
def operators_once() -> Iterator[None]:
    """Each export parses the source of ONNX's 500 operators anew, which is two fifths of its time."""
    from torch.onnx._internal import _lazy_import

    apis = vars(_lazy_import)["onnxscript_apis"]  # imported when it is first used
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apis, "get_torchlib_ops", functools.cache(apis.get_torchlib_ops))
        yield


def model_of(fusion: type[Fusion], video: type[Encoder] = Linear) -> FusionModel:
    torch.manual_seed(0)
    small: dict[str, Any] = {"dim": 8, "layers": 1} if fusion is MulT else {}  # which has many layers by default
    head = fusion({"sound": 8, "sight": 8}, 5, hidden=6, **small)
    return FusionModel({"sound": Linear(), "sight": video()}, head).eval()


def inputs_of(batch: int) -> dict[str, Tensor]:
    return {name: torch.randn(batch, 6) for name in ("sound", "sight")}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_from_one_file_at_any_batch_size(fusion: type[Fusion], tmp_path: Path) -> None:
    model = model_of(fusion, Tokens if fusion in (Attention, MulT) else Linear)
    model.train()
    assert export_model(model, inputs_of(2), tmp_path, encodings=True) == ["model.onnx", "model.pt2"]
    assert model.training
    model.eval()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert {node.name: node.shape[0] for node in session.get_inputs()} == {"sound": "batch", "sight": "batch"}
    names = [node.name for node in session.get_outputs()]
    assert names == ["logits", "probabilities", "encoding_sound", "encoding_sight"]
    program = torch.export.load(tmp_path / "model.pt2").module()
    for batch in (1, 5):
        inputs = inputs_of(batch)
        with torch.no_grad():
            encoded = model.encode(inputs)
            logits = model.head(encoded)
        expected = [logits, torch.softmax(logits, 1), encoded["sound"], encoded["sight"]]
        values = session.run(names, {name: x.numpy() for name, x in inputs.items()})
        from_torch = program(**inputs)
        for name, ours, theirs in zip(names, expected, values, strict=True):
            np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-4, rtol=0)
            torch.testing.assert_close(from_torch[name], ours, atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    command = ["fit", *tiny, "--runs_dir", str(folder), "--name", "run", "--wandb", "disabled"]
    assert main([*command, "--trainer.max_epochs", "1"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    out = run.parent / "out"
    assert main(["export", "--ckpt", str(run / "checkpoints/best.ckpt"), "--out", str(out)]) == 0
    return out


def by_the_book(described: dict[str, Any], stored: Any) -> Tensor:
    """An input as preprocessing.json says, by other means than the transforms."""
    x: Any = stored
    for step in described["steps"]:
        match step["step"]:
            case "scale":
                x = torch.as_tensor(np.asarray(x)).double() / step["divide_by"]
            case "resample":
                assert step["clamp"] == [-1, 1]
                made = soxr.resample(x.numpy().astype(np.float32), step["from"], step["to"], "HQ").clip(-1, 1)
                length = math.ceil(len(x) * step["to"] / step["from"])
                x = torch.from_numpy(np.pad(made, (0, length - len(made)))).double()
            case "fit":
                length = step["samples"]
                if len(x) > length:
                    start = 0 if "first" in step["longer"] else (len(x) - length) // 2
                    x = x[start : start + length]
                elif "repeat" in step["shorter"]:
                    x = torch.cat([x] * math.ceil(length / len(x)))[:length]
                else:
                    x = torch.cat([x, x.new_zeros(length - len(x))])
            case "spectrogram":
                half = step["n_fft"] // 2
                if "zeros" in step["centred"]:
                    padded = torch.cat([x.new_zeros(half), x, x.new_zeros(half)])
                else:
                    padded = torch.cat([x[1 : half + 1].flip(0), x, x[-half - 1 : -1].flip(0)])
                window = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(step["n_fft"]).double() / step["n_fft"])
                frames = padded.unfold(0, step["n_fft"], step["hop_length"]) * window
                x = torch.fft.rfft(frames).abs().T ** step["power"]
            case "power spectral density":
                size, overlap = step["n_fft"], step["n_fft"] - step["hop_length"]
                from scipy.signal import spectrogram  # a second, which the other processes need not spend

                density = spectrogram(x.numpy(), step["sample_rate"], nperseg=size, noverlap=overlap)[2]
                x = torch.from_numpy(density)
            case "mel":
                ends = step["f_min"], step["f_max"]
                bank = AF.melscale_fbanks(
                    len(x), *ends, step["n_mels"], step["sample_rate"], step["norm"], step["scale"]
                )
                x = bank.double().T @ x
            case "log":
                x = (x + step["add"]).log()[None]
            case "choose frames":
                if "floor" in step["index"]:
                    x = [x[math.floor((i + 0.5) * len(x) / step["count"])] for i in range(step["count"])]
                else:
                    x = [x[min(i, len(x) - 1)] for i in range(step["count"])]
            case "colour":
                mode = ImageReadMode.GRAY if step["channels"] == "luminance" else ImageReadMode.RGB
                files = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in x]
                x = torch.stack(decode_jpeg(files, mode))  # type: ignore[arg-type]  # of a list, a list
            case "resize":
                x = resize(x, [step["height"], step["width"]], antialias=True)
            case "normalise":
                if "over" in step:
                    x = (x - x.mean()) / (x.std() + step["add_to_deviation"])
                else:
                    mean, deviation = (torch.tensor(step[key]).view(-1, 1, 1) for key in ("subtract", "divide_by"))
                    x = (x - mean) / deviation
            case other:
                raise AssertionError(other)
    assert ["batch", *x.shape] == described["shape"]
    assert len(described["axes"]) == len(described["shape"])
    return x.to(getattr(torch, described["dtype"]))  # type: ignore[no-any-return]


def test_what_is_said_of_the_inputs_makes_them(run: Path, exported: Path) -> None:
    """From the store's bytes, by the file alone, through onnxruntime: the model's logits on the loader's batch."""
    described = json.loads((exported / "preprocessing.json").read_text())
    assert described["labels"] == [f"class{k}" for k in range(4)]
    parser = OneLineParser()
    parser.add_subclass_arguments(Synthetic, "data")
    section = yaml.safe_load((run / "config.yaml").read_text())["data"]
    data: Synthetic = parser.instantiate_classes(parser.parse_object({"data": section})).data
    batch = next(iter(data.test_dataloader()))
    made: dict[str, list[Tensor]] = {"audio": [], "video": []}
    for name in batch["id"]:
        for modality, stored in data._clip_store.get(name).items():
            made[modality].append(by_the_book(described["inputs"][modality], stored))
    inputs = {name: torch.stack(rows) for name, rows in made.items()}
    for name, x in inputs.items():
        torch.testing.assert_close(x, batch["inputs"][name], rtol=0, atol=1e-3)
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    (logits,) = session.run(["logits"], {name: x.numpy() for name, x in inputs.items()})
    with torch.no_grad():
        expected = load_model(run / "checkpoints/best.ckpt")(batch["inputs"])
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-3)


RECIPES = ["crema-d", "crema-d-mmpareto", "crema-d-pmr", "vggsound", "vggsound-ogm-ge", "grid-letters"]


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_said_of_each_recipes_inputs_makes_them(name: str) -> None:
    """Of a sound and frames that are longer and shorter than the input, and one that resampling makes overshoot."""
    section = yaml.safe_load((REPOSITORY / f"configs/data/{name}.yaml").read_text())["data"]
    described = preprocessing(section)
    for part in described.values():  # as `export` writes it
        part.update(shape=["batch", *part["shape"]], axes=["batch", *part["axes"]])
    parser = OneLineParser()
    parts: dict[str, Any] = {"decode": DecodeOptions, "audio": AudioTransform, "video": VideoTransform}
    for key, part in parts.items():
        parser.add_class_arguments(part, key)
    made = parser.instantiate_classes(parser.parse_object({key: section["init_args"][key] for key in parts}))
    rng = np.random.default_rng(0)
    for seconds, frames in ((1.3, 1), (11, 20)):
        sound = rng.normal(0, 4000, round(seconds * 16000)).clip(-32768, 32767).astype(np.int16)
        sound[1000:2000] = np.where(np.arange(1000) % 100 < 50, 32767, -32768)
        x = made.audio(sound, made.decode.sample_rate, train=False)
        torch.testing.assert_close(by_the_book(described["audio"], sound), x, rtol=0, atol=2e-3)
        greys = [torch.full((3, 42, 64), 10 * i, dtype=torch.uint8) for i in range(frames)]
        jpegs = [bytes(file.numpy()) for file in encode_jpeg(greys)]
        x = made.video(jpegs, train=False)
        torch.testing.assert_close(by_the_book(described["video"], jpegs), x, rtol=0, atol=1e-3)


def test_the_readme_is_true(exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(exported)
    snippets = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), flags=re.DOTALL)
    assert len(snippets) == 2
    assert (exported / "card.md").read_text().startswith("# Model card: Naive fusion on synthetic")
    for code in snippets:
        exec(code, {})  # noqa: S102
    first, second = capsys.readouterr().out.splitlines()
    assert first[1:-1].split() == second.removeprefix("tensor([").removesuffix("])").split(", ")
    assert onnx.load("model.onnx").opset_import[0].version >= 18


def test_no_clip_is_needed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine, without the data; and one format, for which onnx need not be there."""
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["data"]["init_args"]["root"] = "/nowhere"
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": content["data"]}))
    command = ["export", "--ckpt", str(run / "checkpoints/best.ckpt"), "--data", str(tmp_path / "data.yaml")]
    assert main([*command, "--out", str(tmp_path / "out"), "--format", "torch"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"model.pt2", "README.md", "preprocessing.json"}
    assert not (tmp_path / "out/model.onnx").exists()


@pytest.mark.parametrize("card", [True, False])
def test_the_folder_holds_one_model(
    run: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, card: bool
) -> None:
    """What an earlier export left and this one does not write goes; what it did not leave is refused, and stays."""

    def write(_: Any, __: Any, out: Path, formats: Sequence[str], **___: Any) -> list[str]:
        for name in formats:  # what is in the files plays no part
            (out / FILES[name]).write_text(name)
        return [FILES[name] for name in formats]

    monkeypatch.setattr(amr.exporting, "export_model", write)
    out, own = tmp_path / "out", shutil.copytree(run, tmp_path / "run")
    command = ["export", "--ckpt", str(own / "checkpoints/best.ckpt"), "--out", str(out), "--format"]
    out.mkdir()
    (out / "mine.txt").write_text("mine")

    def there() -> set[str]:
        return {path.name for path in out.iterdir()} - {"README.md", "preprocessing.json", "mine.txt"}

    assert main([*command, "both"]) == 0
    assert there() == {"model.onnx", "model.pt2", "card.md"}
    if not card:
        (own / "card.md").unlink()
    left = {"card.md"} if card else set()
    for name, other in (("torch", "onnx"), ("onnx", "torch"), ("torch", "onnx")):
        file, gone = FILES[name], FILES[other]
        assert main([*command, name]) == 0
        assert there() == {file} | left
        readme = (out / "README.md").read_text()
        assert (file in readme, gone in readme, "card.md" in readme) == (True, False, card)
        recorded = json.loads((out / "preprocessing.json").read_text())["files"]
        assert recorded == {n: hashlib.sha256((out / n).read_bytes()).hexdigest() for n in there()}
    capsys.readouterr()
    before = (out / "model.pt2").read_bytes()
    (out / "model.onnx").write_text("made elsewhere")
    assert main([*command, "torch"]) == 2
    assert "model.onnx is there, which this export does not write" in capsys.readouterr().err
    (out / "model.onnx").unlink()
    (out / "model.pt2").write_bytes(before + b"changed since")
    assert main([*command, "onnx"]) == 2
    assert "model.pt2 is there, which this export does not write" in capsys.readouterr().err
    for broken in ("{", "[]", '{"files": ["model.pt2"]}', '{"files": null}'):
        (out / "model.pt2").write_bytes(before)
        (out / "preprocessing.json").write_text(broken)
        assert main([*command, "onnx"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"--out={out}: model.pt2 is there" in line
    assert (out / "model.pt2").read_bytes() == before
    assert (out / "mine.txt").read_text() == "mine"
    assert there() == {"model.pt2"} | left


class Fickle(Linear):
    """What it does depends on what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Stiff(Linear):
    """`len` fixes the batch size."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(len(x), -1))


class Odd(Concat):
    def combine(self, encodings: Any) -> Tensor:
        return super().combine(encodings) * float(encodings["sound"].sum())


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    for encoder in (Fickle, Stiff):
        with pytest.raises(
            UserError, match=f"^model.encoders.sight={encoder.__name__} cannot be exported: .+"
        ) as caught:
            export_model(model_of(Concat, encoder), inputs_of(2), tmp_path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^model.fusion=Odd cannot be exported: .+"):
        export_model(model_of(Odd), inputs_of(2), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_by_its_bare_name_and_one_far_from_its_run(
    run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_only = ["--format", "torch", "--out"]
    monkeypatch.chdir(run / "checkpoints")
    assert main(["export", "--ckpt", "best.ckpt", *torch_only, str(tmp_path / "bare")]) == 0
    assert json.loads((tmp_path / "bare/preprocessing.json").read_text())["labels"] == [f"class{k}" for k in range(4)]
    assert "the classes in the order" in (exported / "README.md").read_text()
    far = tmp_path / "far.ckpt"
    shutil.copy(run / "checkpoints/best.ckpt", far)
    config = str(run / "config.yaml")
    assert main(["export", "--ckpt", str(far), "--data", config, *torch_only, str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/preprocessing.json").read_text())["labels"] is None
    readme = (tmp_path / "out/README.md").read_text()
    assert "the classes in the order" not in readme
    assert "The classes' names are not in it" in readme


def test_a_card_that_is_a_link_is_not_followed_out_of_the_run(run: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "secret").write_text("the owner's")
    stranger = shutil.copytree(run, tmp_path / "stranger")
    (stranger / "card.md").unlink(missing_ok=True)
    (stranger / "card.md").symlink_to(tmp_path / "secret")
    command = ["export", "--ckpt", str(stranger / "checkpoints/best.ckpt"), "--out", str(tmp_path / "out")]
    assert main([*command, "--format", "torch"]) == 2
    assert "card.md: it is a link out of the run's folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (stranger / "card.md").unlink()
    (stranger / "card.md").write_bytes(bytes(2**20 + 1))
    assert main([*command, "--format", "torch"]) == 2
    assert "no model card is larger" in capsys.readouterr().err


def test_refused_in_one_line(run: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = str(run / "checkpoints/best.ckpt")
    toy = tmp_path / "toy.yaml"
    toy.write_text(yaml.safe_dump({"data": {"class_path": "tests.toy.Toy"}}))
    empty = tmp_path / "empty.yaml"
    empty.write_text("model: {}")
    broken = tmp_path / "broken.yaml"
    broken.write_text("data: [1\n x: {")
    alone = tmp_path / "alone.yaml"
    section = yaml.safe_load((run / "config.yaml").read_text())["data"]
    alone.write_text(
        yaml.safe_dump({"data": {**section, "init_args": {**section["init_args"], "modalities": ["audio"]}}})
    )
    cases = {
        "export knows the inputs of subclasses of ClipDataModule": ["--data", str(toy)],
        "must be a configuration with a `data` section": ["--data", str(empty)],
        "broken.yaml: not YAML": ["--data", str(broken)],
        "no such file": ["--data", str(tmp_path / "none.yaml")],
        "the model has 'video'; there are 'audio'": ["--data", str(alone)],
        "--format=tflite: must be one of onnx, torch, both": ["--format", "tflite"],
    }
    for message, arguments in cases.items():
        assert main(["export", "--ckpt", checkpoint, "--out", str(tmp_path / "out"), *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert main(["export", "--ckpt", "nowhere.ckpt", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("amr: --ckpt=nowhere.ckpt does not exist")
    half = tmp_path / "half"
    (half / "checkpoints").mkdir(parents=True)
    (half / "checkpoints/best.ckpt").symlink_to(checkpoint)
    (half / "config.yaml").symlink_to(run / "config.yaml")
    (half / "run.json").write_text("{")
    assert main(["export", "--ckpt", str(half / "checkpoints/best.ckpt"), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{half / 'run.json'}: not JSON" in line
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", "--ckpt", checkpoint, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "ONNX needs onnxscript, which is not installed: pip install 'amr-fusion[export]'" in line
    assert not (tmp_path / "out").exists()
