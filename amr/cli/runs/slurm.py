"""SLURM: starts a job again that was asked to end."""

import os
import subprocess
import sys


def requeue() -> None:
    """Asks SLURM to start this job's script again; does nothing elsewhere, or in an interactive session."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):  # as Lightning tells them apart
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)  # noqa: S603, S607
        problem = (answer.stderr.strip() or f"status {answer.returncode}") if answer.returncode else ""
    except OSError as error:
        problem = str(error)
    print(f"amr: job {job} {f'could not be requeued: {problem}' if problem else 'requeued'}", file=sys.stderr)
