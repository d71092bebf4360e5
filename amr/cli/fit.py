"""Runs: `fit`, `validate`, `test` and `predict`, and the folder that a run leaves.

runs/<name>/ holds run.json (flat facts), config.yaml (resolved), metrics/version_<k>/metrics.csv (one a start),
checkpoints/{best,last}.ckpt, per_class.csv, test_predictions.parquet once tested, robustness.parquet where it was asked
for (robustness-parts/ while it is under way), card.md, and wandb/.
"""

import errno
import json
import os
import re
import secrets
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from jsonargparse import Namespace
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from amr.callbacks import (
    Bar,
    BestCheckpoint,
    ClipOutcomes,
    Dominance,
    EpochLines,
    Guard,
    LastCheckpoint,
    PredictionWriter,
    Robustness,
    StepLog,
    WandbContent,
    WandbSetup,
)
from amr.classifier import FusionClassifier
from amr.cli.arguments import SHARED_MEMORY, check_monitors, check_trainer, lacks_shared_memory, told_by_lightning
from amr.cli.runs.noise import leave_out_noise
from amr.cli.runs.run_files import RunRecord, config_of_checkpoint, last_checkpoint
from amr.cli.runs.slurm import requeue
from amr.cli.runs.wandb_run import finish_wandb, names_before, wandb_error, wandb_id, wandb_stages_in
from amr.datamodules import ListedClips
from amr.evaluation.runs import OUTCOMES, SHARES
from amr.load import read_config
from amr.report.card import write_card
from amr.utils.checkpoints import AtomicCheckpointIO, check_checkpoint
from amr.utils.distributed import is_first_process
from amr.utils.errors import Stopped, UserError
from amr.utils.files import locked, run_folder
from amr.utils.parser import LOADER, OneLineParser, dump_yaml
from amr.utils.paths import differing, found_again, made_absolute
from amr.utils.resume import settings_of
from amr.utils.streams import problem_of_stdout, progress_shown
from amr.utils.trust import check, only_trusted, take_trust, trusting


def run(arguments: Sequence[str]) -> None:
    """Runs one of Lightning's subcommands; a checkpoint brings its run's configuration with it.

    Args:
        arguments: The subcommand and its arguments.

    Raises:
        UserError: For anything that the user can mend.
        Stopped: At SIGTERM or SIGUSR1, with a message; under SLURM, SIGUSR1 also requeues the job.
    """
    try:
        for line in execute(arguments).result:
            print(line)
    except Stopped as stopped:
        if str(stopped):
            print(f"amr: {stopped}", file=sys.stderr, flush=True)
        if stopped.signal == signal.SIGUSR1:  # the last act: SLURM kills a job that it requeues
            requeue()
        raise


def execute(arguments: Sequence[str]) -> "AmrCLI":
    """Runs one of Lightning's subcommands, as `run` does, and gives what it was run with.

    Raises:
        UserError: For anything that the user can mend.
        Stopped: At SIGTERM or SIGUSR1.
    """
    arguments, prefixes = take_trust(arguments)
    with trusting(prefixes), ExitStack() as held, warnings.catch_warnings():
        if config := config_of_checkpoint(arguments):
            content = read_config(config)
            check(content, str(config))
            held.enter_context(only_trusted())
            paths = differing(content, found_again(content, config.parent))
            moved = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in paths]
            # A file that `predict` writes to is named by the user only.
            own = ["--out", "null"]
            if content.get("wandb") != "disabled":  # whether something is sent is the user's to say, not a file's
                own += ["--wandb", "offline"]
            arguments = [arguments[0], "--config", str(config), *moved, *own, *arguments[1:]]
        leave_out_noise()
        try:
            return AmrCLI(arguments, held)
        except Exception as error:
            if isinstance(error, UserError | Stopped) or (line := _mistake(error)) is None:
                raise
            raise UserError(line) from error
        finally:
            finish_wandb()


def _mistake(error: Exception) -> str | None:
    """One line on what the user can mend; None of a bug."""
    if isinstance(error, wandb_error()):  # no API key, no such entity, no connection
        hint = "; --wandb offline keeps the record here, for wandb sync"
        return f"--wandb: {error}{hint if type(error).__name__ == 'CommError' else ''}"
    if lacks_shared_memory(error):
        return SHARED_MEMORY
    # A full disk, under a file that we do not write ourselves, such as the metrics'.
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and not problem_of_stdout(error):
        return f"{error.filename or 'a file of the run'}: {error.strerror}; make room and go on"
    return told_by_lightning(error)


