#!/usr/bin/env bash
# Settles on a GPU, in at most ten minutes, whether the fused kernels are right and how fast they
# are. Needs torch, triton, torchvision, timm and a checkout; nothing is downloaded.
#
#   bash tools/gpu_check.sh [WHEELS]
#
# WHEELS is a folder with wheels of MMEngine, pytest and hypothesis and of what they need, for a
# machine that lacks them. Results go to $OUT, or work_dirs/gpu_check. Exits with 1 if a step fails.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wheels=${1:-}
out=${OUT:-work_dirs/gpu_check}
python=${PYTHON:-python3}
mkdir -p "$out"

if [ -n "$wheels" ]; then
    [ -d "$wheels" ] || { echo "gpu_check: there is no folder '$wheels'" >&2; exit 2; }
    mapfile -t files < <(find "$wheels" -name '*.whl')
    [ ${#files[@]} -gt 0 ] || { echo "gpu_check: no wheels in '$wheels'" >&2; exit 2; }
    # What is there already, torch above all, stays as it is.
    "$python" -m pip install -q --no-index --no-deps "${files[@]}" || exit 2
fi
"$python" - <<'PYTHON' || exit 2
import sys
try:
    import hypothesis, mmengine, pytest, torch, triton
except ImportError as error:
    sys.exit(f'gpu_check: {error}; give a folder with its wheels: bash tools/gpu_check.sh WHEELS')
if not torch.cuda.is_available():
    sys.exit('gpu_check: torch sees no CUDA device')
print(torch.cuda.get_device_name(), 'torch', torch.__version__, 'triton', triton.__version__)
PYTHON

failed=0
step() { # name, seconds at most, command
    local name=$1 limit=$2
    shift 2
    echo "== $name (at most $limit s)"
    timeout -s INT -k 10 "$limit" "$@" 2>&1 | tee "$out/$name.log"
    local status=${PIPESTATUS[0]}
    [ "$status" -eq 0 ] || { echo "== $name failed: exit status $status"; failed=1; }
}
benchmark() { # folder, arguments
    "$python" tools/benchmark.py --device cuda --dtypes bfloat16 --out-dir "$out/$1" "${@:2}"
}
export -f benchmark
export python out

# A benchmark that runs into its limit keeps what it has done.
step correct 150 "$python" -m pytest -q tests/test_kernels.py -k 'not compile_for_an_h100'
step kernels 60 "$python" tools/benchmark_kernels.py --ms 20 --out-dir "$out"
step networks 270 bash -c 'benchmark networks --sizes 8x800x1333 --rounds 15 \
    --networks contnet-m-fused contnet-m plain-m resnet50 swin-t convnext-t'
step multiscale 100 bash -c 'benchmark multiscale --sizes multiscale --passes training \
    --networks contnet-m-fused resnet50'
exit "$failed"
