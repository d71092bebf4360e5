"""A W&B workspace and report over a project's runs: `amr dashboard`. Needs `amr[dashboards]`."""

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import Any

from amr.utils.errors import UserError
from amr.utils.files import write_text

GROUP = "Group"  # dataset/fusion/method, as amr.cli.fit names it: W&B averages the seeds of one method
EPOCH = "epoch"
TABLES = ("per_class", "per_class_epochs")
MOST = 50  # lines or bars in a panel; W&B's own limit is 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--entity", help="W&B user or team (your default one)")
    parser.add_argument("--project", default="amr", help="W&B project (amr)")
    parser.add_argument("--dataset", help="show this dataset's runs only, by the name in their config (all)")
    parser.add_argument(
        "--modalities", nargs="+", default=["audio", "video"], metavar="NAME", help="of the models (audio video)"
    )
    parser.add_argument("--out", type=Path, help="write the specification to this JSON file, and send nothing")


def run(options: argparse.Namespace) -> int:
    """Saves the workspace and the report in W&B, or writes their specification where there is no account.

    Args:
        options: What `add_arguments` defines.

    Returns:
        Exit status.

    Raises:
        UserError: If the extra is missing, the file cannot be written, or W&B refuses.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydantic's, about the library's own code
            import wandb_workspaces.reports.v2.interface
            import wandb_workspaces.workspaces  # noqa: F401
    except ImportError as error:
        raise UserError("dashboard: wandb-workspaces is missing; pip install 'amr[dashboards]'") from error
    import wandb

    try:
        if options.out is None and has_account():
            return _save(options)
    except (wandb.Error, ValueError) as error:
        raise UserError(f"dashboard: W&B refused: {error}") from error
    out = options.out or Path("dashboard.json")
    write_text(out, json.dumps(specification(options), indent=1) + "\n")
    why = "" if options.out else "no W&B account here (wandb login, or WANDB_API_KEY): "
    print(f"{why}wrote the specification of the workspace and the report to {out}; nothing was sent")
    return 0


def has_account() -> bool:
    """Whether W&B has credentials on this machine and is not set to offline; asks no server."""
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    settings = wandb_setup.singleton().settings
    return bool(settings.api_key or wbauth.read_netrc_auth(host=settings.base_url))


def specification(options: argparse.Namespace) -> dict[str, Any]:
    """What W&B would be sent, but for the ids that only it can give: `workspace` and `report`."""
    models = {"workspace": _workspace(options)._to_model(), "report": _report(options)._to_model()}
    return {key: json.loads(model.model_dump_json(by_alias=True, exclude_none=True)) for key, model in models.items()}


def _save(options: argparse.Namespace) -> int:
    import wandb

    options.entity = options.entity or wandb.Api().default_entity
    print(f"workspace: {_workspace(options).save().url}")
    print(f"report: {_report(options, saved=True).save().url}")
    return 0


def _sections(modalities: list[str]) -> dict[str, list[Any]]:
    """Panels by section. Those over runs follow the grouping of the runs table: a line a group, its spread shaded."""
    import wandb_workspaces.reports.v2.interface as wr

    from amr import regularizers

    def lines(title: str, metrics: list[str] | None = None, **options: Any) -> Any:
        spread: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev", "max_runs_to_show": MOST}
        return wr.LinePlot(title=title, x=EPOCH, y=list(metrics or []), **spread, **options)

    def bars(metric: str) -> Any:
        limits: dict[str, Any] = {"max_runs_to_show": 10 * MOST, "max_bars_to_show": MOST}
        return wr.BarPlot(title=metric, metrics=[metric], groupby_aggfunc="mean", groupby_rangefunc="stddev", **limits)

    methods = sorted(
        kind.name
        for kind in vars(regularizers).values()
        if isinstance(kind, type) and issubclass(kind, regularizers.Regularizer) and hasattr(kind, "name")
    )
    return {
        "Test": [bars(metric) for metric in _columns(modalities)[:-1]],
        "Dominance": [lines(f"Dominance of {m}", [f"val/dominance/{m}"], range_y=(0, 1)) for m in modalities],
        "Accuracy": [lines(metric, [metric]) for metric in ("val/acc", "val/mAP", "val/loss", "train/acc")],
        "Accuracy against dominance": [
            wr.ScatterPlot(
                title=f"Test accuracy against dominance of {m}",
                x=wr.SummaryMetric(f"test/dominance/{m}"),
                y=wr.SummaryMetric("test/acc"),
            )
            for m in modalities
        ],
        "By class": [wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(w=24, h=10)) for name in TABLES],
        "Methods' coefficients": [
            lines("Coefficients", metric_regex=f"^train/({'|'.join(methods)})/"),
            lines("Loss terms", metric_regex="^train/loss/"),
        ],
    }


def _columns(modalities: list[str]) -> list[str]:
    """Summary metrics in the runs table."""
    return ["test/acc", "test/mAP", *(f"test/dominance/{m}" for m in modalities), "val/acc.max"]


def _filters(options: argparse.Namespace) -> list[Any]:
    from wandb_workspaces import expr

    return [expr.Config("dataset") == options.dataset] if options.dataset else []


def _workspace(options: argparse.Namespace) -> Any:
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    return ws.Workspace(
        entity=options.entity or "",
        project=options.project,
        name=_title(options),
        sections=[
            ws.Section(name=name, panels=panels, is_open=True) for name, panels in _sections(options.modalities).items()
        ],
        settings=ws.WorkspaceSettings(x_axis=EPOCH, max_runs=MOST),
        runset_settings=ws.RunsetSettings(
            filters=_filters(options),
            groupby=[expr.Metric(GROUP)],
            pinned_columns=[f"summary:{metric}" for metric in _columns(options.modalities)],
        ),
    )


def _report(options: argparse.Namespace, saved: bool = False) -> Any:
    """The report; only where it is to be saved do its tables name their project, whose id W&B is asked for."""
    import wandb_workspaces.reports.v2.interface as wr

    where = {"entity": options.entity, "project": options.project} if saved else {}
    columns = [f"summary:{metric}" for metric in _columns(options.modalities)]
    blocks: list[Any] = [
        wr.P("A row of the table is a method: dataset/fusion/method, the mean over its seeds. Shares are in [0, 1].")
    ]
    for number, (name, panels) in enumerate(_sections(options.modalities).items()):
        runs = wr.Runset(
            name="Methods",
            filters=_filters(options),
            groupby=[GROUP],
            visible_columns=["run:displayName", *columns],
            lock_columns=True,
            **where,
        )
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=panels, hide_run_sets=number > 0)]
    return wr.Report(
        entity=options.entity or "", project=options.project, title=_title(options), blocks=blocks, width="fluid"
    )


def _title(options: argparse.Namespace) -> str:
    return f"amr: {options.dataset}" if options.dataset else "amr: accuracy and dominance"
