"""`amr analyze` from the command line: what it writes, how it goes on, what it refuses."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torchmetrics.functional.classification import multiclass_calibration_error

from amr.attribution import attribution_shares
from amr.cli import analyze as analyzing
from amr.cli import main
from amr.datamodules.loader import ClipDataset
from amr.evaluation.use import calibration
from amr.load import load_model
from amr.multiviz import crossmodal as c
from amr.multiviz import unimodal as u
from amr.multiviz.analysis import maps, stages, summary, synergies
from amr.multiviz.analysis import whole as analysis_module
from amr.multiviz.analysis.analysis import Analysis, datamodule
from amr.multiviz.analysis.plan import STAGES, Plan
from amr.multiviz.base import Unit
from amr.multiviz.trust import interaction_sensitivity_n
from amr.utils import files
from amr.utils.arrays import read_table, slug
from amr.utils.errors import UserError
from amr.utils.readers import read_arrays
from tests.processes import dead_process, other_process_holds

CLIPS = 3
ATOMS = {"audio": (64, 16), "video": (32, 8)}  # fine and coarse, of the tiny clips
TABLES = {
    "predictions": {"id", "slug", "label", "predicted", "correct", "confidence", "top_classes", "top_probabilities"}
    | {"share_audio", "share_video", "error_kind", "error_modality", "explained", "file_audio", "file_video"}
    | {"start", "end", "problem"},
    "prediction": {"lambda", "units", "accuracy", "kkt_residual"},
    "units": {"class", "unit", "coefficient", "lambda"},
    "representation": {"unit", "end", "rank", "id", "value", "label"},
    "errors": {"id", "label", "predicted", "kind", "modality", "interaction_confidence", "prediction_confidence"}
    | {"references", "perception_audio_confidence", "perception_video_confidence"},
    "unimodal": {"id", "class", "stage", "unit", "modality", "method", "atoms", "atom", "value", "error"} | {"half"},
    "crossmodal": {"id", "class", "unit", "first", "second", "method", "atoms", "first_atom", "second_atom"}
    | {"value", "error"},
    "modalities": {"id", "label", "predicted", "emap_predicted", "additive", "interaction", "intershap"}
    | {"shapley_audio", "shapley_video", "pair_audio_video"}
    | {"shapley_half_audio", "shapley_half_video", "pair_half_audio_video"},
    "trust": {"stage", "method", "modality", "first", "second", "atoms", "score", "low", "high", "score_name", "clips"}
    | {"insertion_gain", "deletion_gain", "infidelity", "max_sensitivity", "stability", "top_overlap"}
    | {"randomised_head", "randomised_encoder", "randomised_model", "warnings"}
    | set(synergies.COLUMNS),
    "simulation": {"stage", "seed", "accuracy", "shuffled", "mean", "low", "high", "gain", "gain_low", "gain_high"}
    | {"alpha", "clips", "classes"},
    "selection": {"by", "budget", "seed", "accuracy", "errors_found"},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("analyzed")
    run = ["--runs_dir", str(folder), "--name", "run", "--wandb", "disabled", "--trainer.max_epochs", "2"]
    assert main(["fit", *tiny, *run]) == 0
    return folder / "run/checkpoints/best.ckpt"


def command(checkpoint: Path, out: Path, *more: str) -> list[str]:
    split = ["--split", "train"]  # the tiny test split is too small for the simulated user
    options = ["--clips", str(CLIPS), "--samples", "16", "--classes", "3", "--units", "2"]
    return ["analyze", "--ckpt", str(checkpoint), "--out", str(out), *split, *options, *more]


def plan(checkpoint: Path, out: Path) -> Plan:
    """What `command` asks for."""
    return Plan(checkpoint, out, split="train", clips=CLIPS, classes=3, units=2, samples=16)


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(command(checkpoint, out)) == 0
    return out


@pytest.fixture(scope="module")
def archives(whole: Path) -> list[dict[str, Any]]:
    return [read_arrays(path) for path in sorted((whole / "clips").iterdir())]


@pytest.fixture(scope="module")
def data(checkpoint: Path) -> Any:
    found = datamodule(yaml.safe_load((checkpoint.parents[1] / "config.yaml").read_text())["data"])
    found.setup()
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


def one(data: Any, id: str) -> dict[str, torch.Tensor]:
    dataset = data.clips_of("train")
    place = next(i for i, clip in enumerate(dataset.clips) if clip.id == id)
    return {m: x[None] for m, x in dataset[place]["inputs"].items()}


def test_every_file_is_as_it_is_documented(whole: Path) -> None:
    for name, columns in TABLES.items():
        assert set(pq.read_schema(whole / f"{name}.parquet").names) == columns, name
    assert not (whole / "parts").exists()
    atoms = json.loads((whole / "atoms.json").read_text())
    assert {m: tuple(len(atoms[m][k]["coordinates"]) for k in ("fine", "coarse")) for m in atoms} == ATOMS
    assert set(atoms["audio"]["fine"]["coordinates"][0]) == {"start_s", "end_s", "low_hz", "high_hz"}
    overview = json.loads((whole / "summary.json").read_text())
    assert overview["version"] == 1
    assert overview["stages"] == list(STAGES)
    assert overview["explained"] == CLIPS
    assert [entry["epoch"] for entry in overview["history"]] == [0, 1]
    assert {"train/acc", "val/acc", "val/dominance/audio"} <= set(overview["history"][-1])
    assert sum(map(sum, overview["confusion"])) == overview["clips"] == len(rows(whole / "predictions.parquet"))
    assert sum(overview["dominance"].values()) == pytest.approx(1)
    documented = (Path(__file__).parents[3] / "docs/multiviz/files.md").read_text()
    assert all(f"`{key}`" in documented for key in overview)


def test_an_archive_holds_every_array_in_its_shape(archives: list[dict[str, Any]]) -> None:
    assert len(archives) == CLIPS
    for arrays in archives:
        k, v = len(arrays["classes"]), len(arrays["units"])
        assert arrays["classes"][0] == arrays["predicted"] == arrays["logits"].argmax()
        assert arrays["label"] in arrays["classes"]
        assert len(set(arrays["classes"].tolist())) == k == 3
        for m, (fine, coarse) in ATOMS.items():
            assert arrays[f"picture/{m}"].dtype == np.uint8
            assert arrays[f"picture/{m}"].shape[:2] == arrays[f"fine/{m}"].shape == arrays[f"coarse/{m}"].shape
            assert set(np.unique(arrays[f"fine/{m}"])) == set(range(fine))
            assert arrays[f"coarse/{m}"].max() == coarse - 1
            assert arrays[f"U/{m}/lime"].shape == arrays[f"U_error/{m}/lime"].shape == (k, fine)
            assert arrays[f"D/{m}/dime_unimodal"].shape == arrays[f"D_error/{m}/dime_multimodal"].shape == (k, coarse)
            assert arrays[f"R/{m}/occlusion"].shape == (v, fine)
            first, last = arrays[f"window/{m}"]
            assert last > first >= 0
        assert arrays["C/audio/video/ablation"].shape == arrays["C/audio/video/second_order"].shape == (k, 64, 32)
        assert arrays["C/audio/video/joint_lime"].shape == arrays["C_error/audio/video/joint_shap"].shape == (k, 16, 8)
        assert arrays["RC/audio/video/ablation"].shape == (v, 16, 8)
        assert not any(a.dtype.hasobject for a in arrays.values())
        np.testing.assert_allclose(
            arrays["additive"] + arrays["interaction"], arrays["logits"][arrays["classes"]], 1e-4
        )
    summary_methods = {name.split("/")[2] for name in archives[0] if name.startswith("U/")}
    assert {"gradient", "gradient_shap", "grad_cam", "guided_backprop", "kernel_shap"} <= summary_methods


def test_maps_are_what_the_functions_say(
    archives: list[dict[str, Any]], whole: Path, checkpoint: Path, data: Any
) -> None:
    model, arrays = load_model(checkpoint), archives[1]
    inputs = one(data, str(arrays["id"]))
    atoms = {m: data.atoms(m) for m in ATOMS}
    for k, label in enumerate(arrays["classes"].tolist()):
        for m in ATOMS:
            for name, method in (("occlusion", u.occlusion), ("integrated_gradients", u.integrated_gradients)):
                values = method(model, inputs, m, label, atoms[m]).values[0]
                np.testing.assert_allclose(arrays[f"U/{m}/{name}"][k], values, atol=2e-5)
        pairs = c.ablation(model, inputs, label, ("audio", atoms["audio"]), ("video", atoms["video"]))[0]
        np.testing.assert_allclose(arrays["C/audio/video/ablation"][k], pairs, atol=2e-5)
        curved = c.second_order(model, inputs, label, ("audio", atoms["audio"]), ("video", atoms["video"]))[0]
        np.testing.assert_allclose(arrays["C/audio/video/second_order"][k], curved, atol=2e-5)
    unit = int(arrays["units"][0])
    values = u.occlusion(model, inputs, "video", Unit(unit), atoms["video"]).values[0]
    np.testing.assert_allclose(arrays["R/video/occlusion"][0], values, atol=2e-5)
    kept = torch.load(whole / "encodings-train.pt", weights_only=True)
    order = [kept["ids"].index(row["id"]) for row in rows(whole / "modalities.parquet")]
    encodings = {m: e[order] for m, e in kept["encodings"].items()}
    found = {str(a["id"]): a for a in archives}
    expected = c.modality_shapley(model, encodings, "mean", "predicted")
    error = c.interaction_error(model, encodings, encodings, "predicted")  # the explained clips are the mean's
    projected = c.emap(model, encodings)
    for n, row in enumerate(rows(whole / "modalities.parquet")):
        np.testing.assert_allclose([row["shapley_audio"], row["shapley_video"]], expected[n], atol=1e-5)
        np.testing.assert_allclose(found[row["id"]]["shapley"][0], expected[n], atol=1e-5)
        half = found[row["id"]]["pairs_half"]
        np.testing.assert_allclose(half[0], error.half[n], atol=1e-5)
        np.testing.assert_array_equal(found[row["id"]]["shapley_half"], half.diagonal(axis1=1, axis2=2))
        np.testing.assert_allclose([row["shapley_half_audio"], row["pair_half_audio_video"]], half[0, 0])
        pair = abs(row["pair_audio_video"])
        alone = sum(abs(row[f"shapley_{m}"] - row["pair_audio_video"] / 2) for m in ("audio", "video"))
        assert row["intershap"] == pytest.approx(pair / (pair + alone), abs=1e-5)
        classes = found[row["id"]]["classes"]
        np.testing.assert_allclose(found[row["id"]]["additive"], projected[n][classes], atol=1e-5)
    dime = c.dime(
        model,
        {"audio": torch.cat([one(data, kept["ids"][i])["audio"] for i in order])},
        encodings,
        "predicted",
        ("audio", data.atoms("audio", coarse=True)),
        samples=18,
        repeats=2,
    )
    for n, i in enumerate(order):
        np.testing.assert_allclose(
            found[kept["ids"][i]]["D/audio/dime_unimodal"][0], dime.unimodal.values[n], atol=1e-4
        )


def test_parts_of_the_sparse_classifier_add_up(whole: Path, archives: list[dict[str, Any]], checkpoint: Path) -> None:
    kept, sparse = torch.load(whole / "encodings-train.pt", weights_only=True), read_arrays(whole / "sparse.npz")
    features = load_model(checkpoint).penultimate(kept["encodings"]).detach().double().numpy()
    logits = (features - sparse["mean"]) / sparse["scale"] @ sparse["coefficients"].T + sparse["intercepts"]
    for arrays in archives:
        place = kept["ids"].index(str(arrays["id"]))
        found = arrays["P/contributions"].sum(1) + arrays["P/intercepts"]
        np.testing.assert_allclose(found, logits[place][arrays["classes"]], rtol=1e-4)
        np.testing.assert_allclose(arrays["activations"], features[place][arrays["units"]], rtol=1e-6)
    assert sorted({row["unit"] for row in rows(whole / "units.parquet")}) == archives[0]["P/units"].tolist()


def test_clips_that_move_a_unit_have_maps_of_it(whole: Path, checkpoint: Path, data: Any) -> None:
    used = {row["unit"] for row in rows(whole / "units.parquet")}
    table = [row for row in rows(whole / "representation.parquet") if row["unit"] in used and row["rank"] < 4]
    assert {slug(row["id"]) for row in table} == {path.stem for path in (whole / "extremes").iterdir()}
    arrays = read_arrays(whole / "extremes" / f"{slug(table[0]['id'])}.npz")
    k = arrays["units"].tolist().index(table[0]["unit"])
    assert arrays["activations"][k] == pytest.approx(table[0]["value"])
    inputs, unit = one(data, table[0]["id"]), Unit(table[0]["unit"])
    values = u.occlusion(load_model(checkpoint), inputs, "audio", unit, data.atoms("audio")).values[0]
    np.testing.assert_allclose(arrays["R/audio/occlusion"][k], values, atol=1e-5)


def test_tables_hold_the_archives_numbers(whole: Path, archives: list[dict[str, Any]], data: Any) -> None:
    single, double = rows(whole / "unimodal.parquet"), rows(whole / "crossmodal.parquet")
    arrays = archives[2]
    id, name = str(arrays["id"]), data.labels[arrays["classes"][1]]
    picked = [
        r for r in single if (r["id"], r["class"], r["modality"], r["method"]) == (id, name, "video", "kernel_shap")
    ]
    assert [r["atom"] for r in picked] == list(range(32))
    np.testing.assert_array_equal([r["value"] for r in picked], arrays["U/video/kernel_shap"][1])
    np.testing.assert_array_equal([r["error"] for r in picked], arrays["U_error/video/kernel_shap"][1])
    np.testing.assert_array_equal([r["half"] for r in picked], arrays["U_half/video/kernel_shap"][1])
    assert (arrays["U_half/video/kernel_shap"] > 1.9 * arrays["U_error/video/kernel_shap"]).any()
    assert all(r["error"] is r["half"] is None for r in single if r["method"] == "occlusion")
    unit = int(arrays["units"][1])
    local = [r["value"] for r in single if (r["id"], r["unit"], r["modality"], r["stage"]) == (id, unit, "audio", "R")]
    np.testing.assert_array_equal(local, arrays["R/audio/occlusion"][1])
    pairs = [r for r in double if (r["id"], r["class"], r["method"]) == (id, name, "joint_shap")]
    assert (pairs[9]["first_atom"], pairs[9]["second_atom"], pairs[9]["atoms"]) == (1, 1, "coarse")
    np.testing.assert_array_equal([r["value"] for r in pairs], arrays["C/audio/video/joint_shap"][1].ravel())


def test_every_map_carries_its_score(whole: Path) -> None:
    found = {
        (r["stage"], r["method"], r["modality"] or (r["first"], r["second"])): r for r in rows(whole / "trust.parquet")
    }
    overview = json.loads((whole / "summary.json").read_text())
    for method in overview["methods"]:
        stage, name = method["stage"], method["method"]
        keys: Iterator[Any] = iter(("audio", "video") if stage in "UDR" else [("audio", "video")])
        if stage == "R" and name == "ablation":
            continue
        for key in keys:
            key = (None, None) if stage == "P" else key
            row = found[stage, "dime" if stage == "D" else name, key]
            assert row["score_name"]
            assert row["atoms"] == method["atoms"]
            assert isinstance(row["warnings"], list)
            if stage == "C":  # the head is additive
                assert row["score"] is None
                assert "do not interact" in row["warnings"][0]
            elif row["score"] is None:  # in such a head a unit depends on one modality
                assert stage == "R"
                assert "do not depend on" in row["warnings"][0]
            else:
                assert -1 <= row["low"] <= row["score"] <= row["high"] <= 1
    assert found["D", "dime", "audio"]["score"] > 0.3
    assert found["P", "sparse", (None, None)]["score"] == overview["sparse"]["agreement"]


def test_predictions_are_the_models(whole: Path, checkpoint: Path, data: Any) -> None:
    model, kept = load_model(checkpoint), torch.load(whole / "encodings-train.pt", weights_only=True)
    probabilities = model.head(kept["encodings"]).softmax(1).detach()
    shares = attribution_shares(model.head, kept["encodings"])
    found = rows(whole / "predictions.parquet")
    assert [row["id"] for row in found] == kept["ids"]
    for i, row in enumerate(found):
        assert row["predicted"] == data.labels[int(probabilities[i].argmax())] == row["top_classes"][0]
        assert row["confidence"] == pytest.approx(float(probabilities[i].max()), abs=1e-5)
        assert sum(row["top_probabilities"]) == pytest.approx(1, abs=1e-5)  # four classes
        assert row["share_audio"] == pytest.approx(float(shares[i, 0]), abs=1e-5)
        assert row["problem"] is None
        assert (data.root / row["file_video"]).is_file()
    assert {row["slug"] for row in found if row["explained"]} == {path.stem for path in (whole / "clips").iterdir()}
    wrong = {row["id"]: (row["kind"], row["modality"]) for row in rows(whole / "errors.parquet")}
    assert {row["id"]: (row["error_kind"], row["error_modality"]) for row in found if not row["correct"]} == wrong
    assert all(row["error_kind"] is None for row in found if row["correct"])


def test_a_clip_whose_media_is_gone_says_so(whole: Path, checkpoint: Path, data: Any) -> None:
    analysis = Analysis.open(plan(checkpoint, whole))
    file = data.root / rows(whole / "predictions.parquet")[0]["file_video"]
    hidden = file.with_suffix(".hidden")
    file.rename(hidden)
    try:
        summary.write(analysis)
    finally:
        hidden.rename(file)
    problems = [row["problem"] for row in rows(whole / "predictions.parquet")]
    assert f"video: the file {file.relative_to(data.root)} is gone" in problems[0]
    assert problems[1] is None


def test_windows_say_what_an_input_shows(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = data.clips_of("train").clips[0]
    cut = dataclasses.replace(clip, start=2.0, end=5.0)
    sound = len(data._clip_store.get(clip.id)["audio"]) / data.decode.sample_rate
    assert sound > data.audio.seconds == 0.5
    assert data.window("video", cut) == (2.0, 5.0)
    assert data.window("audio", cut) == pytest.approx((2 + (sound - 0.5) / 2, 2 + (sound + 0.5) / 2))
    assert data.window("video", clip) == pytest.approx((0.0, sound), abs=0.1)
    # The first two of 5 frames a second.
    monkeypatch.setattr(data, "video", dataclasses.replace(data.video, pick="first", frames=2))
    monkeypatch.setattr(data, "decode", dataclasses.replace(data.decode, fps=5))
    assert data.window("video", cut) == pytest.approx((2.0, 2.4))
    monkeypatch.setattr(data, "decode", dataclasses.replace(data.decode, fps=None))
    assert data.window("video", cut) is None


def test_calibration_equals_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(200, 5, generator=generator)).softmax(1)
    labels = torch.randint(5, (200,), generator=generator)
    error, bins = calibration(probabilities, labels)
    assert error == pytest.approx(float(multiclass_calibration_error(probabilities, labels, 5, 15)), abs=1e-6)
    assert sum(each["clips"] for each in bins) == 200
    assert bins[0]["accuracy"] is None  # no confidence below 1/5


def test_thumbnails_are_made_while_clips_are_encoded(
    whole: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("plan.json", "encodings-train.pt"):
        shutil.copy(whole / file, tmp_path)
    expected = pq.read_table(whole / "thumbs.parquet")
    reads: list[Any] = []
    read = ClipDataset.__getitem__

    def counted(dataset: ClipDataset, key: Any) -> Any:
        reads.append(key)
        return read(dataset, key)

    monkeypatch.setattr(ClipDataset, "__getitem__", counted)
    for encoded in (True, False):  # what is encoded already is read for its picture
        analysis = Analysis.open(plan(checkpoint, tmp_path))
        assert len(reads) == (0 if encoded else len(expected))
        analysis.thumbnails.write(tmp_path / "thumbs.parquet", analysis.clips.ids, analysis.data.clips_of("train"))
        assert len(reads) == len(expected)
        assert pq.read_table(tmp_path / "thumbs.parquet").equals(expected)
        for file in ("thumbs.parquet", "encodings-train.pt"):
            (tmp_path / file).unlink()
        reads.clear()


def test_it_goes_on_where_it_stopped(
    whole: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    explain = maps.explain

    def stop(analysis: Any, position: int) -> Any:
        calls.append(position)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return explain(analysis, position)

    monkeypatch.setattr(maps, "explain", stop)
    out = tmp_path / "out"
    assert main(command(checkpoint, out, "--stages", "clips")) == 130
    assert len(list((out / "clips").iterdir())) == 1
    assert not (out / "summary.json").exists()
    assert main(command(checkpoint, out, "--stages", "clips")) == 0
    assert calls == [calls[0], calls[1], calls[1], calls[3]]  # the second clip again, the first not
    for name in ("unimodal", "crossmodal", "modalities", "units"):
        assert pq.read_table(out / f"{name}.parquet").equals(pq.read_table(whole / f"{name}.parquet")), name
    overview = json.loads((out / "summary.json").read_text())
    assert overview["stages"] == ["prediction", "clips"]
    assert {m["stage"] for m in overview["methods"]} == {"U", "C", "D", "R", "P"}


def test_a_damaged_file_is_named_and_made_again(
    whole: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failing disk must not end an analysis for good."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    archives = sorted((out / "clips").glob("*.npz"))
    parts = [archives[0], *sorted((out / "extremes").glob("*.npz"))[:1], out / "sparse.npz", out / "encodings-train.pt"]
    parts += [out / f"{name}.parquet" for name in ("representation", "errors", "trust", "crossmodal")]
    before = {path: _content(path) for path in parts}
    for path in parts:
        data = bytearray(path.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        path.write_bytes(data)
    (out / "notes.json").write_text("{")
    capsys.readouterr()
    assert main(command(checkpoint, out)) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.endswith("; made again")]
    assert {line.partition(": ")[0] for line in said} == {str(path) for path in [*parts, out / "notes.json"]}
    for path, content in before.items():
        assert _content(path) == content, path


def _content(path: Path) -> Any:
    if path.suffix == ".parquet":
        return pq.read_table(path)
    if path.suffix == ".npz":
        return {name: (array.dtype, array.tolist()) for name, array in read_arrays(path).items()}
    return [str(torch.load(path)[key]) for key in ("ids", "labels", "encodings", "lacking")]


def test_a_part_that_is_missing_is_not_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trust-U\.parquet: cannot be read \(No such file"):
        read_table(tmp_path / "trust-U.parquet")


def test_a_second_analysis_of_the_folder_is_refused(whole: Path, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    with other_process_holds(tmp_path / "out") as holder:
        assert main(command(checkpoint, tmp_path / "out")) == 2
        assert f"{tmp_path / 'out'} is in use by process {holder} " in capsys.readouterr().err
    left = whole / f".x.npz.{files._host()}.{dead_process()}.tmp"
    left.touch()
    assert main(command(checkpoint, whole)) == 0
    assert not left.exists()


def test_a_finished_analysis_is_left_alone(whole: Path, checkpoint: Path) -> None:
    def written() -> dict[str, int]:
        files = {path for path in whole.rglob("*.*") if path.name not in ("plan.json", "atoms.json", "summary.json")}
        return {str(p): p.stat().st_mtime_ns for p in files if p.name not in ("predictions.parquet", ".lock")}

    before = written()
    assert main(command(checkpoint, whole)) == 0
    assert written() == before


def test_one_modality(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--runs_dir", str(tmp_path), "--name", "a", "--wandb", "disabled", "--trainer.max_epochs", "1"]
    alone = ["--model.encoders", '{"audio": {"class_path": "amr.encoders.SmallCNN"}}']
    assert main(["fit", *tiny, *alone, "--data.init_args.modalities", "[audio]", *run]) == 0
    out = tmp_path / "out"
    assert main([*command(tmp_path / "a/checkpoints/best.ckpt", out), "--stages", "trust", "errors"]) == 0
    assert "one modality has nothing to interact with" in capsys.readouterr().err
    assert {row["modality"] for row in rows(out / "unimodal.parquet")} == {"audio"}
    assert not (out / "crossmodal.parquet").exists()
    overview = json.loads((out / "summary.json").read_text())
    assert overview["emap"] is None
    assert {row["stage"] for row in rows(out / "trust.parquet")} == {"U", "R", "P"}


def test_a_head_that_interacts(tiny: list[str], tmp_path: Path) -> None:
    run = ["--runs_dir", str(tmp_path), "--name", "a", "--wandb", "disabled", "--trainer.max_epochs", "1"]
    hidden = ["--model.fusion", "amr.fusion.Concat", "--model.fusion.hidden", "16"]
    assert main(["fit", *tiny, *hidden, *run]) == 0
    analysis = Analysis.open(plan(tmp_path / "a/checkpoints/best.ckpt", tmp_path / "out"))
    target = analysis.predicted[analysis.chosen]
    arrays = [maps.explain(analysis, position) for position in analysis.chosen]
    reason = str(arrays[0]["C_reason/audio/video/second_order"])
    assert "piecewise linear; use ablation" in reason
    assert not arrays[0]["C/audio/video/second_order"].any()
    values = torch.stack([torch.from_numpy(a["C/audio/video/ablation"][0]) for a in arrays])
    assert values.any()
    inputs, pair = analysis.inputs(analysis.chosen), ("audio", "video")
    sides = [(m, analysis.fine[m]) for m in pair]
    scores = interaction_sensitivity_n(analysis.model, inputs, target, values, sides[0], sides[1], subsets=32)
    row = stages.score_pairs(analysis, inputs, pair, target, values, [])
    assert row["score"] == pytest.approx(float(torch.stack([*scores.values()]).mean()))
    assert float(scores[1, 1].max()) > 0.999  # what a single pair brings is what the map says; 0 where that is nothing
    none = stages.score_pairs(analysis, inputs, pair, target, torch.zeros_like(values), [reason])
    assert (none["score"], none["warnings"]) == (None, [reason])


def test_what_cannot_be_done_is_said(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    few = ["--split", "test", "--clips", "2", "--stages", "simulation", "selection"]
    assert main([*command(checkpoint, out), *few]) == 0
    overview = json.loads((out / "summary.json").read_text())
    assert overview["stages"] == ["prediction", "representation"]
    assert any("no simulated user" in note for note in overview["notes"])
    assert any("no selection of clips" in note for note in overview["notes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clips", "1"], "--clips=1: must be at least 2"),
        (["--classes", "0"], "--classes=0: must be at least 1"),
        (["--clips", "2"], "it holds an analysis of another clips; name another folder"),
        (["--seed", "1", "--split", "val"], "it holds an analysis of another split, seed; name another folder"),
        (["--data", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--data", __file__], "test_analyze.py: not YAML"),
        (["--ckpt", "nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (["--stages", "x"], f"--stages=x: must be one of {', '.join(STAGES)}"),
    ],
)
def test_bad_input(whole: Path, checkpoint: Path, capsys: Any, arguments: list[str], message: str) -> None:
    assert main([*command(checkpoint, whole), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_a_folder_it_goes_into_the_runs(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(analyzing, "add_site", lambda folder: None)
    monkeypatch.setattr(analysis_module, "analyze", lambda checkpoint, out, **options: out)
    run = checkpoint.parents[1]
    for given in (run, checkpoint):
        assert main(["analyze", str(given)]) == 0
        assert f"{run / 'analysis'}: done" in capsys.readouterr().out
    shutil.copy(checkpoint, tmp_path / "other.ckpt")
    assert main(["analyze", str(tmp_path / "other.ckpt")]) == 2
    assert "--out: must be given" in capsys.readouterr().err


def test_names_of_files() -> None:
    assert slug("-abc_000030") == "-abc_000030"
    assert slug("../../etc") != slug("../../etd")
    assert "/" not in slug("a/b")
    assert "." not in slug("../x")
    assert slug("é").isascii()
