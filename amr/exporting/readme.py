"""How to use an exported model: the README of its folder."""

from collections.abc import Mapping
from typing import Any

FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
CARD = "card.md"


def readme(described: Mapping[str, Any]) -> str:
    """How to use what is in the folder; its code runs, in the folder, as it stands."""
    inputs = described["inputs"]
    rows = "\n".join(
        f"| `{name}` | {' x '.join(map(str, one['shape']))} | {', '.join(one['axes'])} | {one['dtype']} |"
        for name, one in inputs.items()
    )
    outputs = "\n".join(
        f"| `{name}` | {' x '.join(map(str, one['shape']))} |" for name, one in described["outputs"].items()
    )
    shapes = ", ".join(f'"{name}": {tuple(one["shape"][1:])}' for name, one in inputs.items())
    code = []
    if FILES["onnx"] in described["files"]:
        code.append(
            f"""```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{FILES["onnx"]}")
shapes = {{{shapes}}}
inputs = {{name: np.zeros((3, *shape), np.float32) for name, shape in shapes.items()}}  # three clips
outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs)))
print(outputs["probabilities"].argmax(1))
```"""
        )
    if FILES["torch"] in described["files"]:
        code.append(
            f"""```python
import torch

program = torch.export.load("{FILES["torch"]}").module()
shapes = {{{shapes}}}
outputs = program(**{{name: torch.zeros(3, *shape) for name, shape in shapes.items()}})
print(outputs["probabilities"].argmax(1))
```"""
        )
    card = (
        "\n[card.md](card.md): what the model was trained and tested on, and its limits.\n"
        if CARD in described["files"]
        else ""
    )
    blocks = "\n\n".join(code)
    models = ", ".join(f"`{file}`" for file in FILES.values() if file in described["files"])
    named = described["labels"] is not None
    classes = ", and the classes in the order of the outputs" if named else ""
    unnamed = "" if named else " The classes' names are not in it: neither a run's folder nor the data tell them."
    known = all(one["steps"] is not None for one in inputs.values())
    how = "How a file becomes an input, step by step" if known else "The inputs' sizes, not how they are made"
    return f"""# A model exported by amr {described["amr"]}

{models}: encoders and head in eval mode, of `{described["checkpoint"]}`.

| input | shape | axes | type |
|---|---|---|---|
{rows}

The batch may have any size. Every input must be there: clips that lack a modality need amr. {how}{classes}:
[preprocessing.json](preprocessing.json).{unnamed}

| output | shape |
|---|---|
{outputs}

{blocks}
{card}"""