class AmrCLI(LightningCLI):
    """LightningCLI for `FusionClassifier` on any datamodule that has `name`, `labels` and `num_classes`.

    Args:
        args: The subcommand and its arguments.
        held: Keeps the lock of a run's folder until it is closed; None for no lock.
    """

    def __init__(self, args: ArgsType = None, held: ExitStack | None = None) -> None:
        self._held = held
        self._asked = args[0] if isinstance(args, list) and args else None
        self.lines = EpochLines()
        super().__init__(
            FusionClassifier,
            LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=None,  # RunRecord does it, later
            trainer_defaults={"use_distributed_sampler": False, "enable_model_summary": False, "log_every_n_steps": 10},
            seed_everything_default=0,
            parser_class=OneLineParser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Makes only the requested command's parser, because making all takes long."""
        known = LightningCLI.subcommands()
        return {self._asked: known[self._asked]} if self._asked in known else known

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of a run that are not the model's."""
        parser.add_argument(
            "--name", type=str | None, help="folder of the run under runs_dir (<dataset>-<method>-s<seed>)"
        )
        parser.add_argument("--runs_dir", type=Path, default=Path("runs"), help="where runs go")
        parser.add_argument(
            "--wandb", type=Literal["offline", "online", "disabled"], default="offline", help="W&B's mode"
        )
        parser.add_argument("--project", type=str, default="amr", help="W&B project")
        parser.add_argument("--entity", type=str | None, help="W&B team or user (the account's default)")
        parser.add_argument("--notes", type=str | None, help="what this run is for, shown beside it in W&B")
        parser.add_argument("--out", type=Path | None, help="file of predict (predictions.parquet in the run's folder)")
        parser.add_lightning_class_args(BestCheckpoint, "best")
        parser.add_lightning_class_args(LastCheckpoint, "last")
        parser.add_lightning_class_args(Dominance, "dominance")
        parser.add_lightning_class_args(Robustness, "robustness")
        parser.add_lightning_class_args(WandbContent, "wandb_content")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, and refuses a checkpoint that is not one before anything is built."""
        super().parse_arguments(parser, args)
        options = self.config[self.config.subcommand]
        options.weights_only = True  # our checkpoints hold nothing that would need more
        path = options.get("ckpt_path")
        if path is not None and not (path == "last" and self.config.subcommand == "fit"):
            check_checkpoint(Path(path), "--ckpt_path=")
        if self.config.subcommand == "fit" and os.environ.get("WANDB_SWEEP_ID") and options.wandb != "online":
            raise UserError(f"--wandb={options.wandb}: must be online under a sweep's agent (WANDB_SWEEP_ID is set)")
        if options.wandb != "disabled" and not re.fullmatch(r"[\w.-]{1,128}", options.project):
            raise UserError(f"--project={options.project!r}: must be letters, digits and . _ -, 128 at most")
        check_trainer(options.trainer)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the Trainer around the run's folder."""
        options: Namespace = self.config[self.config.subcommand]
        init: Namespace = self.config_init[self.config.subcommand]
        facts = self._facts()
        folder = self.run_folder = self._folder(options, facts)
        if (folder / "run.json").is_file():  # W&B's run goes on, too
            facts |= {"wandb_id": wandb_id(folder / "run.json")}
            if self.subcommand != "fit":
                facts |= names_before(folder / "run.json")
        facts["wandb_id"] = os.environ.get("WANDB_RUN_ID", facts["wandb_id"])  # a sweep's agent brings its own
        if options.get("ckpt_path") == "last":
            init.ckpt_path = last_checkpoint(folder)
        init.best.dirpath = init.last.dirpath = str(folder / "checkpoints")
        init.dominance.table = folder / "per_class.csv"
        init.robustness.out = folder / "robustness.parquet"
        config = self._parser(self.subcommand).dump(options, skip_unset=False, skip_validation=True)
        resolved = made_absolute(yaml.load(config, Loader=LOADER), type(self.datamodule))  # noqa: S506  # a safe one
        # The parser reads a file in the locale's encoding, whatever that is.
        config = f"# pytorch_lightning=={version('pytorch-lightning')}\n{dump_yaml(resolved, ascii_only=True)}"
        self.model.config, self.model.settings = resolved["model"], settings_of(resolved)
        callbacks: list[Callback] = (
            [RunRecord(folder, facts, config), Guard(init.last)] if self.subcommand == "fit" else []
        )
        if self.subcommand == "predict":
            callbacks.append(PredictionWriter(init.out or folder / "predictions.parquet"))
            kwargs["logger"] = False
        elif init.trainer.logger is not False:
            users = [] if init.trainer.logger is True else _listed(init.trainer.logger)
            kwargs["logger"] = [*self._loggers(options, folder, facts, users), *users]
            callbacks.append(WandbSetup(facts, resolved, folder / "config.yaml"))
        if self.subcommand == "test":
            callbacks.append(ClipOutcomes(folder / OUTCOMES))
        kwargs["plugins"] = [*_listed(init.trainer.plugins), AtomicCheckpointIO()]
        given, bar = _listed(init.trainer.callbacks), init.trainer.enable_progress_bar
        if bar is None:
            kwargs["enable_progress_bar"] = bar = progress_shown() and sys.stdout.isatty()
        if bar and not any(isinstance(callback, ProgressBar) for callback in given):
            callbacks.append(Bar())
        if self.subcommand == "fit":
            self.lines.lines = not bar
            callbacks += [self.lines, StepLog()]
        kwargs["callbacks"] = [*given, *callbacks]
        kwargs["default_root_dir"] = init.trainer.default_root_dir or str(folder)
        trainer = super().instantiate_trainer(**kwargs)
        if str(options.trainer.precision) in ("16", "16-mixed") and trainer.precision != "16-mixed":
            # Lightning would train in bf16 instead.
            raise UserError(
                "trainer.precision=16-mixed: must be bf16-mixed or 32-true on a CPU, for 16-mixed needs a GPU"
            )
        return trainer

    @property
    def result(self) -> list[str]:
        """Result of a training, line by line: the best epoch, the run's folder, and the commands that come next."""
        best = self.lines.result(tuple(self.model.model.modalities)) if self.subcommand == "fit" else ""
        if not best or not self.trainer.is_global_zero:
            return []
        folder, runs = shlex.quote(str(self.run_folder)), shlex.quote(str(self.run_folder.parent))
        return [best, f"in {self.run_folder}", f"next: amr test {folder}; amr compare {runs}"]

    def after_fit(self) -> None:
        """Writes the model card, when all metrics are on disk."""
        self._write_card()

    def after_test(self) -> None:
        """Brings the model card up to date."""
        self._write_card()

    def _write_card(self) -> None:
        trainer = self.trainer
        if not trainer.is_global_zero or trainer.fast_dev_run or not (self.run_folder / "run.json").is_file():  # type: ignore[attr-defined]
            return
        try:
            write_card(self.run_folder)
        except UserError as error:  # the run itself has ended well
            print(f"amr: no model card: {error}", file=sys.stderr)

    def _facts(self) -> dict[str, Any]:
        """Facts that identify the run, after a check that its parts fit together."""
        assert isinstance(self.model, FusionClassifier)
        assert self.datamodule is not None
        options: Namespace = self.config[self.config.subcommand]
        modalities = self.model.model.modalities
        if isinstance(self.datamodule, ListedClips):
            lacking = [name for name in modalities if name not in self.datamodule.modalities]
            if lacking:
                has = ", ".join(map(repr, self.datamodule.modalities))
                raise UserError(f"model.encoders: no input for the modality {lacking[0]!r}; data.modalities has {has}")
        several, logged = getattr(self.datamodule, "multilabel", None), self.model.objective.logged
        if several is not None:
            number = getattr(self.datamodule, "regression", False)
            wanted = "regression" if number else "labels" if several else "classes"
            what = {"regression": "a number", "labels": "several labels", "classes": "one class"}[wanted]
            if wanted != self.model.model.task:
                raise UserError(
                    f"model.task={self.model.model.task}: must be {wanted}, for data.label has {what} per clip"
                )
        monitors = [
            f"val/{name}" for name in ("loss", *logged, *(f"{kind}/{name}" for kind in SHARES for name in modalities))
        ]
        if options.best.monitor not in monitors:
            raise UserError(f"best.monitor={options.best.monitor}: must be one of {', '.join(monitors)}")
        init: Namespace = self.config_init[self.config.subcommand]
        schedule = (options.model.lr_scheduler or {}).get("init_args") or {}
        check_monitors(_listed(init.trainer.callbacks), schedule.get("monitor"), modalities, logged)
        return {
            "method": self.model.method,
            "title": self.model.title,
            "dataset": self.datamodule.name,
            "seed": options.seed_everything,
            "fusion": self.model.fusion_name,
            "modalities": list(modalities),
            "labels": list(self.datamodule.labels),
            "num_classes": self.datamodule.num_classes,
            "wandb_id": secrets.token_hex(4),
        }

    def _folder(self, options: Namespace, facts: dict[str, Any]) -> Path:
        """The run's folder: the checkpoint's, if it lies in one, else runs_dir/name."""
        path = options.get("ckpt_path")
        if self.subcommand != "fit" and path and (run_folder(Path(path)) / "run.json").is_file():
            return run_folder(Path(path))
        name = options.name or _slug(f"{facts['dataset']}-{facts['method']}-s{facts['seed']}")
        if name != _slug(name):
            raise UserError(f"--name={name!r}: must be letters, digits and . _ + -")
        if Path(options.runs_dir).is_file():
            raise UserError(f"--runs_dir={options.runs_dir}: must be a folder, not a file")
        folder: Path = Path(options.runs_dir) / name
        if self.subcommand == "fit" and self._held and is_first_process() and not options.trainer.fast_dev_run:
            # Before the folder is looked at, so that of two starts of a name only one finds it free.
            self._held.enter_context(locked(folder, "choose another --name"))
        goes_on = path == "last" or (path and Path(path).resolve().is_relative_to(folder.resolve()))
        if self.subcommand == "fit" and not goes_on and (folder / "run.json").exists():
            raise UserError(
                f"{folder} holds a run already: go on with it by --ckpt_path last, or choose another --name"
            )
        return folder

    def _job_type(self, facts: dict[str, Any]) -> str:
        """W&B's job type; unimodal models have that of teachers."""
        if self.subcommand != "fit":
            return "eval"
        return "teacher" if len(facts["modalities"]) == 1 else "train"

    def _loggers(self, options: Namespace, folder: Path, facts: dict[str, Any], given: list[Logger]) -> list[Logger]:
        """Our loggers and the given ones; W&B has a single run per process, so a given W&B logger replaces ours."""
        loggers: list[Logger] = [CSVLogger(folder, name="metrics", flush_logs_every_n_steps=1)]
        if options.wandb != "disabled" and not any(isinstance(logger, WandbLogger) for logger in given):
            import wandb  # half a second, which `fit --help` and a run without it need not spend

            # A server that does not answer is refused after 20 s, not 90.
            os.environ.setdefault("WANDB_INIT_TIMEOUT", "20")
            if options.wandb == "offline":  # crash reports, too, stay here
                os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
                os.environ.setdefault("WANDB_SILENT", "true")
            folder.mkdir(parents=True, exist_ok=True)
            if self._held is not None:
                self._held.enter_context(wandb_stages_in(folder / "wandb"))
            record = WandbLogger(
                name=folder.name,
                save_dir=folder,
                offline=options.wandb == "offline",
                project=options.project,
                entity=options.entity,
                notes=options.notes,
                id=facts["wandb_id"],
                resume="allow",
                group=f"{facts['dataset']}/{facts['fusion']}/{facts['method']}"[:128],
                job_type=self._job_type(facts),
                tags=sorted({facts[key][:64] for key in ("dataset", "fusion", "method")}),  # W&B's limit
                mode="offline" if options.wandb == "offline" else None,  # None: WANDB_MODE's, else online
                settings=wandb.Settings(silent=True, disable_git=True, console="off"),
            )
            record._wandb_init.pop("anonymous", None)  # of whose mere presence W&B warns
            loggers.append(record)
        return loggers


def _listed(value: Any) -> list[Any]:
    """List of an argument of which the Trainer accepts one, several or none."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-.") or "run"


class _ParserOnlyError(Exception):
    """Carries a parser out of Lightning's constructor, before anything is parsed."""


def parser_of(command: str) -> OneLineParser:
    """The parser of one of the run commands, as `amr.cli.keys.schema` reads it."""

    class ParserOnly(AmrCLI):
        def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
            raise _ParserOnlyError

        def __init__(self) -> None:
            with suppress(_ParserOnlyError):
                super().__init__([command])

    return cast(OneLineParser, ParserOnly()._parser(command))
