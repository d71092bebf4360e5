"""A W&B workspace and report over a project's runs. Needs `amr-fusion[dashboards]`."""

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amr.evaluation.runs import SHARES
from amr.utils.errors import UserError
from amr.utils.files import write_text

GROUP = "Group"  # dataset/fusion/method, as amr.cli.fit names it: W&B averages the seeds of one method
EPOCH = "epoch"
TABLES = ("per_class", "per_class_epochs")
MOST = 50  # lines or bars in a panel; W&B's own limit is 10


@dataclass
class Board:
    """Subject of a workspace and a report.

    Attributes:
        project: W&B project.
        entity: W&B user or team; None for the account's default one.
        dataset: Only this data set's runs, by the name in their configuration; None for all.
        modalities: Modalities of the models.
    """

    project: str
    entity: str | None
    dataset: str | None
    modalities: list[str]


def dashboard(
    project: str = "amr",
    *,
    entity: str | None = None,
    dataset: str | None = None,
    modalities: Sequence[str] | None = None,
    out: Path | None = None,
) -> str:
    """Saves the workspace and the report in W&B, or writes their specification where there is no account.

    Args:
        project: W&B project.
        entity: W&B user or team; None for the account's default one.
        dataset: Show this data set's runs only, by the name in their configuration; None for all.
        modalities: Modalities of the models; None for those that amr's data modules have.
        out: Write the specification to this JSON file, and send nothing; None for dashboard.json, where there is no
            account.

    Returns:
        What was done, to be printed.

    Raises:
        UserError: If the extra is missing, the file cannot be written, or W&B refuses.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydantic's, about the library's own code
            import wandb_workspaces.reports.v2.interface
            import wandb_workspaces.workspaces  # noqa: F401
    except ImportError as error:
        raise UserError("dashboard: wandb-workspaces is missing; pip install 'amr-fusion[dashboards]'") from error
    import wandb

    from amr.datamodules.store.media import MODALITIES

    board = Board(project, entity, dataset, list(modalities or MODALITIES))
    try:
        if out is None and has_account():
            return _save(board)
    except (wandb.Error, ValueError) as error:
        raise UserError(f"dashboard: W&B refused: {error}") from error
    why = "" if out else "no W&B account here (wandb login, or WANDB_API_KEY): "
    out = out or Path("dashboard.json")
    write_text(out, json.dumps(specification(board), indent=1) + "\n")
    return f"{why}wrote the specification of the workspace and the report to {out}; nothing was sent"


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


def specification(board: Board) -> dict[str, Any]:
    """Content that W&B would get, without the ids that only W&B can give: `workspace` and `report`."""
    models = {"workspace": _workspace(board)._to_model(), "report": _report(board)._to_model()}
    return {key: json.loads(model.model_dump_json(by_alias=True, exclude_none=True)) for key, model in models.items()}


def _save(board: Board) -> str:
    import wandb

    board.entity = board.entity or wandb.Api().default_entity
    return f"workspace: {_workspace(board).save().url}\nreport: {_report(board, saved=True).save().url}"


def _sections(modalities: list[str]) -> dict[str, list[Any]]:
    """Panels by section. Panels over runs follow the runs table's grouping: one line per group, its spread shaded."""
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
        "Dominance": [
            lines(f"{title} of {m}", [f"val/{kind}/{m}"], range_y=(0, 1))
            for m in modalities
            for title, kind in (("Dominance", "dominance"), ("Decision share", "decision_share"))
        ],
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
    return ["test/acc", "test/mAP", *(f"test/{kind}/{m}" for kind in SHARES for m in modalities), "val/acc.max"]


def _filters(board: Board) -> list[Any]:
    from wandb_workspaces import expr

    return [expr.Config("dataset") == board.dataset] if board.dataset else []


def _workspace(board: Board) -> Any:
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    return ws.Workspace(
        entity=board.entity or "",
        project=board.project,
        name=_title(board),
        sections=[
            ws.Section(name=name, panels=panels, is_open=True) for name, panels in _sections(board.modalities).items()
        ],
        settings=ws.WorkspaceSettings(x_axis=EPOCH, max_runs=MOST),
        runset_settings=ws.RunsetSettings(
            filters=_filters(board),
            groupby=[expr.Metric(GROUP)],
            pinned_columns=[f"summary:{metric}" for metric in _columns(board.modalities)],
        ),
    )


def _report(board: Board, saved: bool = False) -> Any:
    """The report; only where it is to be saved do its tables name their project, whose id W&B is asked for."""
    import wandb_workspaces.reports.v2.interface as wr

    where: dict[str, Any] = {"entity": board.entity, "project": board.project} if saved else {}
    columns = [f"summary:{metric}" for metric in _columns(board.modalities)]
    blocks: list[Any] = [
        wr.P("A row of the table is a method: dataset/fusion/method, the mean over its seeds. Shares are in [0, 1].")
    ]
    for number, (name, panels) in enumerate(_sections(board.modalities).items()):
        runs = wr.Runset(
            name="Methods",
            filters=_filters(board),
            groupby=[GROUP],
            visible_columns=["run:displayName", *columns],
            lock_columns=True,
            **where,
        )
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=panels, hide_run_sets=number > 0)]
    return wr.Report(
        entity=board.entity or "", project=board.project, title=_title(board), blocks=blocks, width="fluid"
    )


def _title(board: Board) -> str:
    return f"amr: {board.dataset}" if board.dataset else "amr: accuracy and dominance"
