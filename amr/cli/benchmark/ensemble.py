"""`amr ensemble`: one model from unimodal runs, without training, measured as any other run."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

from amr.cli.parser import Parser
from amr.utils.errors import UserError
from amr.utils.names.configs import data_source
from amr.utils.names.places import checkpoint_of
from amr.utils.trust import TRUST

COMBINATIONS = ("logits", "log_probabilities", "probabilities")
NAMES = {
    "logits": ("ensemble", "Ensemble"),
    "log_probabilities": ("ensemble_log_probabilities", "Ensemble (log-probabilities)"),
    "probabilities": ("ensemble_probabilities", "Ensemble (probabilities)"),
}
"""Method and title of each combination, in tables."""
FREE = {"modalities", "num_workers", "prepare_workers", "store", "batch_size", "seed"}
"""Settings of the data in which the runs may differ."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run or a checkpoint of one modality, two at least")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new run's folder")
    parser.add_argument("--combination", choices=COMBINATIONS, default="logits", help="what is added (logits)")
    parser.add_argument(
        "--data", metavar="CONFIG", help="other data than the runs' own: a configuration's file or name, or a class"
    )
    parser.add_argument("--test", choices=("yes", "no"), default="yes", help="whether to measure it, too (yes)")
    parser.add_argument("--wandb", choices=("offline", "online", "disabled"), default="offline", help="W&B's mode")
    parser.add_argument("--project", default="amr", help="W&B project (amr)")
    parser.add_argument("--trust", action="append", default=[], metavar="PREFIX", help=TRUST)


def main(arguments: Sequence[str]) -> int:
    """The command by its arguments; gives its exit status."""
    parser = Parser(prog="amr ensemble")
    add_arguments(parser)
    return run(parser.parse_args(list(arguments)))


def run(options: argparse.Namespace) -> int:
    """Makes the ensemble, and tests it.

    Args:
        options: The arguments.

    Returns:
        Exit status.

    Raises:
        UserError: For anything that the user can mend.
    """
    keys = ("combination", "data", "wandb", "project", "trust")
    given = {key: getattr(options, key) for key in keys}
    folder = ensemble(options.runs, options.out, test=options.test == "yes", **given)
    print(f"{folder}: an ensemble; amr compare reads it beside other runs")
    return 0


def ensemble(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    combination: str = "logits",
    data: str | Path | None = None,
    test: bool = True,
    wandb: str = "disabled",
    project: str = "amr",
    trust: Sequence[str] = (),
) -> Path:
    """Makes one model of unimodal runs, whose predictions are combined without any training, and tests it.

    The folder is that of a run: `amr compare`, `test`, `analyze` and `load_model` take it. Its metrics are written by
    `amr validate` and `amr test`.

    Args:
        runs: A run's folder or a checkpoint for each modality, two at least, of the same data and classes.
        out: The new run's folder.
        combination: `logits` or `log_probabilities`: they are added, with the same prediction; `probabilities`: their
            mean.
        data: A configuration with a `data` section, by its file or name, or a class; None for the runs' own with all
            their modalities.
        test: Whether to validate and test it, too.
        wandb: W&B's mode for the test's record: `offline`, `online` or `disabled`.
        project: W&B project.
        trust: Import paths whose classes the runs may name, too.

    Returns:
        The folder.

    Raises:
        UserError: The runs are not of one modality each, do not fit together, or the folder holds a run already.
    """
    folder = Path(out)
    if combination not in COMBINATIONS:
        raise UserError(f"combination={combination}: must be one of {', '.join(COMBINATIONS)}")
    paths = [checkpoint_of(given, "RUN") for given in runs]
    if data is not None:
        data_source(data)

    from amr.cli import fit
    from amr.utils.checkpoints import AtomicCheckpointIO
    from amr.utils.files import locked, write_text
    from amr.utils.parser import dump_yaml
    from amr.utils.trust import trusting

    with trusting(trust):
        members = [_Member(path) for path in paths]
        _check_together(members)
        config = _config(members, combination, data)
        checkpoint = _checkpoint(members, config["model"])
        with locked(folder, "choose another --out"):
            if (folder / "run.json").exists():
                raise UserError(f"--out={folder}: must be a new folder, it holds a run already")
            best = folder / "checkpoints" / "best.ckpt"
            best.parent.mkdir(exist_ok=True)
            AtomicCheckpointIO().save_checkpoint(checkpoint, best)
            write_text(folder / "config.yaml", dump_yaml(config, ascii_only=True))
            # Last: what has a run.json is whole.
            write_text(folder / "run.json", f"{json.dumps(_facts(members, combination, folder), indent=1)}\n")
    more = [f"--trust={prefix}" for prefix in trust]
    if test:
        for command in ("validate", "test"):  # a table may be of either split
            fit.run([command, "--ckpt_path", str(best), "--wandb", wandb, "--project", project, *more])
    return folder


