"""What `write_site` writes, keeps, replaces and refuses."""

import base64
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amr.cli import main
from amr.datamodules.store.cut import cut
from amr.report.site import write, write_site
from amr.report.site.pack import quantised, script
from amr.utils import files
from amr.utils.errors import UserError
from tests.processes import dead_process, other_process_holds
from tests.report.site.analysis import write_analysis


@pytest.fixture
def analysis(tmp_path: Path) -> Path:
    return write_analysis(tmp_path / "one", 12, 3, units=4)


def unpack(path: Path) -> Any:
    """What the page makes of a script: an independent reading of the format."""
    text = path.read_text()
    assert text.startswith("AMR.take(")
    data = gzip.decompress(base64.b64decode(json.loads(text[text.index(",") + 1 : text.rindex(")")])))
    size = int.from_bytes(data[:4], "little")
    base = -(-(4 + size) // 8) * 8

    def revive(node: Any) -> Any:
        if isinstance(node, list):
            return [revive(one) for one in node]
        if not isinstance(node, dict):
            return node
        if "$" not in node:
            return {key: revive(value) for key, value in node.items()}
        kind, offset, shape, *scale = node["$"]
        values = np.frombuffer(data, f"<{kind}", int(np.prod(shape)), base + offset).reshape(shape)
        return values * scale[0] if scale else values

    return revive(json.loads(data[4 : 4 + size]))


def test_numbers_survive(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 4, 5)).astype(np.float32)
    content = {
        "a": values,
        "q": quantised(values),
        "n": [np.arange(7, dtype=np.int64), np.array([-1, 70000])],
        "t": "</script>\u2028é",
        "b": np.array([True, False]),
        "nan": float("nan"),
        "odd": quantised(np.array([np.nan, 1])),
        "none": quantised(np.zeros(0)),
    }
    (tmp_path / "x.js").write_bytes(script("k/ey", content))
    assert (tmp_path / "x.js").read_bytes().isascii()
    found = unpack(tmp_path / "x.js")
    np.testing.assert_array_equal(found["a"], values)
    np.testing.assert_allclose(found["q"], values, atol=float(np.abs(values).max()) / 65534 * 1.01)
    np.testing.assert_array_equal(found["n"][0], np.arange(7))
    np.testing.assert_array_equal(found["n"][1], [-1, 70000])
    assert (found["t"], found["nan"], found["b"].tolist()) == ("</script>\u2028é", None, [1, 0])
    np.testing.assert_array_equal(found["odd"], [np.nan, 1])
    assert found["none"].shape == (0,)


def test_maps_are_those_of_the_analysis(analysis: Path, tmp_path: Path) -> None:
    write_site([analysis], tmp_path / "site")
    found = unpack(tmp_path / "site/data/0/clips/clip00001.js")
    with np.load(analysis / "clips/clip00001.npz") as archive:
        for name in (
            "U/audio/occlusion",
            "C/audio/video/ablation",
            "R/video/gradient_input",
            "D/audio/dime_unimodal",
            "RC/audio/video/ablation",
        ):
            stage, _, rest = name.partition("/")
            where, _, method = rest.rpartition("/")
            values = archive[name]
            np.testing.assert_allclose(
                found[stage][where][method]["v"], values, atol=float(np.abs(values).max()) / 60000
            )
        np.testing.assert_array_equal(found["modalities"]["video"]["picture"], archive["picture/video"])
        np.testing.assert_array_equal(found["P"]["contributions"], archive["P/contributions"])
        assert found["classes"] == archive["classes"].tolist()
        assert found["C"]["audio/video"]["second_order"]["why"].startswith("the head is piecewise linear")
    index = unpack(tmp_path / "site/data/index.js")
    rows = pq.read_table(analysis / "predictions.parquet").to_pylist()
    assert index["clips"]["id"] == [row["id"] for row in rows]
    np.testing.assert_allclose(
        index["clips"]["runs"][0]["shares"][:, 0], [row["share_audio"] for row in rows], rtol=1e-6
    )
    assert index["clips"]["media"][0]["sound"]
    assert index["clips"]["media"][0]["picture"]
    assert index["clips"]["media"][11] is None or "why" in index["clips"]["media"][11]


