#!/usr/bin/env bash
# The table of all methods on the clean GRID letters: about an hour on two cores. Interrupted, it goes on where it stopped.
#   docs/results/grid-letters/run.sh [DIR]
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:-runs/table1}
PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1 amr benchmark --config configs/benchmarks/table1.yaml \
  --data configs/data/grid-letters.yaml --data.init_args.num_workers 0 --seeds 0 1 2 --out "$out" --jobs 2 --wandb disabled
cp "$out"/{results.parquet,table.md,report.html,grid.json} docs/results/grid-letters/
