#!/usr/bin/env bash
# 200 random SIGKILL and SIGTERM to a run of two processes; it has to end as if nothing had been.
# Arguments go through: ci/soak.sh --kills 20 --steps 600. Not in CI: about an hour on two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHONPATH:-}" ]; then source ci/venv.sh dali,log; fi
export OMP_NUM_THREADS=1
exec python -m ci.soak "$@"
