#!/bin/bash
# Run everything that a machine with a GPU should run first, in under nine minutes, without network:
#
#   scripts/gpu/run.sh OUT [--wheels FOLDER] [--device cuda|cpu] [--tiny]
#
# Parts: install (the wheels of scripts/gpu/prepare.sh, into OUT/packages), checks (tests/gpu), bench, and a run of the
# miniature by each engine. Each has a time limit, and one that fails does not stop the others. OUT/summary.txt has one
# line per part: its name, "passed" or what went wrong, and seconds; OUT/<part>.log has its output.
# --device cpu --tiny runs the same parts on a CPU. PYTHON is the interpreter; SECONDS_IN_ALL (520) is the limit of all.
set -u
out=${1:?usage: scripts/gpu/run.sh OUT [--wheels FOLDER] [--device cuda|cpu] [--tiny]}
shift
wheels="" device=cuda tiny=""
while [ $# -gt 0 ]; do
  case $1 in
    --wheels) wheels=$2; shift 2 ;;
    --device) device=$2; shift 2 ;;
    --tiny) tiny=--tiny; shift ;;
    *) echo "scripts/gpu/run.sh: $1: no such option" >&2; exit 2 ;;
  esac
done
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
[ -z "$wheels" ] || wheels=$(cd "$wheels" && pwd) || exit 2
cd "$(dirname "$0")/../.." || exit 2
export PYTHONPATH="$out/packages:$PWD${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 WANDB_MODE=offline IMSM_RUNS=$out/runs IMSM_CACHE=$out/cache
summary=$out/summary.txt
: > "$summary"
rm -rf "$out/runs"   # a finished run would only print its report; the benchmark's file is continued
deadline=$((SECONDS + ${SECONDS_IN_ALL:-520}))

# part NAME LIMIT COMMAND...: run it for at most LIMIT seconds, or what is left of all; record how it ended
part() {
  local name=$1 limit=$2 left=$((deadline - SECONDS)) started=$SECONDS status result
  shift 2
  if [ "$left" -lt 10 ]; then
    echo "$name: not run, no time left" | tee -a "$summary"
    return
  fi
  [ "$limit" -le "$left" ] || limit=$left
  # a group of its own is killed with its children; KILL if a hung CUDA call ignores TERM
  timeout --kill-after=5 "$limit" "$@" > "$out/$name.log" 2>&1
  status=$?
  case $status in
    0) result=passed ;;
    124 | 137) result="stopped after $limit s" ;;
    *) result="failed, exit code $status: $(tail -n 1 "$out/$name.log" | cut -c 1-120)" ;;
  esac
  echo "$name: $result ($((SECONDS - started)) s)" | tee -a "$summary"
}

# a second call measures what the first one missed because a row ended its process
bench() {
  local attempt
  for attempt in 1 2; do
    "$python" -m scripts.bench --device "$device" $tiny --seconds "$1" --output "$out/bench" && return
    echo "attempt $attempt ended with exit code $?"
  done
  return 1
}

run() {
  local engine=$1
  shift
  "$python" -m imsm.run backbone=mini method=imsm engine="$engine" engine.device="$device" logger=none \
    data.max_train_examples=96 trainer.num_epochs=1 evaluation.tasks='[gsm8k]' evaluation.limit=8 \
    run_dir="$out/runs/$engine" "$@"
}

processes=$("$python" -c 'import torch; print(torch.cuda.device_count())' 2> "$out/processes.log") || processes=0
if [ "$device" = cpu ] || [ "${processes:-0}" -lt 1 ]; then processes=1; fi
if [ "$device" = cpu ]; then processes=2; fi
export -f bench run
export python device tiny out

if [ -n "$wheels" ]; then
  part install 60 "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$out/packages" "$wheels"/*.whl
fi
part checks 110 "$python" -m pytest -q -p no:cacheprovider -m gpu tests/gpu
part single 60 bash -c 'run single'
part bench 250 bash -c 'bench 220'
part zero2 70 bash -c "run zero2 engine.nproc_per_node=$processes"
part zero3 70 bash -c "run zero3 engine.nproc_per_node=$processes"
part fsdp2 60 bash -c "run fsdp2 engine.nproc_per_node=$processes"
! grep -qv ": passed (" "$summary"
