#!/usr/bin/env bash
# The letters with the audio at -10 dB SNR: unimodal, naive and AMR, three seeds, with an earlier recipe (AdamW, 25 epochs).
# AMR's rate, 0.05, was picked from 0.02, 0.05 and 0.1 on the validation accuracy of the clean letters.
#   docs/results/grid-letters/noisy.sh [RUNS_DIR]
set -euo pipefail
cd "$(dirname "$0")/../../.."
export RUNS=${1:-runs/grid-letters-noisy} OMP_NUM_THREADS=1 PATH="$PWD/.venv/bin:$PATH"

one() {
  read -r name seed <<<"$1"
  case $name in
    audio | video) model=(--config "configs/model/small-$name.yaml" "--data.init_args.modalities=[$name]") ;;
    naive) model=(--config configs/model/small.yaml) ;;
    amr) model=(--config configs/model/small.yaml --config configs/methods/amr.yaml --model.amr.lr 0.05) ;;
  esac
  run=$RUNS/$name-s$seed
  [ -e "$run/done" ] && return
  resume=()
  [ -e "$run/checkpoints/last.ckpt" ] && resume=(--ckpt_path last)
  amr fit --config configs/data/grid-letters-noisy.yaml "${model[@]}" --seed_everything "$seed" \
    --model.optimizer torch.optim.AdamW --model.optimizer.lr 0.003 --model.optimizer.weight_decay 0.01 \
    --model.lr_scheduler torch.optim.lr_scheduler.CosineAnnealingLR --model.lr_scheduler.T_max 25 \
    --trainer.max_epochs 25 --trainer.accelerator cpu --trainer.enable_progress_bar false \
    --runs_dir "$RUNS" --name "$name-s$seed" --wandb disabled --data.init_args.num_workers 0 "${resume[@]}" >"$run.log" 2>&1
  amr test --ckpt_path "$run/checkpoints/best.ckpt" >>"$run.log" 2>&1
  touch "$run/done"
  echo "done: $run"
}
export -f one

mkdir -p "$RUNS"
amr prepare --config configs/data/grid-letters-noisy.yaml
for seed in 0 1 2; do for name in audio video naive amr; do echo "$name $seed"; done; done | xargs -P 2 -I{} bash -ec 'one "{}"'
amr compare "$RUNS" --out docs/results/grid-letters/grid-letters-noisy.html | tee docs/results/grid-letters/grid-letters-noisy.md
