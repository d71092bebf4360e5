#!/usr/bin/env bash
# The study, one grid after the other; each goes on where it was interrupted.
#   docs/study/run.sh          all of it
#   docs/study/run.sh dial     one part: tuning, methods, noise, dial, options, plain, synthetic, crema-d PATH
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1

grid() {  # dataset, grid, data's configuration, seeds, further arguments
  local dataset=$1 grid=$2 data=$3 seeds=$4
  shift 4
  # shellcheck disable=SC2086  # seeds are several words
  amr benchmark --config "docs/study/$grid.yaml" --data "$data" --seeds $seeds --out "runs/study/$dataset" \
    --wandb disabled "$@"
  python docs/study/measure.py "$dataset" "$grid"
}

letters=docs/study/letters.yaml synthetic=docs/study/synthetic.yaml core="naive naive+amr audio video"
seeds="0 1 2 3 4"
part() {
  case $1 in
    tuning) grid letters tuning $letters 0 ;;
    methods) grid letters methods $letters "$seeds" ;;
    noise)
      grid letters-10db methods $letters "$seeds" --data.init_args.audio.noise_snr_db=-10
      for snr in 0 5; do
        # shellcheck disable=SC2086
        grid "letters-${snr}db" methods $letters "0 1 2" "--data.init_args.audio.noise_snr_db=-$snr" --only $core
      done ;;
    dial) grid letters dial $letters "0 1 2" ;;
    plain) # without augmentation
      grid letters-plain dial $letters "0 1 2" --data.init_args.audio.time_shift_ms=0 \
        --data.init_args.video.augment=none --data.init_args.video.flip=false ;;
    options) grid letters options $letters "0 1 2" ;;
    synthetic)
      for task in redundant video_only audio_only synergistic; do
        grid "synthetic-$task" methods $synthetic "$seeds" "--data.init_args.task=$task"
      done ;;
    crema-d) grid crema-d crema-d configs/data/crema-d.yaml "$seeds" --data.init_args.root "$2" ;;
    *) echo "parts: tuning methods noise dial options plain synthetic crema-d" >&2; exit 2 ;;
  esac
}

if [ $# -gt 0 ]; then part "$@"; else for one in tuning methods noise dial options plain synthetic; do part $one; done; fi
python docs/study/report.py
