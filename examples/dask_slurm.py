"""Dask workers as SLURM jobs for `amr prepare --scheduler FILE`; ends them when it is stopped (Ctrl-C).

    python examples/dask_slurm.py --jobs 8 --cores 16 --memory 32GB --walltime 04:00:00 --file scheduler.json

Run it where `sbatch` works and stays allowed to run: a login node in tmux, or a small job of its own. `--dry-run`
prints the job's script and submits nothing.
"""

import argparse
import json
import signal
from pathlib import Path

from dask_jobqueue import SLURMCluster


def main() -> None:
    """Submits the jobs and waits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cores", type=int, default=16, help="a job's, each with a worker process of its own")
    parser.add_argument("--memory", default="32GB", help="a job's")
    parser.add_argument("--walltime", default="04:00:00")
    parser.add_argument("--partition", help="SLURM's queue")
    parser.add_argument("--interface", help="network interface that the nodes share, such as ib0")
    parser.add_argument("--file", type=Path, default=Path("scheduler.json"), help="what --scheduler is given")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    with SLURMCluster(
        cores=options.cores,
        processes=options.cores,  # one thread each: a decoder that crashes takes one shard with it
        memory=options.memory,
        walltime=options.walltime,
        queue=options.partition,
        interface=options.interface,
        scheduler_options={"dashboard_address": None},
    ) as cluster:
        if options.dry_run:
            print(cluster.job_script())
            return
        cluster.scale(jobs=options.jobs)
        options.file.write_text(json.dumps({"address": cluster.scheduler_address}))
        print(f"amr prepare ... --scheduler {options.file}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
        options.file.unlink()


if __name__ == "__main__":
    main()
