#!/usr/bin/env bash
# Tests, verifies and measures fastconv on a machine with a GPU; installs nothing and ends inside 8 minutes.
#
# Results, and what all steps said in gpu-check.log, go to $OUT if that is set, else to bench/results. Steps that fail
# are reported and make the exit status 1, but the steps after them still run. PYTHON names the interpreter (default:
# python3).
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-bench/results}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$out"
rm -f "$out/gpu-check.log"
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

step 100 tests "$python" -m pytest tests/test_gpu.py -q
# Reads and writes of every kernel checked by the hardware's own tool, on the smallest problems.
if command -v compute-sanitizer >/dev/null; then
    step 50 sanitizer compute-sanitizer --error-exitcode 9 "$python" -m pytest tests/test_gpu.py -q -k "agrees_with_direct"
fi
step 80 verify "$python" -m fastconv verify --device gpu --seconds 50
for run in "resnet50 float32" "mobilenetv2 float32" "resnet50 float16" "vgg16 float16"; do
    read -r network dtype <<<"$run"
    rm -f "$out/gpu-$network-$dtype.json" # what a failed step leaves must not pass for this run's
    step 60 "bench-$network-$dtype" "$python" -m fastconv bench --device gpu --network "$network" --dtype "$dtype" \
        --batch 32 --peers pytorch --json "$out/gpu-$network-$dtype.json"
done

echo "== results"
"$python" - "$out" <<'PYTHON'
import json
import math
import sys
from pathlib import Path

print(f"{'network':24}{'layers':>8}  peer's time over fastconv's, geometric mean")
for file in sorted(Path(sys.argv[1]).glob("gpu-*.json")):
    rows = [row for run in json.loads(file.read_text())["runs"] for row in run["rows"]]
    means = []
    for peer in rows[0]["ratios"]:
        logs = [math.log(row["ratios"][peer]) for row in rows if row["ratios"][peer]]
        means.append(f"{peer} {math.exp(sum(logs) / len(logs)):.2f}" if logs else f"{peer} -")
    print(f"{file.stem[4:]:24}{len(rows):8}  {', '.join(means)}")
PYTHON
if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "all steps passed"
