"""`fit`, `validate`, `test`, `predict` and `prepare` as functions, which give results back."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amr.cli.keys.arguments import prepared
from amr.cli.keys.check import data_argument
from amr.utils.errors import UserError

if TYPE_CHECKING:
    from amr.cli.fit import AmrCLI
    from amr.datamodules import ClipDataModule
    from amr.datamodules.store.report import PrepareReport

Options = Mapping[str, Any]
"""Keys of the command line with their values, such as `{"trainer.max_epochs": 10}`."""


def fit(
    *configs: str | Path, data: str | Path | None = None, name: str | None = None, options: Options | None = None
) -> Path:
    """Trains a model as `amr fit` does.

    Args:
        configs: Configurations by their files or names, such as `"resnet18", "ogm-ge", "amr"`; a later one wins.
        data: The data: a configuration's file or name, or a class's import path; None where `configs` have it.
        name: Name of the run's folder; None for one that is made of data set, method and seed.
        options: Further keys of `amr fit`, which win over the configurations, such as `{"trainer.max_epochs": 10}`.

    Returns:
        The run's folder.

    Raises:
        UserError: For anything that the user can mend.
    """
    return _run("fit", configs, data, {**(options or {}), **({} if name is None else {"name": name})}).run_folder


def validate(
    checkpoint: str | Path, *, data: str | Path | None = None, options: Options | None = None
) -> dict[str, float]:
    """Measures a run on the validation split, as `amr validate` does.

    Args:
        checkpoint: A run's folder, or a checkpoint of it.
        data: Other data than the run's own: a configuration's file or name, or a class's import path.
        options: Further keys of `amr validate`, such as `{"trainer.limit_val_batches": 10}`.

    Returns:
        The metrics by name, such as `val/acc`.

    Raises:
        UserError: For anything that the user can mend.
    """
    return _metrics(_run("validate", (), data, {**(options or {}), "ckpt_path": checkpoint}))


def test(  # a command's name
    checkpoint: str | Path,
    *,
    data: str | Path | None = None,  # noqa: PT028
    options: Options | None = None,  # noqa: PT028
) -> dict[str, float]:
    """Measures a run on the test split, as `amr test` does.

    Args:
        checkpoint: A run's folder, or a checkpoint of it.
        data: Other data than the run's own: a configuration's file or name, or a class's import path.
        options: Further keys of `amr test`, such as `{"robustness.test": True}`.

    Returns:
        The metrics by name, such as `test/acc`.

    Raises:
        UserError: For anything that the user can mend.
    """
    return _metrics(_run("test", (), data, {**(options or {}), "ckpt_path": checkpoint}))


def predict(
    checkpoint: str | Path,
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    options: Options | None = None,
) -> Path:
    """Writes a run's predictions and shares, as `amr predict` does.

    Args:
        checkpoint: A run's folder, or a checkpoint of it.
        out: The parquet file; None for `predictions.parquet` in the run's folder.
        data: Other data than the run's own: a configuration's file or name, or a class's import path.
        options: Further keys of `amr predict`.

    Returns:
        The parquet file.

    Raises:
        UserError: For anything that the user can mend.
    """
    given = {**(options or {}), "ckpt_path": checkpoint, **({} if out is None else {"out": out})}
    ran = _run("predict", (), data, given)
    return ran.run_folder / "predictions.parquet" if out is None else Path(out)


def prepare(
    data: "str | Path | ClipDataModule",
    *,
    scheduler: str | None = None,
    convert: str | Path | None = None,
    options: Options | None = None,
) -> "PrepareReport":
    """Decodes a data set's clips into its store, as `amr prepare` does. What is there already is kept.

    Args:
        data: A configuration's file or name, a class's import path, or a data module.
        scheduler: Address or JSON file of a Dask scheduler whose workers decode; None for processes on this machine.
        convert: Another store of the same clips, from which the store is filled in place of the media. Its `decode` may
            differ in `frames` and `spectrogram` alone. It is only read.
        options: Arguments of the data module, where it is not given itself, such as `{"root": "clips"}`.

    Returns:
        What was decoded, and which clips were left out for which reason.

    Raises:
        UserError: For anything that the user can mend.
    """
    from amr.utils.work import dask_cluster

    module = _datamodule(data, options)
    with dask_cluster(scheduler) as executor:
        return module.prepare(executor, convert)


def verify(data: "str | Path | ClipDataModule", *, options: Options | None = None) -> int:
    """Rereads a store and compares its checksums, as `amr prepare --verify` does.

    Args:
        data: A configuration's file or name, a class's import path, or a data module.
        options: Arguments of the data module, where it is not given itself, such as `{"root": "clips"}`.

    Returns:
        The number of the store's shards, all of which are sound.

    Raises:
        UserError: Some are not; it names them.
    """
    return _datamodule(data, options).verify()


def run_prepare(arguments: Sequence[str]) -> None:
    """The command `prepare`.

    Args:
        arguments: The command's: `--config NAME`, or `--data CLASS --data.root ...`; `--scheduler`, `--convert STORE`,
            `--verify`.

    Raises:
        UserError: For anything that the user can mend.
    """
    from amr.datamodules import ClipDataModule
    from amr.datamodules.store.prepare import MISSING
    from amr.datamodules.store.report import describe_reasons
    from amr.utils.parser import OneLineParser

    parser = OneLineParser(prog="amr prepare", description="Decodes a dataset's clips into its store.")
    parser.add_argument("--config", action="config", help="a configuration with a `data` section")
    parser.add_subclass_arguments(ClipDataModule, "data", required=True)
    parser.add_argument(
        "--scheduler", type=str | None, help="a Dask scheduler's address or JSON file; its workers do it"
    )
    parser.add_argument(
        "--convert", type=str | None, help="fill the store from this one, with other frames or spectrograms"
    )
    parser.add_argument("--verify", action="store_true", help="only reread the store and compare its checksums")
    config = parser.parse_args(list(arguments))
    if config.verify and config.convert is not None:
        raise UserError("--convert: must not be given with --verify; convert first")
    module: ClipDataModule = parser.instantiate_classes(config).data
    if config.verify:
        verify(module)
    else:
        report = prepare(module, scheduler=config.scheduler, convert=config.convert)
        if report.total and report.empty == report.total:
            missing = all(reason == MISSING for _, reason in report.reasons)
            hint = "; --data.root must be the folder in which their paths begin" if missing else ""
            raise UserError(f"no clip of {report.total} can be used ({describe_reasons(report.reasons)}){hint}")


def _datamodule(data: "str | Path | ClipDataModule", options: Options | None) -> "ClipDataModule":
    if not isinstance(data, str | Path):
        return data
    from amr.datamodules import ClipDataModule
    from amr.utils.parser import OneLineParser

    parser = OneLineParser(prog="amr.prepare")
    parser.add_subclass_arguments(ClipDataModule, "data", required=True)
    given = [f"--data.init_args.{key}={_text(value)}" for key, value in (options or {}).items()]
    built: ClipDataModule = parser.instantiate_classes(parser.parse_args([data_argument(data, "data"), *given])).data
    return built


def _run(command: str, configs: Sequence[str | Path], data: str | Path | None, options: Options) -> "AmrCLI":
    given = [argument for config in configs for argument in ("--config", str(config))]
    given += [] if data is None else [data_argument(data, "data")]
    # A checkpoint's own configuration is looked for by the words that the command line has.
    given += [word for key, value in options.items() for word in (f"--{key}", _text(value))]
    checked = prepared(command, given)

    from amr.cli.fit import execute

    return execute([command, *checked])


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


def _metrics(ran: "AmrCLI") -> dict[str, float]:
    return {name: float(value) for name, value in ran.trainer.callback_metrics.items()}
