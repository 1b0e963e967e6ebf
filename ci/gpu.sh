#!/usr/bin/env bash
# What needs a GPU. The two parts can run separately, where a GPU is available for minutes only:
#   gpu.sh tests             kernel, model and data tests on the GPU; one training step of the paper's recipe
#   gpu.sh bench [OPTIONS]   benchmark and plots; OPTIONS of `python -m bench` (--headline, --case ...)
#   gpu.sh                   both, with all cases
# Uses the Python on the path; results go to $OUT (default: gpu-out).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
out=${OUT:-gpu-out}
mkdir -p "$out"
part=${1:-all}
[ $# -eq 0 ] || shift
case $part in all | tests | bench) ;; *) echo "usage: gpu.sh [tests | bench [OPTIONS]]" >&2 && exit 2 ;; esac
python3 -m fastequi.cli doctor | tee "$out/doctor.txt"
if [ "$part" != bench ]; then
  python3 -m pytest -q -s \
    tests/test_attention.py tests/test_blur_recon.py tests/test_correspondence.py \
    tests/test_crop_align.py tests/test_dali.py tests/test_decoder.py tests/test_derivatives.py \
    tests/test_dino.py tests/test_gaussian_blur.py tests/test_koleo.py tests/test_linear_dino.py \
    tests/test_linear_blur_recon.py tests/test_linear_warp_recon.py tests/test_loader.py \
    tests/test_no_waiting.py tests/test_nt_xent.py tests/test_offline_compile.py \
    tests/test_rot90_batch.py tests/test_sinkhorn.py tests/test_tir.py tests/test_vicreg.py \
    tests/test_vit.py tests/test_warp.py tests/test_warp_packed.py tests/test_warp_recon.py \
    tests/test_warp_recon_geometry.py tests/test_warp_recon_packed.py 2>&1 |
    tee "$out/tests.txt"
  python3 -m fastequi.cli pretrain tir_vicreg_vits16 --dry-run --data.batch-size 256 |
    tee "$out/dry_run.txt"
fi
if [ "$part" != tests ]; then
  python3 -m bench --json "$out/bench.json" "$@" | tee "$out/bench.txt"
  if python3 -c "import matplotlib" 2>/dev/null; then
    python3 -m bench plot "$out/bench.json" "$out/plots"
  fi
fi
