#!/usr/bin/env bash
# What needs a GPU, in stages of at most 8 minutes each, the most valuable first:
#   gpu.sh [STAGE ...] [-- OPTION ...]     default: tests path encoder losses views products steps
#     tests       every kernel against float64 at small shapes, models, data: pytest
#     path        R, H1 to H4: the path loss at its headline shapes
#     encoder     H12: steps of the encoder
#     losses      H6, H10: losses over prototypes, GTSA's losses
#     views       H11: turned batches, warped and blurred ones, views, windows that overlap
#     products    H5, H8, H9: losses that are bound by matrix products
#     steps       H13: steps of every base with and without TIR
#     attention   H15: attention at the encoders' lengths, beside what is installed
#     data        H14: a run over the images in $DATA through DALI, and how long it waits for them;
#                 then the same with views made by fused_views. Needs DALI and tyro
#     sweep       every case at all its shapes
#     profile     H3: hardware counters of the path loss's kernel, by ncu
# The H lines are those of bench/results/predicted.json, which the results are compared with in the
# end. OPTIONs go to pytest or to python -m bench; `-- --without compile` saves most of a minute for
# each case where the host is slow. Uses the Python on the path, without an install;
# results go to $OUT (default: gpu-out). A stage goes on after a failure; what failed is said last,
# and by the exit status. LIMIT: seconds of a stage (480). BENCH: the module that takes the cases;
# bench.rehearse compiles what they would launch, on a machine without a GPU.
set -uo pipefail
usage() { sed -n '2,/^# The H lines/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//' >&2; }
stages=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    tests | path | encoder | losses | views | products | steps | attention | data | sweep | profile) stages+=("$1") ;;
    *) echo "gpu.sh: expected one of the stages below, got $1" >&2 && usage && exit 2 ;;
  esac
  shift
done
[ ${#stages[@]} -gt 0 ] || stages=(tests path encoder losses views products steps)
options=("${@:2}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
out=${OUT:-gpu-out}
bench=${BENCH:-bench}
mkdir -p "$out"
failures=()

# limited NAME COMMAND...: within what is left of the stage's time; a failure is kept by its name
limited() {
  local name=$1 left=$((started + ${LIMIT:-480} - SECONDS)) status
  shift
  if [ $left -lt 10 ]; then
    failures+=("$name: not begun, the stage's time was over")
    return
  fi
  timeout -s INT -k 10 $left "$@"
  status=$?
  case $status in
    0) ;;
    124) failures+=("$name: stopped after $left s, when the stage's time was over") ;;
    *) failures+=("$name: exit status $status") ;;
  esac
}

run_tests() {
  local workers=() images=()
  python3 -c "import xdist" 2>/dev/null && workers=(-n "$(($(nproc) < 14 ? $(nproc) : 14))" --dist worksteal)
  if python3 -c "import nvidia.dali" 2>/dev/null; then
    images=(tests/test_dali.py tests/test_fused_loader.py tests/test_loader.py)
  else
    echo "gpu.sh tests: without DALI, test_dali.py, test_fused_loader.py and test_loader.py are left out"
  fi
  OMP_NUM_THREADS=1 limited tests python3 -m pytest -v --durations=15 -rf --tb=short "${workers[@]}" "${options[@]}" \
    tests/test_attention.py tests/test_blur_recon.py tests/test_correspondence.py \
    tests/test_crop_align.py tests/test_decoder.py tests/test_derivatives.py \
    tests/test_dino.py tests/test_equi_layer.py tests/test_fused_views.py tests/test_fused_channels.py \
    tests/test_gaussian_blur.py tests/test_gram.py tests/test_image_gradients.py tests/test_koleo.py \
    tests/test_linear_blur_recon.py tests/test_linear_dino.py tests/test_linear_warp_recon.py \
    tests/test_many_channels.py tests/test_no_waiting.py tests/test_nt_xent.py tests/test_overlap.py \
    tests/test_prepared.py tests/test_rot90_batch.py tests/test_sinkhorn.py tests/test_tir.py tests/test_unit_rows.py \
    tests/test_vicreg.py tests/test_warp.py \
    tests/test_warp_packed.py tests/test_warp_recon.py tests/test_warp_recon_geometry.py \
    tests/test_warp_recon_packed.py "${images[@]}" > "$out/tests.txt" 2>&1
  grep -v PASSED "$out/tests.txt" | tail -n 90
}

# cases NAME OPTION...: one process
cases() {
  local name=$1
  shift
  limited "$name" python3 -m "$bench" --json "$out/$name.json" "$@" "${options[@]}" > >(tee -a "$out/bench.txt") 2>&1
}

# headline MODE CASE...: a process each, so that a kernel that breaks the device's context breaks no other case
headline() {
  local name mode=$1
  shift
  for name in "$@"; do cases "$name" --modes "$mode" --headline --case "$name"; done
}

