#!/usr/bin/env bash
# Everything that wants a GPU: build, tests, benchmarks, a training run. From the project's root:
#
#     bench/gpu.sh FOLDER [PART...]
#
# PART, all by default, in this order: build, test, triton, ac1, ac2, momentum, bfloat16, table, step, compiled, graphs,
# images, epoch, train, kernels, sharding, loader, augment, recording.
#   build     the CUDA backend, for the GPU's architecture or FASTAC_ARCHS (as CMAKE_CUDA_ARCHITECTURES)
#   test      pytest -m gpu                  triton    the Triton backend beside the reference, compiled
#   ac1, ac2, momentum, bfloat16             bench/loss.py: a form, a momentum buffer, α in bfloat16
#   table     bench/table.py                 kernels   bench/kernels.py: the kernels of a step, by name
#   step      bench/train.py --check: ResNet-50 and WRN-40-2, AutoCleansing beside cross entropy
#   compiled  the same with torch.compile   graphs    the same with CUDA graphs of the network
#   images    bench/train.py on image files: those of IMAGES (a folder with train/CLASS/), else invented ones
#   epoch     bench/epoch.py --check: an epoch of CIFAR's recipes, one run and several side by side
#   sharding  bench/sharding.py on all GPUs, with DeepSpeed where it is installed
#   loader    bench/loader.py                augment   bench/augment.py, the augmentation policies
#   recording bench/recording.py: what AUM costs, ours and the package aum's, which must be installed
#   train     the demo recipe with cross entropy and AC1, the epochs' images a second in its log
# A part takes 1 to 6 minutes, all about 45, and is stopped after its limit. One that fails doesn't stop the others; the
# exit status is 1 if one did. For a GPU that is lent for ten minutes at a time, by what they tell:
#     build test triton kernels        build ac1 table graphs        build step epoch train recording
# FOLDER gets the records (JSON), plots and one log a part. ARCHIVE=FILE.tgz: all of it, checkpoints left out, in one file
# too. LOSS_SIZES ("256x1000 ...") limits the sizes of bench/loss.py. PYTHON names the interpreter (default python3), which
# has torch with CUDA, triton, pytest, hypothesis, pandas, matplotlib, scikit-learn, tomli_w and tqdm; with pytest-xdist the
# tests run side by side.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
known="build test triton ac1 ac2 momentum bfloat16 table step compiled graphs images epoch train kernels sharding"
known="$known loader augment recording"
[ $# -ge 1 ] || { sed -n '2,28s/^# \{0,1\}//p' "$0"; exit 2; }
folder=$1
shift
parts=${*:-$known}
for name in $parts; do
    [[ " $known " == *" $name "* ]] || { echo "no part is called $name; there are: $known" >&2; exit 2; }
done
mkdir -p "$folder" && out=$(cd "$folder" && pwd) || exit 2
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
failed=()

part() { # NAME LIMIT_SECONDS COMMAND...
    local name=$1 limit=$2 began=$SECONDS status
    shift 2
    timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    [ $status -eq 0 ] || failed+=("$name")
    echo "=== $name: $((SECONDS - began)) s, $([ $status -eq 0 ] && echo done || echo "FAILED ($status)")"
    tail -n 80 "$out/$name.log"
}

loss() { # NAME OPTIONS...
    local name=$1
    shift
    part "loss-$name" 420 "$PYTHON" bench/loss.py --device cuda ${LOSS_SIZES:+--sizes $LOSS_SIZES} \
        --out "$out" --name "loss-cuda-$name" "$@"
}

step() { # NAME OPTIONS...
    local name=$1
    shift
    part "$name" 480 "$PYTHON" bench/train.py --device cuda --out "$out" --name "train-cuda-$name" "$@"
}

invent_images() { # 0.8 GB of JPEGs with ImageNet's sizes, in a folder that ends with this script
    IMAGES=$(mktemp -d) && trap 'rm -rf "$IMAGES"' EXIT
    "$PYTHON" -m fastac.data.synthetic "$IMAGES" --classes 1000 --images 8000 --val-images 0 \
        >"$out/invent.log" 2>&1 || { tail -n 20 "$out/invent.log"; return 1; }
}

"$PYTHON" - <<'PY' || exit 2
import importlib.util
import sys
names = {"tomli_w": "tomli-w", "sklearn": "scikit-learn"}
modules = ("torch", "triton", "pytest", "hypothesis", "pandas", "matplotlib", "sklearn", "tomli_w", "tqdm")
missing = [names.get(name, name) for name in modules if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"packages are missing: {sys.executable} -m pip install {' '.join(missing)}")
PY
"$PYTHON" - <<'PY' || exit 2
import torch
assert torch.cuda.is_available(), "no CUDA device"
p = torch.cuda.get_device_properties(0)
print(f"{p.name}, sm_{p.major}{p.minor}, {p.multi_processor_count} processors, {p.total_memory >> 30} GiB,", end=" ")
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
PY
arch=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
jobs=()
"$PYTHON" -c 'import xdist' 2>/dev/null && jobs=(-n 6)

for name in $parts; do
    case $name in
    build)
        # auto: what keeps the CPU's backend from building doesn't keep the GPU's.
        FASTAC_NATIVE=auto FASTAC_CUDA=1 FASTAC_CUDA_ARCHITECTURES=${FASTAC_ARCHS:-$arch} \
            part build 420 "$PYTHON" setup.py build_ext --inplace
        ;;
    test) part test 300 "$PYTHON" -m pytest -q "${jobs[@]}" -m gpu tests ;;
    triton) part triton 400 "$PYTHON" -m pytest -q "${jobs[@]}" tests/test_triton_backend.py ;;
    ac1 | ac2) loss "$name" --forms "$name" ;;
    momentum) loss momentum --forms ac1 --momentum 0.9 ;;
    bfloat16) loss bfloat16 --forms ac1 --table-dtype bfloat16 ;;
    table) part table 120 "$PYTHON" bench/table.py --device cuda --out "$out" ;;
    step) step step --check ;;
    compiled) step compiled --check --torchcompile --rounds 16 ;; # two networks and ten losses are compiled first
    graphs) step graphs --check --cuda-graphs ;;
    images)
        kind="--loader dali"
        "$PYTHON" -c 'import nvidia.dali' 2>/dev/null || kind="--loader torch"
        if [ -n "${IMAGES:-}" ] || invent_images; then
            step images --models resnet50 --rounds 6 --loader-steps 24 --data-dir "$IMAGES" $kind --workers "$(nproc)"
        else
            failed+=(images)
        fi
        ;;
    epoch) part epoch 360 "$PYTHON" bench/epoch.py --device cuda --check --jobs 1 2 4 --out "$out" ;;
    loader) part loader 360 "$PYTHON" bench/loader.py --device cuda --out "$out" ;;
    train)
        for loss in ce ac1; do
            part "train-$loss" 120 "$PYTHON" -m fastac.train --recipe demo --loss "$loss" --device cuda \
                --output "$out" --name "demo-$loss"
        done
        ;;
    sharding)
        zero=--zero
        "$PYTHON" -c 'import deepspeed' 2>/dev/null || zero=--no-zero
        part sharding 400 "$PYTHON" bench/sharding.py --device cuda "$zero" --out "$out"
        ;;
    recording) part recording 180 "$PYTHON" bench/recording.py --device cuda --out "$out" ;;
    augment) part augment 120 "$PYTHON" bench/augment.py --device cuda --out "$out" ;;
    kernels) part kernels 120 "$PYTHON" bench/kernels.py --device cuda --out "$out" ;;
    esac
done
if [ -n "${ARCHIVE:-}" ]; then
    tar czf "$ARCHIVE" --exclude=checkpoints --exclude='*.pt' -C "$out" . || failed+=(archive)
fi
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
