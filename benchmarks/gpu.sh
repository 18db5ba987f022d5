#!/usr/bin/env bash
# Everything that is to be measured on a GPU, in one command: at most eight minutes, no network.
#
#   benchmarks/gpu.sh            all of benchmarks/gpu/*.py
#   benchmarks/gpu.sh long_conv  some of them
#
# Each script checks what it times and writes benchmarks/results/gpu/<name>.json. PYTHON chooses the interpreter; by
# default that of .venv, if there is one. Exit code 0: all were measured; 1: one failed or ran out of time; 2: the call
# was wrong; 3: there is no GPU here.
set -u
cd "$(dirname "$0")/.." || exit 1

LIMIT=480  # seconds, all scripts together
if [ -z "${PYTHON:-}" ]; then
    PYTHON=.venv/bin/python
    [ -x "$PYTHON" ] || PYTHON=python3
fi
export PYTHONPATH="$PWD/src:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1

if [ $# -gt 0 ]; then
    scripts=()
    for name in "$@"; do
        if [ ! -f "benchmarks/gpu/$name.py" ]; then
            echo "there is no benchmarks/gpu/$name.py; there are:" benchmarks/gpu/*.py >&2
            exit 2
        fi
        scripts+=("benchmarks/gpu/$name.py")
    done
else
    scripts=(benchmarks/gpu/*.py)
fi

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "no GPU that PyTorch can use here ($PYTHON): nothing was measured, no result was changed" >&2
    exit 3
fi
"$PYTHON" -c 'import torch; print(torch.cuda.get_device_name(), "with torch", torch.__version__)'
mkdir -p benchmarks/results/gpu

failed=0
for script in "${scripts[@]}"; do
    left=$((LIMIT - SECONDS))
    if [ "$left" -le 0 ]; then
        echo "not run for want of time: $script" >&2
        failed=1
        continue
    fi
    echo "== $script"
    began=$SECONDS
    timeout "$left" "$PYTHON" "$script"
    code=$?
    if [ "$code" -ne 0 ]; then
        [ "$code" -eq 124 ] && reason="out of time" || reason="exit code $code"
        echo "failed, $reason: $script" >&2
        failed=1
    fi
    echo "== $script: $((SECONDS - began)) s"
done
exit "$failed"
