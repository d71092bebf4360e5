#!/usr/bin/env bash
# The GRID letters table: unimodal, naive and AMR, three seeds, clean and with the audio at -10 dB SNR.
# AMR's rate, 0.05, was picked from 0.02, 0.05 and 0.1 on the validation accuracy of the clean letters.
# One run takes one core for under 90 s; two go on at once. Interrupted, it goes on where it stopped.
#   docs/results/grid-letters/run.sh [RUNS_DIR]
set -euo pipefail
cd "$(dirname "$0")/../../.."
export RUNS=${1:-runs/grid-letters} OMP_NUM_THREADS=1 PATH="$PWD/.venv/bin:$PATH"

one() {
  read -r data name seed <<<"$1"
  case $name in
    audio | video) model=(--config "configs/model/small-$name.yaml" "--data.init_args.modalities=[$name]") ;;
    naive) model=(--config configs/model/small.yaml) ;;
    amr) model=(--config configs/model/small.yaml --config configs/methods/amr.yaml --model.amr.lr 0.05) ;;
  esac
  run=$RUNS/$data/$name-s$seed
  [ -e "$run/done" ] && return
  resume=()
  [ -e "$run/checkpoints/last.ckpt" ] && resume=(--ckpt_path last)
  start=$SECONDS
  amr fit --config "configs/data/$data.yaml" "${model[@]}" --config configs/trainer/small.yaml --seed_everything "$seed" \
    --runs_dir "$RUNS/$data" --name "$name-s$seed" --wandb disabled --data.init_args.num_workers 0 \
    --trainer.enable_progress_bar false "${resume[@]}" >"$run.log" 2>&1
  echo "fit: $((SECONDS - start)) s" >>"$run.log"
  amr test --ckpt_path "$run/checkpoints/best.ckpt" >>"$run.log" 2>&1
  touch "$run/done"
  echo "done: $run, $(grep '^fit: ' "$run.log")"
}
export -f one

for data in grid-letters grid-letters-noisy; do
  mkdir -p "$RUNS/$data"
  amr prepare --config "configs/data/$data.yaml"
done
for seed in 0 1 2; do
  for data in grid-letters grid-letters-noisy; do
    for name in audio video naive amr; do echo "$data $name $seed"; done
  done
done | xargs -P 2 -I{} bash -ec 'one "{}"'
for data in grid-letters grid-letters-noisy; do
  amr compare "$RUNS/$data" --out "docs/results/grid-letters/$data.html" | tee "docs/results/grid-letters/$data.md"
done
