#!/usr/bin/env bash
# Measures all CPU timings of bench/results again: with AVX2 only and with all that the processor has.
# About 40 minutes on a machine that does nothing else. Uses the Python on the path; the libraries
# compared with need opencv-python-headless and kornia. Results go to $OUT (default: cpu-out).
# QUICK=1 takes few samples, to try the script.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
out=${OUT:-cpu-out}
mkdir -p "$out"
few=${QUICK:+--headline --samples 3}
run() { # FILE OPTION...: options of python -m bench, results to $out/FILE
  local file=$1
  shift
  python3 -m bench "$@" $few --json "$out/$file" | tee "$out/${file%.json}.txt"
}
recon="--modes fwdbwd --case warp_recon_cpu"
ssl="nt_xent_cpu koleo_cpu dino_cpu sinkhorn_cpu ibot_cpu linear_dino_cpu vicreg_cpu"
run cpu_avx2.json $recon --isa avx2
# with AVX2 only, a linear layer's matrix products take seconds
run cpu.json $recon linear_warp_recon_cpu linear_blur_recon_cpu
run warp_cpu_avx2.json --case warp_cpu --modes fwd --isa avx2
run warp_cpu.json --case warp_cpu --modes fwd
run rot90_cpu_avx2.json --case rot90_batch_cpu --modes fwd --isa avx2
run rot90_cpu.json --case rot90_batch_cpu --modes fwd
run cpu_fresh_memory_avx2.json --fresh-memory --headline $recon --isa avx2
run cpu_fresh_memory.json --fresh-memory --headline $recon
run dino_65536_cpu_avx2.json --case dino_cpu --headline --modes fwdbwd --set S=10 B=16 N=65536 --isa avx2
run dino_65536_cpu.json --case dino_cpu --headline --modes fwdbwd --set S=10 B=16 N=65536
run gaussian_blur_cpu_avx2.json --case gaussian_blur_cpu --headline --modes fwd --isa avx2
run gaussian_blur_cpu.json --case gaussian_blur_cpu --headline --modes fwd
run blur_recon_cpu_avx2.json --case blur_recon_cpu --headline --modes fwdbwd --isa avx2
run blur_recon_cpu.json --case blur_recon_cpu --headline --modes fwdbwd
run gtsa_losses_cpu.json --case crop_align_cpu correspondence_cpu --headline --modes fwdbwd
run gtsa_losses_cpu_avx2.json --case crop_align_cpu correspondence_cpu --headline --modes fwdbwd --isa avx2
run ssl_cpu_avx2.json --case $ssl --headline --modes fwdbwd --isa avx2
run ssl_cpu.json --case $ssl --headline --modes fwdbwd
small="$ssl crop_align_cpu correspondence_cpu blur_recon_cpu"
run small_cpu_avx2.json --case $small --modes fwdbwd --isa avx2
run small_cpu.json --case $small --modes fwdbwd
run train_step_cpu_avx2.json --case train_step_cpu --headline --modes fwdbwd --samples 20 --isa avx2
run train_step_cpu.json --case train_step_cpu --headline --modes fwdbwd --samples 20
vits16="--case train_step_cpu --modes fwdbwd --set recipe=tir_vicreg_vits16 B=8 --samples 4 --without compile"
run train_step_vits16_cpu_avx2.json $vits16 --isa avx2
run train_step_vits16_cpu.json $vits16
run tir_overhead_cpu_avx2.json --case tir_overhead_cpu --modes fwdbwd --samples 10 --isa avx2
# a single thread; needs torchvision (of the same torch), albumentationsx and DALI too
OMP_NUM_THREADS=1 run views_cpu_avx2.json --case decode_cpu views_cpu --modes fwd --isa avx2
OMP_NUM_THREADS=1 run views_cpu.json --case decode_cpu views_cpu --modes fwd
