#!/usr/bin/env bash
# The GPU machine rebuilt without its GPU, and ci/gpu.sh run in it: its tests under Triton's
# interpreter, and its cases on tensors without memory, with every kernel that they launch compiled
# for sm_90 (bench/rehearse.py). Twice: with the packages that GPU machines have had (torch 2.11,
# Triton 3.6) and with those of ci/constraints.txt. An hour on two cores; the first
# environment takes 6 GB of disk, since PyPI has that torch for CUDA alone.
#   rehearse.sh [FOLDER]     environments and results go there (default: .rehearsal)
#   PYTHON=python3.12        what the environments are made with, as those machines have it
#   QUICK=1                  without the tests
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-.rehearsal}
mkdir -p "$folder" && folder=$(cd "$folder" && pwd)
stages=(tests path encoder losses views products steps attention sweep)
[ -z "${QUICK:-}" ] || stages=("${stages[@]:1}")
failed=()

# prepared NAME REQUIREMENT...: an environment without fastequi, which is imported from here
prepared() {
  local name=$1
  shift
  [ -e "$folder/$name/ready" ] && return
  "${PYTHON:-python3}" -m venv "$folder/$name" &&
    "$folder/$name/bin/pip" install --quiet --disable-pip-version-check "$@" \
      numpy pillow safetensors rich tyro pytest pytest-xdist pytest-benchmark hypothesis scikit-learn &&
    touch "$folder/$name/ready"
}

# rehearsed NAME: LIMIT is for two cores where gpu.sh counts on sixteen and a GPU
rehearsed() {
  local name=$1
  PATH="$folder/$name/bin:$PATH" BENCH=bench.rehearse LIMIT=3600 OUT="$folder/$name-out" \
    bash ci/gpu.sh "${stages[@]}" || failed+=("$name: see $folder/$name-out")
}

if prepared torch211 torch==2.11.0 triton==3.6.0; then rehearsed torch211; else failed+=("torch211: not installed"); fi
if prepared pinned -c ci/constraints.txt torch triton; then rehearsed pinned; else failed+=("pinned: not installed"); fi
if [ ${#failed[@]} -gt 0 ]; then
  printf 'FAILED %s\n' "${failed[@]}"
  exit 1
fi
