#!/usr/bin/env bash
# Our reading and writing of others' weights beside their own packages (timm, transformers): the
# tests marked `peers`, in .venv-peers with the versions of ci/peers.txt, whose torch is newer than
# ours. About 5 GB and, once it is installed, 5 minutes on 2 cores. Arguments are passed to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
[ -x .venv-peers/bin/pip ] || "$python" -m venv .venv-peers
source .venv-peers/bin/activate
stamp="$(cat pyproject.toml ci/peers.txt | sha256sum)"
if [ "$(cat .venv-peers/stamp 2>/dev/null)" != "$stamp" ]; then
  echo "installing ci/peers.txt into .venv-peers (once)" >&2
  python -m pip install --quiet --disable-pip-version-check -r ci/peers.txt -e .
  echo "$stamp" > .venv-peers/stamp
fi
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
# the other files import what is not installed here
mapfile -t files < <(grep -l "pytest.mark.peers" tests/test_*.py)
exec python -m pytest -m peers "${files[@]}" "$@"
