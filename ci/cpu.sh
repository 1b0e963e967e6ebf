#!/usr/bin/env bash
# Measures all CPU timings of bench/results again: NAME_avx2.json with AVX2 only, and NAME.json where
# the processor has AVX-512. About 20 minutes each on a machine that does nothing else. Uses the Python
# on the path; the libraries compared with need opencv-python-headless, kornia and lightly. Results go
# to $OUT (default: cpu-out). QUICK=1 takes few samples, to try the script.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
out=${OUT:-cpu-out}
mkdir -p "$out"
few=${QUICK:+--headline --samples 3}
run() { # NAME OPTION...: options of python -m bench, results to $out/NAME.json
  local name=$1
  shift
  python3 -m bench "$@" $few --json "$out/$name.json" | tee "$out/$name.txt"
}
wide=$(grep -q -m 1 avx512f /proc/cpuinfo && echo yes || true)
[ "$wide" ] || echo "no AVX-512 here: its files are left out" >&2
both() { # NAME OPTION...
  run "${1}_avx2" "${@:2}" --isa avx2
  if [ "$wide" ]; then run "$@"; fi
}
recon="--modes fwdbwd --case warp_recon_cpu"
ssl="nt_xent_cpu koleo_cpu dino_cpu sinkhorn_cpu ibot_cpu linear_dino_cpu vicreg_cpu"
run cpu_avx2 $recon --isa avx2
# with AVX2 only, a linear layer's matrix products take seconds
if [ "$wide" ]; then run cpu $recon linear_warp_recon_cpu linear_blur_recon_cpu; fi
both channels_cpu --case warp_recon_channels_cpu --modes fwdbwd
both warp_cpu --case warp_cpu --modes fwd
both rot90_cpu --case rot90_batch_cpu --modes fwd
both cpu_fresh_memory --fresh-memory --headline $recon
both dino_fresh_memory_cpu --case dino_cpu --fresh-memory --headline --modes fwdbwd --set S=10 B=64 N=65536
both dino_65536_cpu --case dino_cpu sinkhorn_cpu --headline --modes fwdbwd --set S=10 B=16 N=65536
both gaussian_blur_cpu --case gaussian_blur_cpu --headline --modes fwd
both blur_recon_cpu --case blur_recon_cpu --headline --modes fwdbwd
both maps_cpu --case warp_of_maps_cpu warp_recon_of_maps_cpu blur_of_maps_cpu --modes fwdbwd
both gtsa_losses_cpu --case crop_align_cpu correspondence_cpu --headline --modes fwdbwd
both gram_cpu --case gram_cpu --modes fwdbwd
both short_attention_cpu --case short_attention_cpu gelu_cpu --modes fwdbwd
both ssl_cpu --case $ssl --headline --modes fwdbwd
both small_cpu --case $ssl crop_align_cpu correspondence_cpu blur_recon_cpu --modes fwdbwd
both train_step_cpu --case train_step_cpu --headline --modes fwdbwd --samples 20
both train_step_vits16_cpu --case train_step_cpu --modes fwdbwd --set recipe=tir_vicreg_vits16 B=8 --samples 30 --without compile
run tir_overhead_cpu_avx2 --case tir_overhead_cpu --modes fwdbwd --samples 10 --isa avx2
# a single thread; needs torchvision (of the same torch), albumentationsx and DALI too
export OMP_NUM_THREADS=1
python3 -c 'import albumentations, kornia, nvidia.dali, torchvision' || {
  echo "views_cpu is not measured, as a library that it is compared with is missing" >&2
  exit 1
}
both views_cpu --case decode_cpu multi_crop_cpu views_cpu --modes fwd
