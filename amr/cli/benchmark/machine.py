"""The machine that a grid runs on."""

import os
import platform
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any


@cache
def machine() -> dict[str, Any]:
    """CPU model, cores that may be used, and GPUs."""
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"^model name\s*:\s*(.+)$", info.read_text() if info.is_file() else "", re.MULTILINE)
    gpus: list[str] = []
    if tool := shutil.which("nvidia-smi"):  # asking torch would take memory of the GPU
        command = [tool, "--query-gpu=name", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        gpus = answer.stdout.splitlines() if answer.returncode == 0 else []
    return {"cpu": cpu[1] if cpu else platform.processor(), "cores": cores(), "gpus": gpus}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
