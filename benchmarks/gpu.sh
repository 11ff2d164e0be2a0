#!/usr/bin/env bash
# Everything that needs a GPU, in one run of less than nine minutes: build, check every kernel, time everything.
#
#   OUT=DIR bash benchmarks/gpu.sh
#
# Writes DIR/<device>.json (default: benchmarks/results) race by race, DIR/training/ and DIR/gpu.log. No network: it uses the Python
# named by PYTHON (default python3) with torch, triton, pytest, pytest-benchmark, hypothesis and rich, and nvcc if there
# is one. A stage that fails or runs out of time is reported at the end, and the next one starts.
#
# DEVICE=cpu BENCH=--short runs the same stages without a GPU, to test this script: --short keeps the fewest cases. LIMIT
# is the seconds of the whole.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
BENCH=${BENCH:-}
LIMIT=${LIMIT:-530}
OUT=$(realpath -m "${OUT:-benchmarks/results}")
LOG=$OUT/gpu.log
SITE=$PWD/build/gpu
failed=()
mkdir -p "$OUT"
: >"$LOG"

# stage NAME SECONDS COMMAND...: runs it within its own time and what is left of the whole; the output goes to the log.
stage() {
    local name=$1 limit=$2 left=$((LIMIT - SECONDS)) began=$SECONDS status=0
    shift 2
    ((limit > left)) && limit=$left
    printf '\n===== %s: %s\n' "$name" "$*" >>"$LOG"
    if ((limit < 5)); then
        status=124
    else
        # An interrupt, not a kill: pytest then still prints what it has.
        timeout --signal=INT --kill-after=10 "$limit" "$@" >>"$LOG" 2>&1 </dev/null || status=$?
    fi
    local took=$((SECONDS - began)) last
    last=$(tail -n 1 "$LOG" | cut -c1-150)
    case $status in
        0) echo "$name: done in $took s: $last" ;;
        5) echo "$name: nothing selected: $last" ;; # pytest's status where no test is left
        *)
            failed+=("$name: status $status after $took of $limit s")
            echo "$name: FAILED with status $status after $took of $limit s; the log ends with"
            tail -n 15 "$LOG" | cut -c1-200
            ;;
    esac
}

# This card's architecture alone: seven would take minutes.
capability=$("$PYTHON" -c 'import torch
if torch.cuda.is_available(): print("%d%d" % torch.cuda.get_device_capability())')
[ -n "$capability" ] && export SCP_CUDA_ARCHITECTURES=$capability
rm -rf "$SITE"
if [ "$DEVICE" = cuda ]; then
    command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
    # Where there is a compiler, a library that does not build is a failure, not a backend less.
    if command -v nvcc >/dev/null; then export SCP_BUILD_CUDA=1; else echo "no nvcc: the CUDA backend is left out"; fi
else
    export SCP_BUILD_CUDA=0 # for every architecture, it would take minutes, and nothing here would run it
fi
install=("$PYTHON" -m pip install --quiet --no-deps --no-build-isolation --no-index --target "$SITE" .)
stage "build" 120 "${install[@]}"
# Where that failed, all that needs no compiler is still there.
[ -d "$SITE/scp_models" ] || SCP_BUILD_CPU=0 SCP_BUILD_CUDA=0 stage "build without a compiler" 60 "${install[@]}"
export PYTHONPATH=$SITE PYTHONUNBUFFERED=1
stage "backends" 30 "$PYTHON" -m scp_kernels

# Kernels are compiled as they are first called, which is what most of the checks' time goes to: several at once.
workers=()
if [ "$DEVICE" = cuda ] && "$PYTHON" -c "import xdist" 2>/dev/null; then workers=(-n 8); fi
check=("$PYTHON" -m pytest -q -ra -p no:cacheprovider --durations=5 "${workers[@]}")
# shellcheck disable=SC2206
race=("$PYTHON" -m pytest benchmarks --benchmark-only -q -p no:cacheprovider --device "$DEVICE" --record "$OUT"
    --budget 0.3 --slow $BENCH)
paper="160x224 and (b1- or b14-) and not h512 and not h32 and not per-sample"

shopt -s nullglob # no record is no error here: the table is then empty
stage "kernels" 150 "${check[@]}" tests/*/test_gpu.py
if [ "$DEVICE" = cuda ] && command -v compute-sanitizer >/dev/null; then
    "$PYTHON" -m benchmarks.sanitized >>"$LOG" 2>&1 # compiled before the slow runs
    for tool in memcheck racecheck; do
        # Without PyTorch's cache every tensor is an allocation of its own, whose ends memcheck knows.
        # Calls of the driver that fail are no findings: libraries ask it for functions that it may not have.
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage "$tool" 60 \
            compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 9 "$PYTHON" -m benchmarks.sanitized
    done
fi
stage "paper's sizes and claims" 60 "${check[@]}" tests/operator/test_paper_sizes.py tests/benchmarks/test_claims.py
if ((${#workers[@]})); then
    # Each race once, untimed: torch.compile and Triton find in their caches what would be compiled one by one.
    stage "compiling" 90 "$PYTHON" -m pytest benchmarks -q -p no:cacheprovider "${workers[@]}" --benchmark-disable --slow \
        --device "$DEVICE" -k "test_operator and $paper"
fi
# The largest head first: what comes last may find no time left.
stage "operator, h 256" 70 "${race[@]}" -k "test_operator and $paper and not bfloat16 and h256"
stage "operator, h 64 and 128" 90 "${race[@]}" -k "test_operator and $paper and not bfloat16 and not h256"
stage "networks" 70 "${race[@]}" -k test_networks
if [ "$DEVICE" = cuda ]; then
    stage "operator, bfloat16" 80 "${race[@]}" -k "test_operator and $paper and bfloat16"
fi
# One network trained with either head; its data are synthetic, but reading them takes what scp_models takes.
if "$PYTHON" -c "import scp_models.training.module, nilearn" 2>>"$LOG"; then
    training=("$PYTHON" -m benchmarks.training "$OUT/training/$DEVICE.json" --device "$DEVICE")
    [ "$DEVICE" = cpu ] && training+=(--capacity 16 --size 40 56 --subjects 4 --epochs 1)
    stage "training" 100 "${training[@]}"
else
    echo "training: left out, the dependencies of scp_models are not installed (the log says which)"
fi
stage "operator, the rest" 300 "${race[@]}" -k "test_operator and not ($paper)"

echo
echo "Time of each over ours; more than 1: we are faster."
for results in "$OUT"/*.json; do
    "$PYTHON" -m benchmarks.tables "$results"
done
echo "$SECONDS s in all"
if ((${#failed[@]})); then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
