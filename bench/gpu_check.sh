#!/usr/bin/env bash
# Tests, verifies and measures fastconv on a machine with a GPU; installs nothing.
#
#     bench/gpu_check.sh tests       the GPU tests                                                       4 minutes at most
#     bench/gpu_check.sh sanitizer   the smallest of them under compute-sanitizer: out of bounds,        9 minutes at most
#                                    races, barriers
#     bench/gpu_check.sh large       arrays of more than 2^31 elements, in 16 GiB of the GPU's memory    8 minutes at most
#     bench/gpu_check.sh verify      random problems through every algorithm                             2 minutes at most
#     bench/gpu_check.sh launches    what a call takes of the host, and a first call                     3 minutes at most
#     bench/gpu_check.sh race DTYPE  float16, bfloat16, tf32 or float32 against cuDNN, at batch 32: with  9 minutes at most
#                                    bias and ReLU and without, and both gradients
#     bench/gpu_check.sh             all of them, one after another
#
# Results, and what all steps said in gpu-check.log, go to $OUT if that is set, else to bench/results. A race writes its
# file anew after each of its four runs, so that one which is cut off leaves what it had. Steps that fail are reported
# and make the exit status 1, but those after them still run. PYTHON names the interpreter (default: python3); NETWORK
# what is raced (default: survey); JOBS how many tests run at once (default: 8).
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-bench/results}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$out"
failed=()

step() { # seconds, name, command...
    local limit=$1 name=$2
    shift 2
    echo "== $name: $*"
    timeout --kill-after=5 "$limit" "$@" 2>&1 | tee -a "$out/gpu-check.log"
    local status=${PIPESTATUS[0]}
    if [ "$status" -ne 0 ]; then
        failed+=("$name (status $status)")
    fi
}

tests() {
    step 240 tests "$python" -m pytest tests/test_gpu.py tests/test_gpu_streams.py -q -n "${JOBS:-8}" -m "not slow"
}

# The hardware's own tool. Kernels of the tensor cores, whose copies and barriers it must not find at fault, each on one
# small problem; of all other kernels a few random ones.
sanitizer() {
    if ! command -v compute-sanitizer >/dev/null; then
        echo "== sanitizer: compute-sanitizer is not installed (it is in the CUDA toolkit)" | tee -a "$out/gpu-check.log"
        failed+=("sanitizer (not installed)")
        return
    fi
    local checked=("$python" -m pytest tests/test_gpu.py -q -n 0 -p no:cacheprovider)
    step 180 memcheck compute-sanitizer --tool memcheck --error-exitcode 9 "${checked[@]}" \
        -k "agrees_with_direct or few_random_problems"
    for tool in racecheck synccheck; do
        step 150 "$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 "${checked[@]}" \
            -k "agrees_with_direct and float16 and not bfloat16 or few_random_problems"
    done
}

large() {
    step 470 large "$python" -m pytest tests/test_gpu.py -q -n 0 -m slow
}

launches() {
    step 170 launches "$python" bench/gpu_launches.py "$out/gpu-launches.json"
}

verify() {
    step 110 verify "$python" -m fastconv verify --device gpu --seconds 75
}

race() { # dtype
    local file="$out/gpu-$1.json"
    rm -f "$file" # what a failed step leaves must not pass for this one's
    step 530 "race-$1" "$python" -m fastconv bench --device gpu --network ${NETWORK:-survey} --batch 32 --dtype "$1" \
        --op forward input_grad weight_grad --epilogue bias+relu none --peers pytorch --seconds 0.05 --json "$file"
}

results() {
    echo "== results"
    "$python" - "$out" <<'PYTHON'
import json
import sys
from pathlib import Path

for file in sorted(Path(sys.argv[1]).glob("gpu-*.json")):
    for run in json.loads(file.read_text())["runs"]:
        layer, ceilings = run["rows"][0]["layer"], run["ceilings"]
        what = layer["op"] + " bias+relu" * layer["fused"]
        limits = f"{ceilings['flops'] / 1e12:.0f} TFLOP/s in {run['dtype']}, {ceilings['bfloat16_flops'] / 1e12:.0f} in "
        limits += f"bfloat16, {ceilings['copy'] / 1e12:.2f} TB/s copied"
        print(f"\n{run['dtype']} {what}, {len(run['rows'])} layers on {ceilings['name']}: {limits}")
        for contest in run["contests"]:
            mean = f"{contest['geometric_mean']:.2f}"
            print(f"  {mean:>6}  {contest['title']}; wanted {contest['bar']}, {contest['below']} rows below")
PYTHON
}

dtypes=(float16 float32 bfloat16 tf32)
case ${1:-all} in
tests | sanitizer | large | verify | launches) "$1" ;;
race)
    [[ " ${dtypes[*]} " == *" ${2:-} "* ]] || { echo "race ${2:-}: expected one of ${dtypes[*]}" >&2; exit 2; }
    race "$2"
    results
    ;;
all)
    rm -f "$out/gpu-check.log"
    tests
    sanitizer
    large
    verify
    launches
    for dtype in "${dtypes[@]}"; do race "$dtype"; done
    results
    ;;
*)
    echo "$1: expected tests, sanitizer, large, verify, launches, race or nothing" >&2
    exit 2
    ;;
esac
if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "all steps passed"
