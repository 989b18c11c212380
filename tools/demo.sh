#!/usr/bin/env bash
# The demo: make data, train, test, draw. Each step is skipped where its result is there already,
# and an interrupted training goes on from its last checkpoint. `make demo` runs it in the
# environment of this repository.
set -euo pipefail
cd "$(dirname "$0")/.."

seed=${SEED:-0}
config=configs/demo/retinanet_contnet-ti_fpn_demo.py
work_dir=work_dirs/retinanet_contnet-ti_fpn_demo_seed$seed

say() { printf '\n== %s\n' "$*"; }

mkdir -p "$work_dir"
# Two runs in one folder would overwrite each other's checkpoints, and a killed `make` may leave
# its training running.
if command -v flock >/dev/null; then
  exec 9>"$work_dir/lock"
  flock -n 9 || { say "another run is at work in $work_dir; waiting for it"; flock 9; }
fi

say '1/4 demo data: half a minute'
python tools/make_demo_data.py

say '2/4 training: about five minutes on 2 cores'
if [ -f "$work_dir/trained" ]; then
  echo "done before: $work_dir"
else
  mim train mmdet "$config" --work-dir "$work_dir" --resume --cfg-options randomness.seed="$seed"
  touch "$work_dir/trained"
fi
checkpoint=$work_dir/$(basename "$(cat "$work_dir/last_checkpoint")")

say '3/4 test on the held-out part: half a minute'
if [ -f "$work_dir/test.log" ]; then
  echo "done before: $work_dir/test.log"
else
  mim test mmdet "$config" --checkpoint "$checkpoint" --work-dir "$work_dir" >"$work_dir/test.log.part" 2>&1 ||
    { tail -n 30 "$work_dir/test.log.part" >&2; exit 1; }
  mv "$work_dir/test.log.part" "$work_dir/test.log"
fi

say '4/4 pictures: half a minute'
# The libraries warn about optional packages that nothing here needs.
if [ -f "$work_dir/detections.png" ]; then
  echo "done before: $work_dir/detections.png"
else
  python -W ignore tools/plot_training.py "$work_dir" --out "$work_dir/training.png" >/dev/null
  python -W ignore tools/draw_detections.py "$config" "$checkpoint" \
    --out "$work_dir/detections.part.png" >/dev/null
  mv "$work_dir/detections.part.png" "$work_dir/detections.png"
fi

say 'held-out part'
grep -E 'Average (Precision|Recall)' "$work_dir/test.log"
say 'results'
cat <<EOF
folder       $PWD/$work_dir (checkpoints and logs)
checkpoint   $PWD/$checkpoint
detections   $PWD/$work_dir/detections.png
training     $PWD/$work_dir/training.png
EOF