def test_nothing_of_the_machine_is_told(analysis: Path, tmp_path: Path) -> None:
    write_site([analysis], tmp_path / "site")
    for path in (tmp_path / "site/data").rglob("*.js"):
        assert str(tmp_path) not in json.dumps(unpack(path), default=lambda array: array.tolist()), path


def test_what_is_there_is_kept(analysis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, cuts = tmp_path / "site", list[str]()

    def counted(files: Any, target: Path, *window: Any) -> Any:
        cuts.append(target.stem)
        if len(cuts) == 2:
            raise KeyboardInterrupt
        return cut(files, target, *window)

    monkeypatch.setattr(write, "cut", counted)
    with pytest.raises(KeyboardInterrupt):
        write_site([analysis], out)
    assert not (out / "data/index.js").exists()
    first, made = cuts[0], (out / f"media/{cuts[0]}.mp4").stat().st_mtime_ns
    write_site([analysis], out)
    assert cuts.count(first) == 1
    assert (out / f"media/{first}.mp4").stat().st_mtime_ns == made
    assert not list(out.rglob("*.tmp"))
    before = {
        path: path.stat().st_mtime_ns for path in out.rglob("*.js") if "clips" in path.parts or "extremes" in path.parts
    }
    there = len(cuts)
    write_site([analysis], out)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    gone = [stem for stem in cuts if not (out / f"media/{stem}.mp4").is_file()]
    assert set(cuts[there:]) <= set(gone)  # only what could not be cut is tried again


def test_content_decides_what_is_stale(analysis: Path, tmp_path: Path) -> None:
    """A copy is newer and the same; after a clock that was set back, what changed is older."""
    write_site([analysis], tmp_path / "site")
    made = [*(tmp_path / "site").rglob("clip*.js"), *(tmp_path / "site").rglob("*.mp4")]
    before = {path: path.stat().st_mtime_ns for path in made}
    same, other, film = analysis / "clips/clip00000.npz", analysis / "clips/clip00001.npz", analysis / "root/2.mp4"
    same.write_bytes(same.read_bytes())
    with np.load(other) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez_compressed(other, **{**arrays, "U/audio/lime": -arrays["U/audio/lime"]})
    film.write_bytes((analysis / "root/1.mp4").read_bytes())
    for path in (other, film):
        os.utime(path, (1, 1))
    write_site([analysis], tmp_path / "site")
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"clip00001.js", "clip00002.mp4"}


def test_media_that_go_away_later_stay_in_the_site(analysis: Path, tmp_path: Path) -> None:
    write_site([analysis], tmp_path / "site")
    (analysis / "root/0.mp4").unlink()
    (analysis / "root/1.mp4").write_bytes(b"not a film")
    (tmp_path / "site/media/clip00001.mp4").unlink()
    write_site([analysis], tmp_path / "site")
    media = unpack(tmp_path / "site/data/index.js")["clips"]["media"]
    assert media[0]["file"] == "media/clip00000.mp4"
    assert media[1]["why"].startswith("decode error")


def test_two_share_their_media(analysis: Path, tmp_path: Path) -> None:
    other = write_analysis(tmp_path / "two", 12, 4, units=4, title="naive")
    (other / "plan.json").write_text(json.dumps({"checkpoint": "b" * 64}))
    write_site([analysis, other], tmp_path / "site")
    index = unpack(tmp_path / "site/data/index.js")
    assert [run["name"] for run in index["runs"]] == ["naive (00000000)", "naive (bbbbbbbb)"]
    assert [column["explained"].sum() for column in index["clips"]["runs"]] == [3, 4]
    assert len(list((tmp_path / "site/media").glob("clip0000[0-3].mp4"))) == 4


