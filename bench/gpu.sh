#!/usr/bin/env bash
# Everything that wants a GPU, in one call: build, tests, benchmarks, a training run. From the project's root:
#
#     bench/gpu.sh FOLDER [build test loss table train profile]
#
# FOLDER gets the records (JSON), plots and one log a part; the parts named after it are done, all by default. A part
# that fails doesn't stop the others; the exit status is 1 if one did. PYTHON names the interpreter (default python3),
# which has torch with CUDA, triton, pytest, hypothesis, pandas and matplotlib. FASTAC_ARCHS limits the architectures
# that are compiled for, as CMAKE_CUDA_ARCHITECTURES would (default: that of the GPU).
set -uo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
shift
parts=${*:-build test loss table train profile}
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
failed=()

part() { # NAME LIMIT_SECONDS COMMAND...
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1
    local status=$?
    [ $status -eq 0 ] || failed+=("$name")
    printf '%-28s %5ds  %s\n' "$name" $((SECONDS - began)) "$([ $status -eq 0 ] && echo done || echo "FAILED ($status)")"
}

"$PYTHON" - <<'PY' || exit 2
import torch
assert torch.cuda.is_available(), "no CUDA device"
p = torch.cuda.get_device_properties(0)
print(f"{p.name}, sm_{p.major}{p.minor}, {p.multi_processor_count} processors, {p.total_memory >> 30} GiB,", end=" ")
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
PY
arch=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')

for name in $parts; do
    case $name in
    build)
        FASTAC_NATIVE=1 FASTAC_CUDA=1 FASTAC_CUDA_ARCHITECTURES=${FASTAC_ARCHS:-$arch} \
            part build 420 "$PYTHON" setup.py build_ext --inplace
        ;;
    test)
        part test-gpu 300 "$PYTHON" -m pytest -q -m gpu tests
        part test-triton 300 "$PYTHON" -m pytest -q tests/test_triton_backend.py
        ;;
    loss)
        part loss 240 "$PYTHON" bench/loss.py --device cuda --out "$out" --name loss-cuda
        part loss-momentum 120 "$PYTHON" bench/loss.py --device cuda --momentum 0.9 --out "$out" --name loss-cuda-momentum
        part loss-bfloat16 120 "$PYTHON" bench/loss.py --device cuda --table-dtype bfloat16 --forms ac1 \
            --out "$out" --name loss-cuda-bfloat16
        ;;
    table) part table 120 "$PYTHON" bench/table.py --device cuda --out "$out" ;;
    train) part train 180 "$PYTHON" -m fastac.demo --device cuda --out "$out/demo" ;;
    profile) part profile 120 "$PYTHON" bench/profile.py --out "$out" ;;
    *) echo "no part is called $name" >&2; exit 2 ;;
    esac
done
for name in test-gpu test-triton; do
    [ -f "$out/$name.log" ] && echo "$name: $(tail -n 1 "$out/$name.log")"
done
for name in loss loss-momentum loss-bfloat16 table; do
    [ -f "$out/$name.log" ] && cat "$out/$name.log"
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