stage() {
  case $1 in
    tests) run_tests ;;
    path)
      headline fwdbwd warp_recon
      cases warp_recon_small --modes fwdbwd --headline --case warp_recon --set B=8
      cases warp_recon_eight --modes fwdbwd --headline --case warp_recon --set K=8 \
        --without eager compile kornia "ours, PyTorch path"
      ;;
    encoder) cases encoder_step --modes fwdbwd --case encoder_step ;;
    losses)
      headline fwdbwd dino ibot
      local name
      for name in crop_align correspondence; do
        cases $name --modes fwdbwd --headline --without "pair by pair" --case $name
      done
      headline fwdbwd sinkhorn
      ;;
    views)
      headline fwd rot90_batch warp gaussian_blur
      headline fwdbwd blur_recon warp_of_maps warp_recon_of_maps blur_of_maps
      headline fwd views view_channels overlap_add overlap_spread
      ;;
    products)
      headline fwdbwd linear_warp_recon vicreg
      cases nt_xent --modes fwdbwd --case nt_xent
      headline fwdbwd koleo linear_dino linear_blur_recon gram
      ;;
    steps)
      cases tir_overhead --modes fwdbwd --case tir_overhead
      [ "$bench" = bench ] || return
      limited dry_run python3 -c "
from dataclasses import replace
from fastequi.cli.dryrun import dry_run
from fastequi.recipes import RECIPES
config = RECIPES['tir_vicreg_vits16']()
dry_run(replace(config, data=replace(config.data, batch_size=256)))" > >(tee "$out/dry_run.txt") 2>&1
      ;;
    attention) cases attention --modes fwdbwd --case attention ;;
    data)
      if [ ! -d "${DATA:-}" ]; then
        failures+=("data: DATA: expected a folder of images, got '${DATA:-}'")
        return
      fi
      local views missing
      if ! missing=$(python3 -c "import nvidia.dali, tyro" 2>&1); then
        failures+=("data: ${missing##*$'\n'}")
        return
      fi
      for views in dali fused; do
        rm -rf "$out/run"
        limited "data_$views" python3 -m fastequi.cli pretrain tir_vicreg_vits16 --data "$DATA" --data.repeat 2000 \
          --data.batch-size 256 --data.views $views --max-steps 150 --train.log-every 10 --run-dir "$out/run" \
          > >(tee "$out/data_$views.txt") 2>&1
        [ ! -f "$out/run/metrics.jsonl" ] || cp "$out/run/metrics.jsonl" "$out/data_$views.jsonl"
      done
      rm -rf "$out/run"
      [ ! -f "$out/data_dali.jsonl" ] || mv "$out/data_dali.jsonl" "$out/data.jsonl"
      ;;
    sweep) # apart, as the headlines' shapes are among them
      mkdir -p "$out/sweep"
      cases sweep/all
      ;;
    profile)
      if ! command -v ncu > /dev/null; then
        failures+=("profile: ncu is not installed")
        return
      fi
      limited profile ncu --clock-control none --set full -k regex:warp_recon_packed_kernel -s 2 -c 1 \
        python3 -m bench --samples 1 --modes fwdbwd --headline --case warp_recon --without eager compile kornia \
        torchvision triton-augment "ours, PyTorch path" "ours, packed RGBX" "ours, a pass per step" \
        > "$out/ncu.txt" 2>&1
      limited profile_eight ncu --clock-control none --csv --print-units base --metrics dram__bytes_read.sum \
        -k regex:warp_recon_packed_kernel -s 2 -c 1 \
        python3 -m bench --samples 1 --modes fwdbwd --headline --case warp_recon --set K=8 --without eager compile kornia \
        torchvision triton-augment "ours, PyTorch path" "ours, packed RGBX" "ours, a pass per step" \
        > "$out/ncu_eight.csv" 2>&1
      grep -E "Duration|Throughput|Registers|Occupancy|Hit Rate|Issue|L2 Cache|Bank|Local" "$out/ncu.txt"
      ;;
  esac
}

python3 -c "from fastequi.cli.doctor import report; print(report())" > "$out/doctor.txt" 2>&1 || failures+=("doctor: see $out/doctor.txt")
for each in "${stages[@]}"; do
  started=$SECONDS
  stage "$each"
  echo "gpu.sh $each: $((SECONDS - started)) s"
done
measured=$(compgen -G "$out/*.json*" || compgen -G "$out/ncu_eight.csv")
[ "$bench" != bench ] || [ -z "$measured" ] || python3 -m bench.predict compare "$out" || failures+=("the comparison with the predictions")
if [ ${#failures[@]} -gt 0 ]; then
  printf 'FAILED %s\n' "${failures[@]}" | tee "$out/failures.txt"
  exit 1
fi
