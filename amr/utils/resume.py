"""Training that resumes with other settings than the checkpoint's: what is refused, what applies, what is recorded.

Lightning restores an optimizer's settings and its schedule's from the checkpoint, whatever was asked for. Here they are
those that were asked for, and the state (momentum, averages, the place in the schedule) is the checkpoint's.
"""

import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from amr.utils.errors import UserError

if TYPE_CHECKING:  # readers of a run's record need no torch
    from torch.nn import Parameter
    from torch.optim import Optimizer

TRAINER = (  # what of the Trainer's settings changes weights; how long training lasts is no other training
    *("accumulate_grad_batches", "callbacks", "devices", "gradient_clip_algorithm", "gradient_clip_val"),
    *("limit_train_batches", "num_nodes", "overfit_batches", "precision", "sync_batchnorm"),
)
LENGTH = ("max_epochs", "max_steps")  # which do change weights where the schedule follows the run's length
WITHOUT_EFFECT = {
    "model": ("channels_last", "compile_encoders", "num_classes"),
    "data": ("decode_on", "in_memory", "num_workers", "predict_split", "prepare_workers", "root", "store"),
}
PLATEAU = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")  # what a plateau's schedule has met so far


def recipe(
    optimizer: "Optimizer", scheduler: Any, interval: str, parameters: Mapping[str, "Parameter"]
) -> dict[str, Any]:
    """Requested settings of the main optimizer for a checkpoint, in plain types.

    Args:
        optimizer: Fresh.
        scheduler: Fresh; None for a constant rate.
        interval: Unit that the schedule counts, `epoch` or `step`.
        parameters: Trained parameters by name.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    groups = optimizer.param_groups
    return {
        "optimizer": _path(optimizer),
        "defaults": _plain(optimizer.defaults),
        "scheduler": None if scheduler is None else _path(scheduler),
        "schedule": None if scheduler is None else _plain(scheduler.state_dict()),
        "interval": interval,
        "parameters": [names.get(id(parameter), "") for group in groups for parameter in group["params"]],
        "groups": [{"size": len(group["params"]), "settings": _plain(_settings(group))} for group in groups],
    }


def adopt(checkpoint: dict[str, Any], optimizer: "Optimizer", scheduler: Any, now: Mapping[str, Any]) -> None:
    """Puts the settings of this run's optimizer and schedule into a checkpoint that training resumes from.

    State stays with its parameter, by name, whatever group it is in; the schedule is where it would be had it been this
    one from the start. A checkpoint of the same settings is left as it is, so that training resumes bit for bit.

    Args:
        checkpoint: With `optimizer_states`, `lr_schedulers`, `loops` and `amr`; changed in place.
        optimizer: Optimizer of this run, fresh, and given to nothing else.
        scheduler: Scheduler of this run, on that optimizer; None for a constant rate.
        now: This run's `recipe`.

    Raises:
        UserError: The checkpoint has another optimizer's or another schedule's state.
    """
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    states = checkpoint.get("optimizer_states") or []
    if len(states) != 1:
        raise UserError("checkpoint: it has not one main optimizer; training cannot resume with this one")
    (state,) = states
    before = _recipe_of(checkpoint, state, now)
    for key, name in (("optimizer", "optimizer"), ("scheduler", "lr_scheduler")):
        if before[key] != now[key]:
            theirs, ours = (_short(value, before[key], now[key]) for value in (before[key], now[key]))
            raise UserError(
                f"model.{name}={ours}: the checkpoint's is {theirs}; training can resume with {theirs} alone, whose "
                "state the checkpoint holds"
            )
    rate = state["param_groups"][0]["lr"]
    _match(state, before, now)
    same = _settings_of(before) == _settings_of(now)
    if same and all(before[key] == now[key] for key in ("defaults", "schedule", "interval")):
        return
    if scheduler is not None and checkpoint["lr_schedulers"]:
        fit = checkpoint["loops"]["fit_loop"]
        if isinstance(scheduler, ReduceLROnPlateau):
            met = checkpoint["lr_schedulers"][0]
            factor = rate / (before["groups"][0]["settings"] or before["defaults"])["lr"]
            for group in optimizer.param_groups:
                group["lr"] *= factor
            reached = {key: met[key] for key in PLATEAU} | {"_last_lr": [g["lr"] for g in optimizer.param_groups]}
            checkpoint["lr_schedulers"] = [{**scheduler.state_dict(), **reached}]
        else:
            steps = fit["epoch_loop.scheduler_progress"]["total"]["completed"]
            if before["interval"] != now["interval"]:
                per_epoch = now["interval"] == "epoch"
                steps = fit["epoch_progress"]["current"]["processed"] if per_epoch else checkpoint["global_step"]
            _replay(scheduler, steps)
            checkpoint["lr_schedulers"] = [scheduler.state_dict()]
    for group, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
        group.update(_settings(own))


def _recipe_of(checkpoint: Mapping[str, Any], state: Mapping[str, Any], now: Mapping[str, Any]) -> Mapping[str, Any]:
    """The checkpoint's recipe; of one that was written without, as far as its state tells."""
    sizes = [len(group["params"]) for group in state["param_groups"]]
    alike = len(sizes) == len(now["groups"])
    earlier = [now["groups"][i]["settings"] if alike else None for i in range(len(sizes))]
    groups = [{"size": size, "settings": settings} for size, settings in zip(sizes, earlier, strict=True)]
    written = checkpoint["amr"].get("recipe")
    if written is not None:
        if not isinstance(written, Mapping) or {*written, "groups"} != {*now}:
            raise UserError("checkpoint: what it says of its optimizer is not whole; it was damaged, or is not amr's")
        if "groups" not in written and len(sizes) > 1 and not alike:
            raise _other_groups()
        return {"groups": groups, **written}
    if not alike or len(sizes) > 1:
        raise _other_groups()
    if sum(sizes) != len(now["parameters"]):
        raise UserError("checkpoint: its method trains other parameters; training cannot resume with this one")
    group = state["param_groups"][0]
    model = checkpoint["amr"].get("model") or {}
    optimizer = (model.get("optimizer") or {}).get("class_path", "") if isinstance(model, Mapping) else ""
    same = group.keys() >= now["defaults"].keys() and (not optimizer or _last(optimizer) == _last(now["optimizer"]))
    found = {key: group[key] for key in now["defaults"]} if same else {}
    if "initial_lr" in group:
        found["lr"] = group["initial_lr"]
    scheduled = bool(checkpoint.get("lr_schedulers"))
    return {
        **now,
        "optimizer": now["optimizer"] if same else optimizer or "another",
        "defaults": _plain(found),
        "scheduler": now["scheduler"]
        if scheduled == (now["scheduler"] is not None)
        else "another"
        if scheduled
        else None,
    }


