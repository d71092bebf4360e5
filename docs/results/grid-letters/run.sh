#!/usr/bin/env bash
# The table of all methods on the clean GRID letters. Interrupted, it resumes: every part can be run again.
#   docs/results/grid-letters/run.sh                  everything: the methods that come first, then the rest
#   docs/results/grid-letters/run.sh tuning [HALF]    three rates, three settings of each method, three rates of AMR
#   docs/results/grid-letters/run.sh main [HALF]      the grid of what was chosen, five seeds
#   docs/results/grid-letters/run.sh draw             what is above all controls again, with other seeds, and longer controls
#   docs/results/grid-letters/run.sh planted          every method, plain, on clips whose two modalities both tell the class
#   docs/results/grid-letters/run.sh report           the tables and the figure of the runs that there are
# HALF is `first` or `rest`; without it, both. RUNS, JOBS and MORE are environment variables: the folder of the runs, how many at once,
# further arguments of amr benchmark.
set -euo pipefail
cd "$(dirname "$0")/../../.."
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1
here=docs/results/grid-letters runs=${RUNS:-runs/grid-letters} jobs=${JOBS:-2}

pick() { python $here/pick.py "$@"; }

grid() {  # name, half, what is measured, seeds
  local name=$1 half=$2 measures=$3 names
  shift 3
  names=$(pick rows "$name" "$half")
  [ -n "$names" ] || return 0
  # shellcheck disable=SC2086  # rows and further arguments are several words
  amr benchmark --config $here/$name.yaml --data docs/study/letters.yaml --seeds "$@" --out "$runs/letters" --jobs "$jobs" \
    --wandb disabled --only $names ${MORE:-} || [ $? = 1 ]  # a cell that failed stops no other
  python docs/study/measure.py letters $name --runs "$runs" --results $here/results --measures "$measures"
}

tuning() {
  if [ "$1" = first ]; then grid rates first logged 0 1; fi
  pick tuning
  grid tuning "$1" logged 0
  pick amr
  grid amr "$1" logged 0
}

main() {
  pick main
  grid main "$1" clean 0 1 2 3 4
}

draw() {
  amr benchmark --config $here/draw.yaml --data docs/study/letters.yaml --seeds 10 11 12 13 14 --out "$runs/letters" \
    --jobs "$jobs" --wandb disabled || [ $? = 1 ]
  python docs/study/measure.py letters draw --runs "$runs" --results $here/results --measures clean
}

planted() {
  local names
  names=$(pick rows main plain)
  [ -n "$names" ] || return 0
  # shellcheck disable=SC2086  # rows are several words
  amr benchmark --config $here/main.yaml --data docs/study/synthetic.yaml --data.init_args.task=redundant \
    --data.init_args.audio_snr_db=-3 --data.init_args.video_noise=60 --trainer.max_epochs=10 --seeds 0 1 2 3 4 \
    --out "$runs/planted" --jobs "$jobs" --wandb disabled --only $names || [ $? = 1 ]
  python docs/study/measure.py planted main --runs "$runs" --results $here/results --measures clean
}

report() { python $here/tables.py; }

case ${1:-all} in
  tuning | main) for half in ${2:-first rest}; do $1 "$half"; done ;;
  draw | planted | report) $1 ;;
  all) for half in first rest; do tuning $half; main $half; done; draw; planted; report ;;
  *) echo "no part $1; see the first lines of $0" >&2; exit 2 ;;
esac
