#!/usr/bin/env bash
# Checks on a GPU, within ten minutes, that the network is correct there, and how fast it is.
#
#   bash tools/gpu_check.sh [WHEELS]
#
# Needs a checkout, torch, torchvision and timm; nothing is downloaded. WHEELS is a folder with
# wheels of MMEngine and pytest and of what they need; what is there already is not replaced.
# Results go to $OUT, or work_dirs/gpu_check. Exits with 1 if a step fails.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wheels=${1:-}
out=${OUT:-work_dirs/gpu_check} python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}  # nothing has to be installed
mkdir -p "$out"

if [ -n "$wheels" ]; then
    [ -d "$wheels" ] || { echo "gpu_check: there is no folder '$wheels'" >&2; exit 2; }
    mapfile -t files < <("$python" - "$wheels" <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
for file in sorted(Path(sys.argv[1]).glob('*.whl')):
    try:
        version(file.name.split('-')[0])
    except PackageNotFoundError:
        print(file)
PYTHON
    )
    if [ ${#files[@]} -gt 0 ]; then
        "$python" -m pip install -q --no-index --no-deps "${files[@]}" || exit 2
    fi
fi
"$python" - <<'PYTHON' || exit 2
import sys
try:
    import torch
    if not torch.cuda.is_available():
        sys.exit('gpu_check: torch sees no CUDA device')
    import mmengine, pytest, timm, torchvision
except ImportError as error:
    sys.exit(f'gpu_check: {error}; give a folder with its wheels: bash tools/gpu_check.sh WHEELS')
print(torch.cuda.get_device_name(), 'torch', torch.__version__)
PYTHON

failed=0
step() { # name, seconds at most, command; what runs into the end of ten minutes is cut
    local name=$1 limit=$2 left=$((575 - SECONDS))
    shift 2
    [ "$left" -lt "$limit" ] && limit=$left
    [ "$limit" -gt 5 ] || { echo "== $name: no time left"; failed=1; return; }
    echo "== $name (at most $limit s)"
    timeout -s INT -k 5 "$limit" "$@" 2>&1 | tee "$out/$name.log"
    local status=${PIPESTATUS[0]}
    [ "$status" -eq 0 ] || { echo "== $name failed: exit status $status"; failed=1; }
}
# A step that runs into its limit keeps what it has done.
step correct 120 "$python" -m pytest -q -m gpu tests/models/test_gpu.py
for name in inference training; do
    step "$name" 225 "$python" tools/benchmark.py --device cuda --dtypes bfloat16 --quick \
        --sizes 8x800x1333 --passes "$name" --out-dir "$out/$name"
    grep -s 'contnet-m .*failed' "$out/$name/benchmark.md" && failed=1
done
exit "$failed"