def _other_groups() -> UserError:
    return UserError("checkpoint: its optimizer has other groups of parameters; training cannot resume with this one")


def _match(state: dict[str, Any], before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Gives each parameter the state that it had, and each group its parameters; a new parameter has no state yet."""
    sizes = [group["size"] for group in now["groups"]]
    if before["parameters"] == now["parameters"] and sizes == [group["size"] for group in before["groups"]]:
        return
    place = {name: index for index, name in enumerate(before["parameters"])}
    kept = {index: state["state"].get(place.get(name)) for index, name in enumerate(now["parameters"])}
    state["state"] = {index: value for index, value in kept.items() if value is not None}
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    theirs = state["param_groups"] if len(state["param_groups"]) == len(sizes) else [{} for _ in sizes]
    state["param_groups"] = [
        {**group, "params": list(range(end - size, end))} for group, size, end in zip(theirs, sizes, ends, strict=True)
    ]


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _settings_of(kept: Mapping[str, Any]) -> list[Any]:
    """Settings of each group of a recipe."""
    return [group["settings"] for group in kept["groups"]]


def _replay(scheduler: Any, steps: int) -> None:
    """Steps a fresh schedule to its place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its optimizer takes no steps here
        try:
            for _ in range(steps):
                scheduler.step()
        except ValueError as error:  # a cycle that is shorter than what was trained
            raise UserError(f"model.lr_scheduler: {error}; {steps} steps of it are done already") from error


# -------------------------------------------------------------------------------------------------------- on record


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a resolved configuration that decide the weights, as a checkpoint keeps them.

    Args:
        config: With `seed_everything`, `trainer`, `model` and `data`.
    """
    kept: dict[str, Any] = {"seed_everything": config.get("seed_everything")}
    length = LENGTH if _follows_length(config["model"].get("lr_scheduler")) else ()
    kept["trainer"] = {key: config["trainer"].get(key) for key in (*TRAINER, *length)}
    kept["model"] = {key: value for key, value in config["model"].items() if key not in WITHOUT_EFFECT["model"]}
    data = dict(config["data"])
    if isinstance(data.get("init_args"), Mapping):
        data["init_args"] = {k: v for k, v in data["init_args"].items() if k not in WITHOUT_EFFECT["data"]}
    return {**kept, "data": data}


def _follows_length(section: Any) -> bool:
    """Whether a configuration's schedule, which has been built, is an `amr.Schedule`."""
    path = section.get("class_path") if isinstance(section, Mapping) else section
    module, _, name = str(path).rpartition(".")
    return hasattr(getattr(sys.modules.get(module), name, None), "follow")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ, each as `key=value (was value)`, or `key added`, `key removed` for a whole section."""
    return list(_differences(before, now, ""))


def told(start: Mapping[str, Any]) -> str:
    """A resumed start for people.

    Args:
        start: With `epoch`, from 0, and `with`, the differences.
    """
    return f"resumed at epoch {start['epoch']} with {', '.join(start['with'])}"


def starts(checkpoint: Mapping[str, Any], now: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The starts with other settings that lie behind weights that are trained from a checkpoint on.

    Args:
        checkpoint: The checkpoint.
        now: This run's `settings_of`; None where they are not known.

    Returns:
        `epoch` and `step` at which training resumed, and `with`, the differences to before; oldest first.
    """
    facts = checkpoint["amr"]
    behind = facts.get("resumed") or []
    if not are_starts(behind):
        raise UserError("checkpoint: what it says of its starts is not whole; it was damaged, or is not amr's")
    before = facts.get("settings")
    if before is None and facts.get("model") and now is not None:  # of an earlier version
        before = {**now, "model": {k: v for k, v in facts["model"].items() if k not in WITHOUT_EFFECT["model"]}}
    if before is None or now is None or not (changed := differences(before, now)):
        return behind
    epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    return [*behind, {"epoch": epoch, "step": checkpoint["global_step"], "with": changed}]


def are_starts(value: object) -> TypeGuard[list[dict[str, Any]]]:
    """Whether a value from a file is a list of starts."""
    return isinstance(value, list) and all(
        isinstance(start, dict)
        and type(start.get("epoch")) is int
        and isinstance(start.get("with"), list)
        and all(isinstance(change, str) for change in start["with"])
        for start in value
    )


def _differences(before: Any, now: Any, key: str) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys((*before, *now)):
            yield from _differences(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
    elif before != now:
        if before is None and isinstance(now, Mapping):
            yield f"{key} added"
        elif now is None and isinstance(before, Mapping):
            yield f"{key} removed"
        else:
            yield f"{key}={_text(now)} (was {_text(before)})"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _plain(value: Any) -> Any:
    """Value in plain types that a checkpoint can hold; a value that cannot be compared becomes its type's name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return type(value).__name__


def _path(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _short(path: str | None, *both: str | None) -> str:
    """A class's name, with its module where the names of both are equal."""
    if path is None:
        return "null (a constant rate)"
    return (
        path
        if len({_last(other) for other in both if other}) < len([other for other in both if other])
        else _last(path)
    )
