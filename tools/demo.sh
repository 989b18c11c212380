#!/usr/bin/env bash
# The demo: make data, train, test, draw and compare with what is expected; for RetinaNet, or for
# the configs of configs/demo that are named on the command line, or with `all` for each of them.
# What is finished is not done again, and an interrupted training goes on. `make demo` and
# `make demo-all` run it in the environment of this repository.
set -euo pipefail
cd "$(dirname "$0")/.."

names=("${@:-retinanet_contnet-ti_fpn_demo}")
if [ "${names[*]}" = all ]; then
  names=('*')
else
  for name in "${names[@]}"; do
    [ -f "configs/demo/$name.py" ] || { echo "demo: there is no configs/demo/$name.py" >&2; exit 2; }
  done
fi
python tools/make_demo_data.py
status=0
python tools/reproduce.py demo --models "${names[@]}" --run --seeds "${SEED:-0}" \
  --skip check baseline || status=$?  # the set-up has proven the environment, and the data are new
for name in "${names[@]}"; do
  for folder in work_dirs/reproduce/${name}_seed"${SEED:-0}"_*; do  # `*` stands for all of them
    grep -qs '"test"' "$folder/state.json" && [ ! -f "$folder/predictions.png" ] || continue
    row=$(basename "$folder")
    python tools/plot_training.py "$folder/train" --out "$folder/training.png"
    python tools/draw_predictions.py "configs/demo/${row%_seed*}.py" \
      "$(cat "$folder/train/last_checkpoint")" --out "$folder/predictions.png"
  done
done
exit "$status"
