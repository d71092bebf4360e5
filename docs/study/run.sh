#!/usr/bin/env bash
# The study, one grid after the other; each goes on where it was interrupted.
#   docs/study/run.sh               all of it but for CREMA-D: some four hours on one core
#   docs/study/run.sh dial          one part: tuning, methods, noise, ten, dial, shapley, synthetic, options, plain, synergistic, knob, hidden
#   docs/study/run.sh crema-d PATH  the main grid on CREMA-D, in a folder with AudioWAV and VideoFlash; wants a GPU
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1

grid() {  # data set, grid, data's configuration, seeds, further arguments
  local dataset=$1 grid=$2 data=$3 seeds=$4
  shift 4
  # shellcheck disable=SC2086  # seeds are several words
  amr benchmark --config "docs/study/$grid.yaml" --data "$data" --seeds $seeds --out "runs/study/$dataset" \
    --wandb disabled "$@"
  python docs/study/measure.py "$dataset" "$grid"
}

letters=docs/study/letters.yaml synthetic=docs/study/synthetic.yaml five="0 1 2 3 4"
noise=--data.init_args.audio.noise_snr_db
plain=(--data.init_args.audio.time_shift_ms=0 --data.init_args.video.augment=none --data.init_args.video.flip=false)
short=(--trainer.max_epochs=10 --model.lr_scheduler.init_args.T_max=10)
long=(--trainer.max_epochs=30 --model.lr_scheduler.init_args.T_max=30)
pair=(--only audio video naive naive+amr) few=(--only audio video naive naive+amr umt umt+amr)
synergistic=(--data.init_args.task=synergistic --data.init_args.classes=3 --data.init_args.clips=1600
  --data.init_args.audio_snr_db=10 --data.init_args.video_noise=10 --model.fusion.init_args.hidden=64)

part() {
  case $1 in
    tuning) grid letters tuning $letters "0 1 2" ;;
    methods) grid letters methods $letters "$five" ;;
    noise) grid letters-10db methods $letters "$five" $noise=-10 ;;
    ten)  # more seeds of the rows on which the answer rests
      grid letters methods $letters "$five 5 6 7 8 9" "${few[@]}"
      grid letters-10db methods $letters "$five 5 6 7 8 9" $noise=-10 "${few[@]}" ;;
    knob)
      for db in 5 0; do grid "letters-${db}db" methods $letters "$five" $noise=-$db "${pair[@]}"; done ;;
    dial)
      grid letters dial $letters "$five"
      grid letters-10db dial $letters "$five" $noise=-10 ;;
    shapley)
      grid letters shapley $letters "$five"
      grid letters-10db shapley $letters "$five" $noise=-10 ;;
    options) grid letters options $letters "$five" ;;
    plain)  # without augmentation
      grid letters-plain methods $letters "$five" "${plain[@]}"
      grid letters-plain dial $letters "$five" "${plain[@]}" ;;
    hidden) grid letters-hidden methods $letters "$five" --model.fusion.init_args.hidden=64 "${few[@]}" ;;
    synthetic)
      for task in redundant video_only audio_only; do
        grid "synthetic-$task" methods $synthetic "$five" "--data.init_args.task=$task" "${short[@]}"
      done ;;
    synergistic) grid synthetic-synergistic methods $synthetic "$five" "${synergistic[@]}" "${long[@]}" ;;
    crema-d)
      # shellcheck disable=SC2086
      amr benchmark --config docs/study/crema-d.yaml --data configs/data/crema-d.yaml --data.init_args.root "$2" \
        --seeds $five --out runs/study/crema-d --wandb disabled
      python docs/study/measure.py crema-d methods ;;
    *) echo "no part $1; see the first lines of $0" >&2; exit 2 ;;
  esac
}

if [ $# -gt 0 ]; then part "$@"; else
  for one in tuning methods noise ten dial synthetic options plain shapley synergistic knob hidden; do part $one; done
fi
python docs/study/report.py
