"""`amr demo`: makes clips, two runs, the table, its page and the site in a few minutes."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from amr.utils.errors import UserError
from amr.utils.readers import read_object
from amr.utils.streams import status

# Harder than `synthetic`'s own clips, so that naive fusion is not right at once; and a head with a layer between the
# encodings and the classes, whose units stage C explains.
DATA = ["--data.audio_snr_db", "-22", "--data.video_noise", "50", "--data.batch_size", "32", "--data.names", "cues"]
MODEL = ["--model.fusion.hidden", "64"]
METHODS: dict[str, list[str]] = {"naive": [], "amr": ["--config", "amr"]}
CLIPS, EPOCHS, EXPLAINED = 1200, 10, 8
# Few, and the stages that the site cannot do without.
ANALYSIS: dict[str, Any] = {"samples": 64, "units": 4, "classes": 2}
STAGES = ("prediction", "representation", "errors", "clips", "trust")


def demo(
    out: str | Path = "demo",
    picture: str | Path | None = None,
    *,
    clips: int = CLIPS,
    epochs: int = EPOCHS,
    explained: int = EXPLAINED,
) -> str:
    """Makes the synthetic clips, trains and tests naive fusion and fusion with AMR, compares and explains the two.

    In the clips, sound tells the class 95 times in 100 and the picture 60 times, so naive fusion leans on sound. What
    is there already is not made again: an interrupted demo is completed.

    Args:
        out: Folder for everything.
        picture: PNG for the curves, besides the page.
        clips: Clips to make, at least 60: ten per class.
        epochs: Epochs of each training, at least 1.
        explained: Test clips to explain, at least 2, or 0 for no explanation and no site.

    Returns:
        The table, as text.

    Raises:
        UserError: Too few clips or epochs.
    """
    if epochs < 1:
        raise UserError(f"--epochs={epochs}: must be at least 1")
    if explained < 2 and explained != 0:
        raise UserError(f"--explained={explained}: must be at least 2, or 0 for no site")
    if clips < 60:
        raise UserError(f"--clips={clips}: must be at least 60, ten for each class")
    from amr.cli.fit import run as run_command
    from amr.cli.keys.check import with_files
    from amr.cli.runs.commands import run_prepare
    from amr.report import compare, read_run
    from amr.report.card import write_card
    from amr.report.site import write_site

    out = Path(out)
    if clips < CLIPS or epochs < EPOCHS:
        status(
            f"demo: {clips} clips and {epochs} epochs; with fewer than {CLIPS} and {EPOCHS} the models may stay near "
            "chance, and the shares of such models say little"
        )
    run_prepare(with_files(["--config", "synthetic", *_data(out, clips)]))
    for name in METHODS:
        status(f"\n{name}: {epochs} epochs")
        resume = ["--ckpt_path", "last"] if (out / "runs" / name / "checkpoints" / "last.ckpt").is_file() else []
        # Lines, not a bar: they stay on the screen.
        lines = ["--trainer.enable_progress_bar", "false"]
        run_command(["fit", *with_files(training(out, name, clips, epochs)), *lines, "--name", name, *resume])
        if not read_run(out / "runs" / name).test:
            run_command(["test", "--ckpt_path", str(out / "runs" / name / "checkpoints/best.ckpt")])
    if explained:
        analyses = [_analyze(out, name, explained) for name in METHODS]
        # The folder of the clips: each analysis, which was made here, names it.
        roots = [Path(read_object(analysis / "summary.json")["root"]) for analysis in analyses]
        write_site(analyses, out / "site", roots, report=out / "report.html")
    table = compare([out / "runs"], out / "report.html", picture)  # with a link to the site
    if explained:
        for name in METHODS:
            write_card(out / "runs" / name)
    return table


def training(out: Path, name: str, clips: int = CLIPS, epochs: int = EPOCHS) -> list[str]:
    """Arguments of `amr fit` that train one of the demo's models: shipped configs, and what differs from them.

    Args:
        out: The demo's folder.
        name: `naive` or `amr`.
        clips: Clips that the demo makes.
        epochs: Epochs of the training.
    """
    configs = ["--config", "synthetic", "--config", "model/small", "--config", "trainer/small", *METHODS[name]]
    sizes = ["--trainer.max_epochs", str(epochs), "--runs_dir", str(out / "runs")]
    return [*configs, *_data(out, clips), *MODEL, *sizes]


def _data(out: Path, clips: int) -> list[str]:
    """Arguments that name the demo's clips, beside `--config synthetic`."""
    return ["--data.root", str(out / "clips"), "--data.store", str(out / "store"), "--data.clips", str(clips), *DATA]


def _analyze(out: Path, name: str, clips: int) -> Path:
    """Explains a run's best checkpoint; returns the folder."""
    from amr.cli.analyze import add_site
    from amr.multiviz.analysis.whole import analyze

    folder = out / "analyses" / name
    status(f"\n{name}: what its decisions rest on")
    analyze(out / "runs" / name, folder, clips=clips, **ANALYSIS, stages=STAGES)
    add_site(folder)
    return folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything it makes (demo)")
    parser.add_argument("--picture", type=Path, help="also write the curves to this PNG")
    parser.add_argument("--clips", type=int, default=CLIPS, help=f"clips to make ({CLIPS})")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"epochs of each training ({EPOCHS})")
    about = f"test clips to explain; 0 for no site ({EXPLAINED})"
    parser.add_argument("--explained", type=int, default=EXPLAINED, help=about)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    sizes = {"clips": options.clips, "epochs": options.epochs, "explained": options.explained}
    table = demo(options.out, options.picture, **sizes)
    site = f"\nSite: {options.out / 'site' / 'index.html'}" if options.explained else ""
    print(f"\n{table}\n\nPage: {options.out / 'report.html'}{site}")
    print("To train one again:")
    for name in METHODS:
        again = training(options.out, name, options.clips, options.epochs)
        print(f"  amr fit {shlex.join([*again, '--name', f'{name}-again'])}")
    return 0
