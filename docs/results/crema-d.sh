#!/usr/bin/env bash
# Every method and control on CREMA-D, with the authors' settings: for a machine with a GPU. Interrupted, it resumes.
#   docs/results/crema-d.sh PATH [ARGUMENTS]
# PATH has AudioWAV and VideoFlash. ARGUMENTS go to `amr benchmark`: --dry_run prints the plan, --only naive multi_loss takes two rows,
# --seeds 0 one seed, --data.init_args.split=ogm --data.init_args.ogm_split=FOLDER the split of the papers. The results are in
# runs/crema-d: table.md, report.html, results.parquet and tuning.json.
set -euo pipefail
if [ $# -lt 1 ] || [ ! -d "$1" ]; then
  echo "PATH=${1:-}: must be the folder with AudioWAV and VideoFlash; see the first lines of $0" >&2
  exit 2
fi
data=$(realpath "$1")
shift
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH" amr benchmark --config configs/benchmarks/crema-d.yaml --data configs/data/crema-d.yaml \
  --data.init_args.root="$data" --seeds 0 1 2 3 4 --out runs/crema-d --wandb disabled "$@"
