#!/usr/bin/env bash
# Lint, types and all tests. Arguments go to pytest: ci/test.sh -m slow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" dali,log,dev
ruff check .
ruff format --check .
mypy
# two workers of one thread each: the interpreter, which the kernel tests live in, is serial
export OMP_NUM_THREADS=1
exec python -m pytest -n 2 --dist worksteal "$@"