class _Member:
    """One unimodal run: its checkpoint, configuration and facts, checked."""

    def __init__(self, path: Path) -> None:
        from amr.load import ARCHITECTURE, read_config
        from amr.utils.checkpoints import read_checkpoint
        from amr.utils.files import run_folder
        from amr.utils.paths import found_again
        from amr.utils.readers import read_object
        from amr.utils.trust import check

        self.path = path
        self.content = read_checkpoint(self.path)
        facts = self.content["amr"]
        if len(facts["modalities"]) != 1:
            has = ", ".join(facts["modalities"])
            raise UserError(f"{self.path}: its model is of {has}; must be of one modality alone")
        if facts.get("task", "classes") != "classes":
            raise UserError(f"{self.path}: an ensemble is not defined for several labels per clip (model.task=labels)")
        (self.modality,) = facts["modalities"]
        folder = run_folder(self.path)
        if not (folder / "run.json").is_file() or not facts.get("model"):
            raise UserError(f"{self.path}: must lie in a run's folder, as amr fit makes it")
        self.facts: dict[str, Any] = read_object(folder / "run.json")
        config = read_config(folder / "config.yaml")
        check(config, str(folder / "config.yaml"))
        self.config = found_again(config, folder)
        self.section: dict[str, Any] = facts["model"]
        check({"model": self.section}, str(self.path))
        for key in ARCHITECTURE:
            if key not in ("encoders", "fusion") and self.section.get(key):
                raise UserError(f"{self.path}: model.{key} must be null in a member of an ensemble")

    @property
    def weights(self) -> dict[str, Any]:
        """The weights under the names that they have in the ensemble."""
        old, new = "model.head.", f"model.head.heads.{self.modality}."
        return {
            new + key.removeprefix(old) if key.startswith(old) else key: value
            for key, value in self.content["state_dict"].items()
            if key.startswith("model.")
        }


def _check_together(members: Sequence[_Member]) -> None:
    """Refuses members that cannot be one model of one data set."""
    if len(members) < 2:
        raise UserError("RUN: must be two runs at least, each of another modality")
    first = members[0]
    for number, member in enumerate(members):
        if member.modality in [other.modality for other in members[:number]]:
            raise UserError(f"{member.path}: {member.modality!r} is there already; must be of another modality")
        for key in ("dataset", "labels"):
            if member.facts.get(key) != first.facts.get(key):
                raise UserError(f"{member.path}: must have the {key} of {first.path}")


def _config(members: Sequence[_Member], combination: str, data: str | Path | None) -> dict[str, Any]:
    """The first run's configuration with all members' encoders and heads, and data of all their modalities."""
    from amr.classifier import method_slots
    from amr.load import data_section

    first = members[0]
    concat = {"class_path": "amr.fusion.Concat"}
    kept = {key: value for key, value in first.section.items() if key not in {*method_slots(), "extra"}}
    model = {
        **kept,
        "encoders": {member.modality: member.section["encoders"][member.modality] for member in members},
        "fusion": {
            "class_path": "amr.fusion.Ensemble",
            "init_args": {
                "combination": combination,
                "heads": {member.modality: member.section.get("fusion") or concat for member in members},
            },
        },
    }
    return {**first.config, "model": model, "data": data_section(first.path, data) if data else _data(members)}


def _data(members: Sequence[_Member]) -> dict[str, Any]:
    """The members' `data` section, with the modalities of all."""
    first = members[0].config["data"]
    for member in members[1:]:
        if key := _difference(first, member.config["data"]):
            raise UserError(
                f"{member.path}: data.{key} must be that of {members[0].path}; --data names the data for both"
            )
    arguments = dict(first.get("init_args") or {})
    if "modalities" in arguments:
        arguments["modalities"] = [member.modality for member in members]
    return {**first, "init_args": arguments}


def _difference(first: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first setting in which two `data` sections differ and may not."""
    ours, theirs = (dict(section.get("init_args") or {}) for section in (first, other))
    if first.get("class_path") != other.get("class_path"):
        return "class_path"
    return next((key for key in sorted({*ours, *theirs} - FREE) if ours.get(key) != theirs.get(key)), None)


def _checkpoint(members: Sequence[_Member], model: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of the ensemble: the members' weights, and nothing of their training."""
    first = members[0].content
    from_lightning = ("epoch", "global_step", "pytorch-lightning_version")
    kept: dict[str, Any] = {key: first[key] for key in from_lightning if key in first}
    weights: dict[str, Any] = {}
    for member in members:
        weights |= member.weights
    modalities = [member.modality for member in members]
    facts = {"modalities": modalities, "num_classes": first["amr"]["num_classes"], "model": dict(model)}
    unset: dict[str, Any] = {"started": None, "methods": {}, "recipe": None, "settings": None, "resumed": []}
    return {**kept, "state_dict": weights, "amr": {**facts, "seed": first["amr"].get("seed", 0), **unset}}


def _facts(members: Sequence[_Member], combination: str, folder: Path) -> dict[str, Any]:
    """Facts about the ensemble for run.json."""
    first = members[0].facts
    method, title = NAMES[combination]
    seeds = {member.facts.get("seed") for member in members}
    ours = {
        "method": method,
        "title": title,
        "seed": seeds.pop() if len(seeds) == 1 else None,
        "fusion": "Ensemble",
        "modalities": [member.modality for member in members],
        "wandb_id": token_hex(4),
        "folder": str(folder.resolve()),
        "members": [str(member.path.resolve()) for member in members],
    }
    return {**{key: value for key, value in first.items() if key != "resumed"}, **ours}
