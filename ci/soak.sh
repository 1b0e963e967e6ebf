#!/usr/bin/env bash
# Sends 200 SIGKILL or SIGTERM at random moments to a run of two processes and resumes it each time;
# its final weights have to be those of an uninterrupted run. About an hour on two cores; not part of
# ci/test.sh. Arguments are passed on: ci/soak.sh --kills 20 --steps 600
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHONPATH:-}" ]; then source ci/venv.sh dali,log; fi
export OMP_NUM_THREADS=1
exec python -m ci.soak "$@"
