#!/usr/bin/env bash
# Pretrains a small ViT on the nine embedded photographs and evaluates its features: fastequi demo.
# Arguments go through: ci/demo.sh --minutes 15
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" dali,log
exec fastequi demo "$@"
