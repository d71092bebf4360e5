#!/usr/bin/env bash
# The study's second part: does any form of balance change decisions? Interrupted, it resumes: every part can be run again.
#   docs/study/decisions/run.sh            every part; docs/results/grid-letters/run.sh tuning first comes before it
#   docs/study/decisions/run.sh PART ...   trials, onto, letters, dial, ablation, ablation-draw, draw, noise, noise-draw,
#                                          dial-noise, colours, colours-draw, digits, digits-draw, digits-dial,
#                                          knob, planted (redundant, video_only, audio_only, synergistic),
#                                          redundant-draw, report
# RUNS and JOBS are environment variables: the folder of the runs, how many at once. `draw` and the parts that end in
# it train the rows of the answer again with other seeds.
set -euo pipefail
cd "$(dirname "$0")/../../.."
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1
here=docs/study/decisions runs=${RUNS:-runs/decisions} jobs=${JOBS:-2}
letters=docs/study/letters.yaml snr=--data.init_args.audio.noise_snr_db
five=(0 1 2 3 4) other=(10 11 12 13 14)
answer=(naive multi_loss dgl amr dgl.amr_encoder multi_loss.amr_encoder)
coloured=(naive amr amr_encoder amr_weak multi_loss multi_loss.amr_weak)
spoken=(naive multi_loss umt amr amr_encoder multi_loss.amr_weak)
others=(dgl tcmax g2d mcr)
few=(audio video naive multi_loss umt dgl amr amr_guard amr_encoder amr_weak dgl.amr_encoder multi_loss.amr_weak)

grid() {  # data set, grid, data's configuration, what is measured, seeds, then further arguments after --
  local dataset=$1 grid=$2 data=$3 measures=$4 seeds=()
  shift 4
  while [ $# -gt 0 ] && [ "$1" != -- ]; do seeds+=("$1"); shift; done
  [ $# -eq 0 ] || shift
  [ "$grid" != draw ] || cp $here/main.yaml $here/draw.yaml
  amr benchmark --config $here/$grid.yaml --data "$data" --seeds "${seeds[@]}" --out "$runs/$dataset" --jobs "$jobs" \
    --wandb disabled "$@" || [ $? = 1 ]  # a cell that failed stops no other
  python docs/study/measure.py "$dataset" $grid --runs "$runs" --results $here/results --measures "$measures"
}

planted() {  # task, grid, seeds
  local task=$1 grid=$2
  shift 2
  grid synthetic-$task "$grid" docs/study/synthetic.yaml all "$@" -- --data.init_args.task=$task \
    --trainer.max_epochs=10 --only "${spoken[@]}"
}

part() {
  case $1 in
    trials) python $here/choose.py trials; grid letters trials $letters logged 0 ;;
    onto) python $here/choose.py onto; grid letters onto $letters logged 0 ;;
    letters) python $here/choose.py main; grid letters main $letters all "${five[@]}" ;;
    noise) grid letters-10db main $letters all "${five[@]}" -- $snr=-10 --only "${spoken[@]}" "${others[@]}" ;;
    noise-draw) grid letters-10db draw $letters all "${other[@]}" -- $snr=-10 --only "${spoken[@]}" ;;
    dial)
      python $here/choose.py dial
      grid letters dial $letters all "${five[@]}" ;;
    ablation)
      python $here/choose.py ablation
      grid letters ablation $letters clean "${five[@]}" ;;
    ablation-draw)
      cp $here/ablation.yaml $here/ablation_draw.yaml
      grid letters ablation_draw $letters clean "${other[@]}" -- --only multi_loss form head zeros ;;
    dial-noise)
      python $here/choose.py dial
      grid letters-10db dial $letters all "${five[@]}" -- $snr=-10 ;;
    draw) grid letters draw $letters all "${other[@]}" -- --only "${answer[@]}" ;;
    colours) grid colours main docs/study/colours.yaml all "${five[@]}" -- --only "${few[@]}" ;;
    colours-draw) grid colours draw docs/study/colours.yaml all "${other[@]}" -- --only "${coloured[@]}" ;;
    digits-draw) grid digits draw docs/study/digits.yaml all "${other[@]}" -- --only "${spoken[@]}" ;;
    digits-dial)
      python $here/choose.py dial
      grid digits dial docs/study/digits.yaml all "${five[@]}" ;;
    digits) grid digits main docs/study/digits.yaml all "${five[@]}" -- --only "${few[@]}" ;;
    knob) for db in 5 0; do grid letters-${db}db main $letters all "${five[@]}" -- $snr=-$db --only "${spoken[@]}"; done ;;
    redundant|video_only|audio_only) planted $1 main "${five[@]}" ;;
    redundant-draw) planted redundant draw "${other[@]}" ;;
    synergistic)
      grid synthetic-synergistic main docs/study/synthetic.yaml all "${five[@]}" -- --data.init_args.task=synergistic \
        --data.init_args.classes=3 --data.init_args.clips=1600 --data.init_args.audio_snr_db=10 \
        --data.init_args.video_noise=10 --model.fusion.init_args.hidden=64 --trainer.max_epochs=30 \
        --only "${spoken[@]}" amr_guard amr_encoder_guard ;;
    planted) for task in redundant video_only audio_only synergistic; do part $task; done ;;
    report) python $here/tables.py ;;
    *) echo "no part $1; see the first lines of $0" >&2; exit 2 ;;
  esac
}

[ $# -gt 0 ] || set -- trials onto letters dial ablation ablation-draw draw noise noise-draw dial-noise colours \
  colours-draw digits digits-draw digits-dial knob planted redundant-draw report
for name in "$@"; do part "$name"; done
