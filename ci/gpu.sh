#!/usr/bin/env bash
# Everything that needs a GPU, in one go: the kernel, model and data tests on the device, one real step
# of the paper's recipe, then the bench. Takes the Python on the path; results go to $OUT (default:
# gpu-out).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
out=${OUT:-gpu-out}
mkdir -p "$out"
python3 -m fastequi.cli doctor | tee "$out/doctor.txt"
python3 -m pytest -q tests/test_warp_recon.py tests/test_warp_recon_texels.py \
  tests/test_warp_recon_geometry.py tests/test_warp.py tests/test_warp_texels.py tests/test_blur.py \
  tests/test_linear_warp_recon.py \
  tests/test_attention.py tests/test_vit.py tests/test_decoder.py tests/test_tir.py \
  tests/test_dali.py tests/test_loader.py tests/test_offline_compile.py -s 2>&1 | tee "$out/tests.txt"
python3 -m fastequi.cli pretrain tir_vicreg_vits16 --dry-run --data.batch-size 256 \
  | tee "$out/dry_run.txt"
python3 -m bench --json "$out/bench.json" | tee "$out/bench.txt"
if python3 -c "import matplotlib" 2>/dev/null; then
  python3 -m bench plot "$out/bench.json" "$out/plots"
fi