def test_another_analysis_replaces_the_data(analysis: Path, tmp_path: Path) -> None:
    write_site([analysis], tmp_path / "site")
    other = write_analysis(tmp_path / "two", 5, 2, units=4, seed=3)
    write_site([other], tmp_path / "site")
    assert {path.stem for path in (tmp_path / "site/data/0/clips").iterdir()} == {"clip00000", "clip00001"}


def _version(one: Path) -> None:
    summary = json.loads((one / "summary.json").read_text())
    (one / "summary.json").write_text(json.dumps({**summary, "version": 9}))


def _slug(one: Path) -> None:
    rows = pq.read_table(one / "predictions.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist([{**row, "slug": "../../x"} for row in rows]), one / "predictions.parquet")


def _labels(one: Path) -> None:
    summary = json.loads((one / "summary.json").read_text())
    (one / "summary.json").write_text(json.dumps({**summary, "labels": summary["labels"][::-1]}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda one: (one / "summary.json").unlink(), "its analysis is not finished: repeat `amr analyze`"),
        (lambda one: (one / "summary.json").write_text("{"), "summary.json: not JSON"),
        (_version, "version 9; this amr reads 1"),
        (_slug, "the slug '../../x' is no file name"),
        (lambda one: (one / "clips/clip00000.npz").write_bytes(b"x"), "clip00000.npz: cannot be read"),
        (lambda one: (one / "predictions.parquet").write_bytes(b"x"), "predictions.parquet: cannot be read"),
    ],
)
def test_bad_analyses(
    analysis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], object], message: str
) -> None:
    harm(analysis)
    assert main(["site", str(analysis), "--out", str(tmp_path / "site")]) == 2
    assert message in capsys.readouterr().err


