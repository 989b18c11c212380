#!/usr/bin/env bash
# The demo: make data, train, test, draw; for RetinaNet, or for the configs of configs/demo that are
# named on the command line, or with `all` for each of them. Each step is skipped where its result
# is there already, and an interrupted training goes on from its last checkpoint. `make demo` and
# `make demo-all` run it in the environment of this repository.
set -euo pipefail
cd "$(dirname "$0")/.."

seed=${SEED:-0}
names=("${@:-retinanet_contnet-ti_fpn_demo}")
if [ "${names[*]}" = all ]; then
  names=()
  for config in configs/demo/*.py; do names+=("$(basename "$config" .py)"); done
fi

# Names a step, and notes how long the one before it took.
step='' times=''
say() {
  [ -z "$step" ] || times+=$(printf '%5d s  %s' $((SECONDS - begun)) "${step%%,*}")$'\n'
  step=$1 begun=$SECONDS
  printf '\n== %s\n' "$1"
}

# Runs a command with its output in a file, which gets its name when the command succeeds.
logged() {
  local log=$1
  shift
  "$@" >"$log.part" 2>&1 || { tail -n 30 "$log.part" >&2; exit 1; }
  mv "$log.part" "$log"
}

# Least value of a metric that shows that something was learned; seeds differ by far less.
check_floor() {
  local metric floor value
  case $1 in
    contnet*) metric=accuracy/top1 floor=75 ;;
    pspnet*) metric=mIoU floor=20 ;;
    *-cityscapes) metric=cityscapes/mAP floor=0.1 ;;
    mask-rcnn*) metric=coco/segm_mAP floor=0.3 ;;
    *) metric=coco/bbox_mAP floor=0.3 ;;
  esac
  value=$(grep -E '(Epoch|Iter)\(test\) .*: ' "$2" | sed -n "s#.* $metric: *\\([0-9.]*\\).*#\\1#p" | tail -n 1)
  awk -v value="$value" -v floor="$floor" 'BEGIN { exit !(value + 0 >= floor) }' || {
    echo "demo: $1 reached $metric $value, less than $floor: it has not learned" >&2
    failed=1
  }
}

run() {
  local name=$1 config=configs/demo/$1.py work_dir=work_dirs/$1_seed$seed
  local library=mmdet
  case $name in
    pspnet*) library=mmseg ;;
    contnet*) library=mmpretrain ;;
  esac

  mkdir -p "$work_dir"
  # Two runs in one folder would overwrite each other's checkpoints, and a killed `make` may leave
  # its training running.
  if command -v flock >/dev/null; then
    exec 9>"$work_dir/lock"
    flock -n 9 || { say "another run is at work in $work_dir; waiting for it"; flock 9; }
  fi

  # Results of a config that has changed since would pass for those of the present one.
  local version
  version=$(cat "$config" configs/_base_/*/demo_* | cksum)
  if [ "$(cat "$work_dir/version" 2>/dev/null || echo "$version")" != "$version" ]; then
    echo "demo: $work_dir is of another version of $config; remove it to train anew" >&2
    exit 1
  fi
  echo "$version" >"$work_dir/version"

  say "$name: training, some minutes on 2 cores"
  if [ -f "$work_dir/trained" ]; then
    echo "done before: $work_dir"
  else
    local begin=$SECONDS
    mim train $library "$config" --work-dir "$work_dir" --resume --cfg-options randomness.seed="$seed"
    echo "$((SECONDS - begin)) s in the last go" >"$work_dir/trained"
  fi
  local checkpoint
  checkpoint=$work_dir/$(basename "$(cat "$work_dir/last_checkpoint")")

  say "$name: test on the held-out part, half a minute"
  if [ -f "$work_dir/test.log" ]; then
    echo "done before: $work_dir/test.log"
  else
    logged "$work_dir/test.log" \
      mim test $library "$config" --checkpoint "$checkpoint" --work-dir "$work_dir"
  fi

  say "$name: pictures, half a minute"
  # The libraries warn about optional packages that nothing here needs.
  if [ -f "$work_dir/predictions.png" ]; then
    echo "done before: $work_dir/predictions.png"
  else
    python -W ignore tools/plot_training.py "$work_dir" --out "$work_dir/training.png" >/dev/null
    python -W ignore tools/draw_predictions.py "$config" "$checkpoint" \
      --out "$work_dir/predictions.png" >/dev/null
  fi
}

for name in "${names[@]}"; do
  [ -f "configs/demo/$name.py" ] || { echo "demo: there is no configs/demo/$name.py" >&2; exit 2; }
done
say 'demo data, half a minute'
python tools/make_demo_data.py
for name in "${names[@]}"; do run "$name"; done

failed=0
for name in "${names[@]}"; do
  work_dir=work_dirs/${name}_seed$seed
  say "$name on the held-out part, trained in $(cat "$work_dir/trained")"
  grep -E 'Average (Precision|Recall)' "$work_dir/test.log" || true
  # The line that all libraries write last: every metric by its name.
  grep -E '(Epoch|Iter)\(test\) .*: ' "$work_dir/test.log" | tail -n 1 | sed 's/.*(test) *\[[^]]*\] *//'
  check_floor "$name" "$work_dir/test.log"
  cat <<EOT
folder       $PWD/$work_dir (checkpoints and logs)
checkpoint   $PWD/$work_dir/$(basename "$(cat "$work_dir/last_checkpoint")")
predictions  $PWD/$work_dir/predictions.png
training     $PWD/$work_dir/training.png
EOT
done
say 'how long each step took'
printf '%s' "$times"
exit $failed
