#!/usr/bin/env bash
# What needs a GPU, in stages of minutes each, the most valuable first:
#   gpu.sh STAGE [OPTIONS]     stages, and what OPTIONS go to:
#     tests                    kernels, models, data: pytest
#     path                     the path loss at its headline shapes: python -m bench
#     losses                   the other ops at theirs: python -m bench
#     steps                    steps of the encoder, and of every base with and without TIR: python -m bench
#     sweep                    every case at all its shapes: python -m bench
#     profile                  hardware counters of the path loss's kernel, by ncu; takes no OPTIONS
#   gpu.sh                     tests, path, losses, steps
# Uses the Python on the path, without an install; results go to $OUT (default: gpu-out). A stage goes on after
# a failure, and says so in its exit status. LIMIT: the most seconds of the tests.
set -uo pipefail
case ${1:-tests} in
  tests | path | losses | steps | sweep) ;;
  profile) [ $# -eq 1 ] || { echo "gpu.sh profile: expected no options, got ${*:2}" >&2 && exit 2; } ;;
  *) sed -n '2,/^# Uses/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//' >&2 && exit 2 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
out=${OUT:-gpu-out}
mkdir -p "$out"
failed=0

run_tests() {
  local workers=() images=()
  python3 -c "import xdist" 2>/dev/null && workers=(-n "$(($(nproc) < 14 ? $(nproc) : 14))" --dist worksteal)
  if python3 -c "import nvidia.dali" 2>/dev/null; then
    images=(tests/test_dali.py tests/test_loader.py)
  else
    echo "gpu.sh tests: without DALI, test_dali.py and test_loader.py are left out"
  fi
  OMP_NUM_THREADS=1 timeout -s INT "${LIMIT:-480}" python3 -m pytest -v --durations=15 -rf --tb=short "${workers[@]}" "$@" \
    tests/test_attention.py tests/test_blur_recon.py tests/test_correspondence.py \
    tests/test_crop_align.py tests/test_decoder.py tests/test_derivatives.py \
    tests/test_dino.py tests/test_equi_layer.py tests/test_gaussian_blur.py tests/test_koleo.py \
    tests/test_linear_blur_recon.py tests/test_linear_dino.py tests/test_linear_warp_recon.py \
    tests/test_no_waiting.py tests/test_nt_xent.py tests/test_rot90_batch.py \
    tests/test_sinkhorn.py tests/test_tir.py tests/test_vicreg.py tests/test_warp.py \
    tests/test_warp_packed.py tests/test_warp_recon.py tests/test_warp_recon_geometry.py \
    tests/test_warp_recon_packed.py "${images[@]}" > "$out/tests.txt" 2>&1 || failed=1
  grep -v PASSED "$out/tests.txt" | tail -n 90
}

# bench NAME OPTIONS...: a process each, so that a kernel that breaks the device's context breaks no other case
bench() {
  local name=$1
  shift
  python3 -m bench --json "$out/$name.json" "$@" 2>&1 | tee -a "$out/bench.txt" || failed=1
}

headline() {
  local name
  for name in "$@"; do bench "$name" --modes fwdbwd --headline --case "$name" "${options[@]}"; done
}

stage() {
  case $1 in
    tests) run_tests "${options[@]}" ;;
    path)
      headline warp_recon
      bench warp_recon_small --modes fwdbwd --headline --case warp_recon --set B=8 "${options[@]}"
      bench warp_recon_eight --modes fwdbwd --headline --case warp_recon --set K=8 \
        --without eager compile kornia "ours, PyTorch path" "${options[@]}"
      ;;
    losses)
      headline linear_warp_recon dino attention
      bench more --modes fwdbwd --headline --without compile "pair by pair" "${options[@]}" --case \
        nt_xent vicreg crop_align correspondence ibot sinkhorn koleo linear_dino linear_blur_recon
      bench views --modes fwd --headline --case rot90_batch warp "${options[@]}"
      ;;
    steps)
      headline encoder_step
      bench tir_overhead --modes fwdbwd --case tir_overhead "${options[@]}"
      python3 -m fastequi.cli pretrain tir_vicreg_vits16 --dry-run --data.batch-size 256 2>&1 |
        tee "$out/dry_run.txt" || failed=1
      ;;
    sweep) bench sweep "${options[@]}" ;;
    profile)
      command -v ncu > /dev/null || { echo "gpu.sh profile: ncu is not installed" >&2 && failed=1 && return; }
      ncu --clock-control none --set full -k regex:warp_recon_packed_kernel -s 2 -c 1 \
        python3 -m bench --samples 1 --modes fwdbwd --headline --case warp_recon --without eager compile kornia \
        torchvision triton-augment "ours, PyTorch path" "ours, packed RGBX" "ours, a pass per step" \
        > "$out/ncu.txt" 2>&1 || failed=1
      grep -E "Duration|Throughput|Registers|Occupancy|Hit Rate|Issue|L2 Cache|Bank|Local" "$out/ncu.txt"
      ;;
  esac
}

stages=(tests path losses steps)
if [ $# -gt 0 ]; then stages=("$1") && shift; fi
options=("$@")
python3 -m fastequi.cli doctor > "$out/doctor.txt" 2>&1 || failed=1
for each in "${stages[@]}"; do
  start=$SECONDS
  stage "$each"
  echo "gpu.sh $each: $((SECONDS - start)) s"
done
exit $failed