def test_bad_calls(analysis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("x")
    other = write_analysis(tmp_path / "two", 5, 2, units=4)
    _labels(other)
    strange = write_analysis(tmp_path / "three", 5, 2, units=4, ids=[f"other{i}" for i in range(5)])
    for arguments, message in (
        ([analysis, "--out", full], "it holds something that is not a site of amr"),
        ([analysis, other, "--out", tmp_path / "s"], "its labels are not those of"),
        ([analysis, strange, "--out", tmp_path / "s"], "it has no clip in common with"),
        ([analysis, analysis, analysis, "--out", tmp_path / "s"], "3 analyses; a site shows one, or two"),
        ([tmp_path / "nowhere", "--out", tmp_path / "s"], "no summary.json; name a folder that `amr analyze` wrote"),
    ):
        assert main(["site", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
    assert (full / "thesis.tex").read_text() == "x"


def test_files_that_lead_elsewhere_are_not_copied(analysis: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes((analysis / "root/0.mp4").read_bytes())
    rows = pq.read_table(analysis / "predictions.parquet").to_pylist()
    for row, name in zip(rows, ("../../secret.mp4", str(secret)), strict=False):
        row["file_audio"] = row["file_video"] = name
    pq.write_table(pa.Table.from_pylist(rows), analysis / "predictions.parquet")
    write_site([analysis], tmp_path / "site")
    media = unpack(tmp_path / "site/data/index.js")["clips"]["media"]
    assert all(one["why"].endswith("leads out of the clips' folder") for one in media[:2])
    assert av.open(str(tmp_path / "site/media/clip00002.mp4")).streams.video


def _with_root(analysis: Path, root: Path) -> Path:
    summary = json.loads((analysis / "summary.json").read_text())
    (analysis / "summary.json").write_text(json.dumps({**summary, "root": str(root)}))
    return root


def _media(site: Path) -> Any:
    return unpack(site / "data/index.js")["clips"]["media"]


def test_a_root_that_nobody_confirmed_is_not_looked_into(
    analysis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a stranger's analysis would put any film of the reader's machine into a site that is to be shared."""
    private = _with_root(analysis, (analysis / "root").rename(tmp_path / "private"))
    site = tmp_path / "site"
    assert main(["site", str(analysis), "--out", str(site)]) == 0
    assert f"if its clips lie in {private}, add --root {private}" in capsys.readouterr().err
    assert _media(site)[0]["why"] == "the clips' folder was not named (amr site --root)"
    assert not list(site.rglob("*.mp4"))
    assert main(["site", str(analysis), "--out", str(site), "--root", str(private)]) == 0
    assert "add --root" not in capsys.readouterr().err
    assert _media(site)[0]["file"] == "media/clip00000.mp4"
    assert main(["site", str(analysis), "--out", str(site)]) == 0
    assert _media(site)[0]["file"] == "media/clip00000.mp4", "it was confirmed before"
    for roots, message in (([tmp_path / "no"], "no such folder"), ([private] * 3, "3 folders; must be one")):
        given = [part for root in roots for part in ("--root", str(root))]
        assert main(["site", str(analysis), "--out", str(site), *given]) == 2
        assert message in capsys.readouterr().err


def test_media_of_another_analysis_are_not_shown(analysis: Path, tmp_path: Path) -> None:
    write_site([analysis], tmp_path / "site")
    other = write_analysis(tmp_path / "two", 5, 2, units=4, seed=3)
    (other / "plan.json").write_text(json.dumps({"checkpoint": "c" * 64}))
    _with_root(other, tmp_path)
    write_site([other], tmp_path / "site")
    assert all("why" in one for one in _media(tmp_path / "site") if one)


@pytest.mark.parametrize("kind", ["file", "root", "archive"])
def test_links_are_not_followed_out(analysis: Path, tmp_path: Path, kind: str) -> None:
    if kind == "root":
        (analysis / "root").rename(tmp_path / "private")
        (analysis / "root").symlink_to(tmp_path / "private")
    elif kind == "file":
        (analysis / "root/0.mp4").rename(tmp_path / "private.mp4")
        (analysis / "root/0.mp4").symlink_to(tmp_path / "private.mp4")
    else:
        (analysis / "clips/clip00000.npz").rename(tmp_path / "private.npz")
        (analysis / "clips/clip00000.npz").symlink_to(tmp_path / "private.npz")
        with pytest.raises(UserError, match=r"clip00000\.npz: a link that leads out of the analysis"):
            write_site([analysis], tmp_path / "site")
        return
    write_site([analysis], tmp_path / "site")
    assert "why" in _media(tmp_path / "site")[0]
    if kind == "file":
        assert _media(tmp_path / "site")[1]["file"]
        write_site([analysis], tmp_path / "site", [analysis / "root"], follow_links=True)  # as of one's own data
        assert _media(tmp_path / "site")[0]["file"]


def test_a_second_process_is_refused_and_what_a_dead_one_left_is_swept(
    analysis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, number = tmp_path / "site", dead_process()
    write_site([analysis], site)
    (site / f"data/.index.js.{files._host()}.{number}.tmp").touch()
    (site / f"data/.index.js.another-machine.{number}.tmp").touch()
    with other_process_holds(site) as holder:
        assert main(["site", str(analysis), "--out", str(site)]) == 2
        assert f"{site} is in use by process {holder} " in capsys.readouterr().err
    assert main(["site", str(analysis), "--out", str(site)]) == 0
    assert [path.name for path in site.rglob("*.tmp")] == [f".index.js.another-machine.{number}.tmp"]


def test_the_wheel_brings_the_program() -> None:
    files = {path.relative_to(write.STATIC).as_posix() for path in write.STATIC.rglob("*") if path.is_file()}
    assert {
        "index.html",
        "app.js",
        "app.css",
        "icon.svg",
        "vendor/uPlot.iife.min.js",
        "vendor/uPlot-LICENSE.txt",
    } <= files
    page = (write.STATIC / "index.html").read_text()
    for name in files - {"index.html", "vendor/uPlot-LICENSE.txt"}:
        assert f'"static/{name}"' in page, name
