#!/usr/bin/env bash
# A first run of cdiff-rt on an NVIDIA GPU, in at most 8 minutes, without a network: what works, how fast it is, and where
# the time goes. In the root of a checkout:
#
#   bash bench/first_gpu_run.sh
#
# OUT (default: first-gpu-run/) gets summary.json, the files of each step as it ends, and log.txt. Each step has a limit of
# its own and may fail alone. PY is the Python, BUDGET the seconds in all. Where array-api-compat is not installed, its
# wheel is taken from WHEELS (default: .dev/). Without a GPU, PROBE_CPU=1 runs the probes in small on the CPU, to prove
# this script; whatever needs a GPU says so and is skipped.
set -u
OUT=$(realpath -m "${OUT:-first-gpu-run}") PY=${PY:-python3} BUDGET=${BUDGET:-480} WHEELS=${WHEELS:-.dev}
WORK=$(mktemp -d) STEPS=$WORK/steps.tsv LOG=$OUT/log.txt BIG=$WORK/synthetic-512
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$OUT" && rm -f "$OUT"/*.json && : > "$LOG" && : > "$STEPS" || exit 1
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 XDG_CACHE_HOME=$WORK/cache PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export TORCHINDUCTOR_CACHE_DIR=$WORK/inductor TRITON_CACHE_DIR=$WORK/triton

note() { # name state seconds words
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >> "$STEPS"
  printf '%-22s %-12s %4s s  %s\n' "$1" "$2" "$3" "$4"
  summary
}

summary() { # what is known so far, as one file
  $PY - "$STEPS" "$OUT" <<'PYTHON'
import json, sys
from pathlib import Path
rows = [line.split("\t") for line in Path(sys.argv[1]).read_text().splitlines()]
steps = [dict(zip(("step", "state", "seconds", "last line"), row, strict=True)) for row in rows]
files = {path.stem: json.loads(path.read_text()) for path in sorted(Path(sys.argv[2]).glob("*.json")) if path.stem != "summary"}
Path(sys.argv[2], "summary.json").write_text(json.dumps({"steps": steps, **files}, indent=1) + "\n")
PYTHON
}

step() { # name seconds command...: its output goes to the log, its last line to the summary
  local name=$1 limit=$2 begun=$SECONDS state; shift 2
  [ "$limit" -gt $((BUDGET - SECONDS)) ] && limit=$((BUDGET - SECONDS))
  [ "$limit" -lt 5 ] && { note "$name" skipped 0 "no time is left of $BUDGET s"; return; }
  timeout -k 5 "$limit" "$@" > "$WORK/$name.log" 2>&1
  case $? in 0) state=ok ;; 124 | 137) state="timed out" ;; 5) state="not here" ;; *) state=failed ;; esac
  { echo "=== $name: $*"; tail -c 400000 "$WORK/$name.log"; } >> "$LOG"
  note "$name" "$state" $((SECONDS - begun)) "$(grep -v '^[[:space:]]*$' "$WORK/$name.log" | tail -1 | tr '\t' ' ' | cut -c1-160)"
}

gpu() { if [ -z "$WHY" ]; then step "$@"; else note "$1" skipped 0 "$WHY"; fi; }
probe() { # name seconds arguments...
  if [ -n "$WHY" ] && [ "${PROBE_CPU:-0}" != 1 ]; then note "$1" skipped 0 "$WHY"; return; fi
  step "$1" "$2" "$PY" -m cdiff_rt.bench.probe "$OUT/probes.json" "${@:3}"
}
big() { if [ -e "$BIG/manifest.json" ]; then "$@"; else note "$2" skipped 0 "there is no model of 512 pixels"; fi; }

if ! $PY -c 'import array_api_compat' 2> /dev/null; then
  $PY -m pip install -q --no-index --no-deps --target "$WORK/site" "$WHEELS"/array_api_compat-*.whl >> "$LOG" 2>&1 || { echo "array-api-compat is neither installed nor in $WHEELS"; exit 1; }
  export PYTHONPATH=$WORK/site:$PYTHONPATH
fi
WHY=$($PY -c 'from cdiff_rt.engines.backends import why_it_fails, why_not; print(why_not("torch-cuda") or why_it_fails("torch-cuda") or "")' 2>> "$LOG") || { tail -3 "$LOG"; exit 1; }
note here ok $SECONDS "$($PY -c 'import platform, torch; print("Python", platform.python_version(), "torch", torch.__version__)' 2>&1 | tail -1); ${WHY:-a GPU that torch computes on}"

# Beside one another, for nothing is timed.
[ -z "$WHY" ] && { step model-512 150 "$PY" -m cdiff_rt.bench.synthetic 512 "$BIG" --torch & }
step doctor 150 "$PY" -m cdiff_rt doctor &
gpu test-kernels 110 "$PY" -m pytest -q -m gpu tests/gpu -rfEs
wait

# Alone on the GPU, what matters most first.
HALF=fp16 CUDA=torch-cuda FEW=10 ALL=50
[ -n "$WHY" ] && { HALF=fp32 CUDA=torch FEW=1 ALL=1; }
probe image-128 60 image faces-128 $CUDA $HALF $ALL 1
gpu bench-128 70 "$PY" -m cdiff_rt bench time --suite gpu --backend torch-cuda --batch 1 --steps $FEW --repeats 3 --json "$OUT/bench-128.json"
gpu test-torch-cuda 90 "$PY" -m pytest -q -m gpu tests/test_gpu.py -k "torch-cuda and not compiled" -rfEs
big probe image-512 80 image "$BIG" $CUDA $HALF $FEW 1
probe ceilings 25 ceilings
probe attention 25 attention
big gpu bench-512 60 "$PY" -m cdiff_rt bench time --suite gpu --model "$BIG" --backend torch-cuda --precision fp16 --batch 1 --steps $FEW --repeats 3 --json "$OUT/bench-512.json"
if [ -z "$WHY" ]; then
  probe image-128-batch-8 30 image faces-128 torch-cuda fp16 10 8
  probe image-128-compiled 120 image faces-128 torch-cuda-compiled fp16 10 1
  big probe image-512-compiled 150 image "$BIG" torch-cuda-compiled fp16 10 1
fi
gpu test-compiled 120 "$PY" -m pytest -q -m gpu tests/test_gpu.py -k "torch-cuda-compiled and not bf16 and not fp32" -rfEs

grep -hE '^(FAILED|ERROR|SKIPPED)|passed|failed' "$LOG" | cut -c1-200 | tail -25
echo "done after $SECONDS s: $OUT/summary.json"
