#!/usr/bin/env bash
# Checks on a GPU, within ten minutes, that what a CPU cannot run is correct, and how fast it is:
# the attention kernels, of which it names the fastest, and the fused kernels.
#
#   bash tools/gpu_check.sh [WHEELS]
#
# Needs a checkout, torch, triton, torchvision and timm; nothing is downloaded. WHEELS is a folder
# with wheels of MMEngine, pytest and hypothesis and of what they need; what is there already is not
# replaced. Results go to $OUT, or work_dirs/gpu_check. Exits with 1 if a step fails.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wheels=${1:-}
export out=${OUT:-work_dirs/gpu_check} python=${PYTHON:-python3}
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
    import hypothesis, pytest, timm, torchvision, triton
    from contnet_mm.models import kernels
except ImportError as error:
    sys.exit(f'gpu_check: {error}; give a folder with its wheels: bash tools/gpu_check.sh WHEELS')
if not kernels.is_known_gpu(None):
    sys.exit(f'gpu_check: the kernels are for an H100, this is a {torch.cuda.get_device_name()}')
print(torch.cuda.get_device_name(), 'torch', torch.__version__, 'triton', triton.__version__)
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
benchmark() { # folder, arguments
    "$python" tools/benchmark.py --device cuda --dtypes bfloat16 --out-dir "$out/$1" "${@:2}" &&
        ! grep -s 'contnet-m-fused .*failed' "$out/$1/benchmark.md"
}
tests() { # folder of this process's compiled kernels, arguments
    TRITON_CACHE_DIR="$out/cache/$1" "$python" -m pytest -q tests/models/test_kernels.py "${@:2}"
}
export -f benchmark tests

# A step that runs into its limit keeps what it has done. Kernels are compiled in one process each,
# so the tests run in four beside each other.
step correct 120 bash -c '
    tests gpu -m gpu > "$out/gpu.log" 2>&1 & a=$!
    tests sizes -m "not slow and not gpu" -k "any_size" > "$out/sizes.log" 2>&1 & b=$!
    tests values -m "not slow and not gpu" -k "values" > "$out/values.log" 2>&1 & c=$!
    tests rest -m "not slow and not gpu" -k "not any_size and not values" > "$out/rest.log" 2>&1
    d=$?; wait $a; a=$?; wait $b; b=$?; wait $c; c=$?
    tail -n 3 "$out/gpu.log" "$out/sizes.log" "$out/values.log" "$out/rest.log"
    exit $((a | b | c | d))'
step ways 40 "$python" -m pytest -q -m gpu tests/models/test_gpu.py
step kernels 60 "$python" tools/benchmark_kernels.py --ms 20 --out-dir "$out"
step inference 135 bash -c 'benchmark inference --sizes 8x800x1333 --rounds 15 --quick \
    --passes inference --networks contnet-m-fused contnet-m plain-m resnet50 swin-t convnext-t'
step training 135 bash -c 'benchmark training --sizes 8x800x1333 --rounds 15 --quick \
    --passes training --networks contnet-m-fused plain-m resnet50'
step multiscale 75 bash -c 'benchmark multiscale --sizes multiscale --modes compiled \
    --passes training --networks contnet-m-fused'
exit "$failed"
