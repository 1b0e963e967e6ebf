#!/usr/bin/env bash
# Runs the tests of the C kernels, the fuzz tests among them, under AddressSanitizer and
# UndefinedBehaviorSanitizer. Needs gcc with its sanitizer libraries. Uses .venv, or the Python on the
# path if PYTHONPATH is set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHONPATH:-}" ]; then source ci/venv.sh dali,log,dev; fi
export FASTEQUI_CACHE=${FASTEQUI_CACHE:-$(mktemp -d)}
export FASTEQUI_CFLAGS="-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all"
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
exec python -m pytest -q -s -p no:cacheprovider tests/test_native.py tests/test_native_dino.py \
  tests/test_native_sinkhorn.py tests/test_native_embeddings.py tests/test_native_correspondence.py \
  tests/test_native_vicreg.py tests/test_native_blur.py tests/test_fused_views.py \
  tests/test_fused_channels.py tests/test_warp.py tests/test_warp_recon.py tests/test_rot90_batch.py \
  tests/test_crop_align.py tests/test_correspondence.py tests/test_linear_dino.py \
  tests/test_many_channels.py tests/test_image_gradients.py tests/test_native_adjoint.py tests/test_gram.py \
  tests/test_short_attention.py tests/test_gelu.py \
  -k "native or fuzz or gram or short_attention or gelu" "$@"
