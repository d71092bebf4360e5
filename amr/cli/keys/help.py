"""The help of `fit` and its like, printed from the schema: our keys first, the Trainer's at the end."""

import textwrap
from collections.abc import Iterator, Mapping

from amr.cli.keys.schema import Built, Key, Schema, read

WIDTH = 110
_COLUMN = 38
_RUN = ("name", "runs_dir", "seed_everything", "ckpt_path", "wandb", "project", "out")
_MODEL = ("encoders", "fusion", "optimizer", "lr_scheduler")
TEXTS = {
    "fit": "Train a model. Its run goes to runs/<name>.",
    "validate": "Measure a run or a checkpoint on the validation split.",
    "test": "Measure a run or a checkpoint on the test split.",
    "predict": "Write a run's or a checkpoint's predictions and shares to a parquet file.",
}


def text(command: str, topic: str | None = None) -> str:
    """Text of `amr COMMAND --help`.

    Args:
        command: fit, validate, test or predict.
        topic: `all` for the Trainer's keys too, or the name of a class of amr for its keys alone; None for the rest.
    """
    schema = read()
    if topic not in (None, "all"):
        assert topic is not None
        return "\n".join(_class_help(schema, topic))
    lines = [
        f"usage: amr {command} [RUN] [--config NAME or FILE]... [--KEY VALUE]...",
        "",
        TEXTS[command],
        "Configurations add up: data, model, trainer, method; the later one wins, and keys given here win over all.",
        "`amr configs` lists those that come with amr: `--config resnet18`. A class's keys: `--help NAME`.",
    ]
    keys = schema["keys"]
    lines += _section("The run", {k: keys[k] for k in _RUN})
    lines += ["", "Data: --data CLASS, and its keys as --data.KEY"]
    for path in keys["data"].get("classes", []):
        lines += _class_line(schema, path)
    model = {k: v for k, v in keys.items() if k.startswith("model.")}
    methods = {k: v for k, v in model.items() if _is_method(v)}
    lines += _section("Model", {k: v for k, v in model.items() if k not in methods})
    for slot in ("model.encoders", "model.fusion"):
        names = [path.rpartition(".")[2] for path in keys[slot].get("classes", [])]
        lines += _wrapped(f"  {slot.partition('.')[2]} of amr: {', '.join(names)}", 4)
    lines += ["", "Methods: --config NAME, or the keys as --model.NAME.KEY; --model.NAME null removes one"]
    for name, key in methods.items():
        (path,) = [p for p in key["classes"] if _short(p) == key["type"].split()[0]]
        lines += _wrapped(f"  {name.removeprefix('model.'):<20}{schema['classes'][path]['help']}", 22)
        lines += _wrapped(f"{'':22}{', '.join(schema['classes'][path]['keys']) or 'no keys'}", 24)
    for group, title in (
        ("best", "The best checkpoint"),
        ("last", "The last checkpoint"),
        ("dominance", "Shares that are logged"),
        ("robustness", "What is lost when a modality is"),
    ):
        lines += _section(title, {k: v for k, v in keys.items() if k.startswith(f"{group}.")})
    trainer = {k: v for k, v in keys.items() if k.startswith("trainer.")}
    if topic == "all":
        lines += _section("Lightning's Trainer", trainer)
    else:
        names = [name.removeprefix("trainer.") for name in trainer]
        lines += ["", "Lightning's Trainer: --trainer.KEY; `--help all` explains them"]
        lines += _wrapped(f"  {', '.join(names)}", 2)
    return "\n".join(lines)


def _is_method(key: Key) -> bool:
    classes = key.get("classes", [])
    return bool(classes) and not key.get("foreign") and all(p.startswith("amr.regularizers.") for p in classes)


def _section(title: str, keys: Mapping[str, Key]) -> list[str]:
    return ["", title, *(line for name, key in keys.items() for line in _key_lines(name, key))]


def _key_lines(name: str, key: Key) -> Iterator[str]:
    head = f"  --{name} {_type(key['type'])}"
    default = f" ({key['default']})" if key.get("default") not in (None, "null") else ""
    body = _first_sentences(key["help"]) + default
    if len(head) >= _COLUMN - 1:
        yield head
        head = ""
    yield from textwrap.wrap(
        body, WIDTH, initial_indent=f"{head:<{_COLUMN}}", subsequent_indent=" " * _COLUMN, break_on_hyphens=False
    ) or [head]


def _type(name: str) -> str:
    """A type, short enough for a column."""
    if name.startswith("Callable"):
        return "CLASS"
    return name.replace(" | null", "") if len(name) <= 40 else name.split("[")[0].split(" |")[0].upper()


def _first_sentences(text: str, most: int = 220) -> str:
    """The beginning of a text, whole sentences of it where there is one."""
    if len(text) <= most:
        return text
    end = text.rfind(". ", 0, most)
    return text[: end + 1] if end > 0 else textwrap.shorten(text, most, placeholder=" ...")


def _class_line(schema: Schema, path: str) -> list[str]:
    built = schema["classes"][path]
    return [
        *_wrapped(f"  {path:<34}{built['help']}", 36),
        *_wrapped(f"{'':36}{', '.join(_groups(built))}", 36),
    ]


def _groups(built: Built) -> list[str]:
    """A class's keys, those of a group as one."""
    names = dict.fromkeys(f"{k.split('.')[0]}.*" if "." in k else k for k in built["keys"])
    return list(names)


def _class_help(schema: Schema, topic: str) -> list[str]:
    from amr.utils.errors import UserError
    from amr.utils.names.configs import did_you_mean

    paths = {_short(path).lower(): path for path in schema["classes"]}
    path = topic if topic in schema["classes"] else paths.get(topic.rpartition(".")[2].lower())
    if path is None:
        known = ", ".join(_short(p) for p in schema["classes"])
        hint = did_you_mean(topic.lower(), paths)
        raise UserError(f"--help {topic}: no such class{hint}; must be all, or one of {known}")
    return [path, "", *_wrapped(schema["classes"][path]["help"], 0), *_section("Keys", schema["classes"][path]["keys"])]


def _short(path: str) -> str:
    return path.rpartition(".")[2]


def _wrapped(line: str, indent: int) -> list[str]:
    lead = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(
        line.strip(),
        WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * indent,
        drop_whitespace=True,
        break_on_hyphens=False,
    )
