#!/usr/bin/env bash
# Lint, types and the tests that are not marked slow. Arguments are passed to pytest; the slow tests:
# ci/test.sh -m slow
# Fuzz tests take the same examples each time; `pytest` by itself draws new ones.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" dali,log,dev
ruff check .
ruff format --check .
mypy & # beside the tests, whose workers wait for each other while they collect
types=$!
# two workers of one thread each: Triton's interpreter, in which most tests run, uses one core
export OMP_NUM_THREADS=1
status=0
python -m pytest -n 2 --dist worksteal --hypothesis-profile same "$@" || status=$?
wait "$types"
exit "$status"
