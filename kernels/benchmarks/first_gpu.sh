#!/bin/sh
# The first half hour on a GPU machine as one script. What is found is on the disk as it comes, under
# kernels/benchmarks/results/DATE-DEVICE/ (or --out DIR): every part can be killed and leaves what it had.
#
#   sh kernels/benchmarks/first_gpu.sh [--check S] [--sanitize S] [--step S] [--tune S] [--quick] [--go-on]
#                                      [--out DIR] [--commit ID]
#
# S are seconds for each part, 0 leaves it out: --check 400 (gate, hammer, measurement), --sanitize 120 (memcheck and
# racecheck, where compute-sanitizer is installed), --step 200 (a training step), --tune 0 (tuning, a run of its own).
# Stop rule: where the gate or the hammer is red, nothing is measured and no step is run, unless --go-on is given; the
# exit code is then 1. PYTHON names the interpreter (python3).
set -eu

check=400 sanitize=120 step=200 tune=0 quick='' stop=--stop-if-red out='' commit=''
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=--quick; shift ;;
        --go-on) stop=''; shift ;;
        --check | --sanitize | --step | --tune | --out | --commit)
            [ $# -ge 2 ] || { echo "$1 needs a value" >&2; exit 2; }
            case $1 in
                --out) out=$2 ;;
                --commit) commit=$2 ;;
                *) case $2 in '' | *[!0-9]*) echo "$1 $2: must be whole seconds" >&2; exit 2 ;; esac ;;
            esac
            case $1 in
                --check) check=$2 ;;
                --sanitize) sanitize=$2 ;;
                --step) step=$2 ;;
                --tune) tune=$2 ;;
            esac
            shift 2 ;;
        *) echo "$1: not an option; see the head of $0" >&2; exit 2 ;;
    esac
done

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
if [ -z "$commit" ]; then
    commit=$(git -C "$here" describe --always --abbrev=12 --dirty=+ '--exclude=*' 2>/dev/null || echo unknown)
fi
device=$("$python" -c 'import torch; print(torch.cuda.get_device_name())' 2>/dev/null) ||
    { echo "torch sees no GPU here: nothing was run" >&2; exit 2; }
if [ -z "$out" ]; then
    device=$(echo "$device" | tr ' /' '--' | tr '[:upper:]' '[:lower:]')
    out=$here/results/$(date -u +%Y-%m-%d)-$device
fi
mkdir -p "$out"

# part NAME SECONDS COMMAND...: the command with a time limit, its output also in NAME.log; its exit code in $code. Ten
# seconds more than the command was told, so that it ends by itself.
part() {
    name=$1 seconds=$2
    shift 2
    echo "== $name, at most $seconds s: $*"
    begin=$(date +%s)
    { timeout -k 10 "$((seconds + 10))" "$@" 2>&1 || echo "$?" >"$out/$name.code"; } | tee "$out/$name.log"
    code=0
    if [ -f "$out/$name.code" ]; then
        code=$(cat "$out/$name.code")
        rm "$out/$name.code"
    fi
    echo "== $name: exit code $code after $(($(date +%s) - begin)) s" | tee -a "$out/parts.log"
}

part versions 60 "$python" -c '
import importlib.metadata as m, platform, torch
print(platform.platform(), "python", platform.python_version(), "CUDA", torch.version.cuda)
print(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), torch.cuda.get_device_properties(0))
for name in ("torch", "triton", "transformers", "peft", "numpy"):
    try: print(name, m.version(name))
    except m.PackageNotFoundError: print(name, "is missing")'
if command -v nvidia-smi >/dev/null; then
    part nvidia-smi 20 nvidia-smi
fi

failed=0
if [ "$check" -gt 0 ]; then
    # shellcheck disable=SC2086  # an empty option is no argument
    part gpu_check "$check" "$python" "$here/gpu_check.py" --out "$out/check" --seconds "$check" --hammer $quick $stop \
        --commit "$commit"
    if [ "$code" -ne 0 ]; then
        failed=1
        red=$(grep -c -e '^RED' "$out/gpu_check.log" || true)
        echo "== gpu_check is not all correct: $red red lines" | tee -a "$out/parts.log"
        if [ -n "$stop" ] && [ "$red" -gt 0 ]; then
            echo "== stopped: what is red comes first (--go-on runs the rest all the same)" | tee -a "$out/parts.log"
            exit 1
        fi
    fi
fi

if [ "$step" -gt 0 ]; then
    part egmf_step "$step" "$python" "$here/egmf_step.py" --out "$out/step" --seconds "$((step > 40 ? step - 40 : 1))"
    [ "$code" -eq 0 ] || failed=1
fi

if [ "$sanitize" -gt 0 ] && command -v compute-sanitizer >/dev/null; then
    half=$((sanitize / 2))
    part memcheck "$half" compute-sanitizer --tool memcheck --error-exitcode 9 \
        "$python" "$here/gpu_check.py" --out "$out/memcheck" --tiny --seconds "$half" --commit "$commit"
    [ "$code" -eq 0 ] || failed=1
    part racecheck "$half" compute-sanitizer --tool racecheck --error-exitcode 9 \
        "$python" "$here/gpu_check.py" --out "$out/racecheck" --tiny --operator gated_tri_proj --seconds "$half" \
        --commit "$commit"
    [ "$code" -eq 0 ] || failed=1
elif [ "$sanitize" -gt 0 ]; then
    echo "== compute-sanitizer is not installed: left out" | tee -a "$out/parts.log"
fi

if [ "$tune" -gt 0 ]; then
    part tune "$tune" "$python" "$here/gpu_check.py" --out "$out/tuned" --tune --quick --seconds "$tune" \
        --commit "$commit"
    [ "$code" -eq 0 ] || failed=1
fi

if [ -f "$out/check/results.json" ]; then
    part report 30 env PYTHONPATH="$here/.." "$python" -m egmf_kernels.bench.report "$out"
fi
echo "== everything is in $out"
exit "$failed"
