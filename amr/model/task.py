"""Tasks: a model predicts one class, several labels, or a number for a clip."""

from typing import Any, Literal, get_args

from amr.utils.errors import UserError

Task = Literal["classes", "labels", "regression"]
WHAT = {"labels": "several labels per clip", "regression": "regression"}


def check_task(task: Any) -> Task:
    """The task, if it is one.

    Raises:
        UserError: It is not.
    """
    if task not in get_args(Task):
        raise UserError(f"model.task={str(task)[:40]!r}: must be one of {', '.join(get_args(Task))}")
    return task  # type: ignore[no-any-return]


def task_of(model: Any) -> Task:
    """Task of a model; a model that does not declare one predicts classes."""
    task: Task = getattr(model, "task", "classes")
    return task


def check_classes(model: Any, what: str, *, several: bool = False) -> None:
    """Refuse a model of a number, or of several labels per clip.

    Args:
        model: The model.
        what: Name of the function that is not defined for the task.
        several: Whether it is defined for several labels per clip.

    Raises:
        UserError: Its task is not `classes`, nor `labels` where these are allowed.
    """
    task = task_of(model)
    if task != "classes" and not (several and task == "labels"):
        raise UserError(f"{what}: is not defined for {WHAT[task]} (model.task={task})")
