# Sourced by the other scripts: activates .venv, after creating or updating it with the extras in $1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
  echo "Python 3.10 or newer is needed; '$python' is $("$python" --version 2>&1). Set PYTHON=..." >&2
  exit 1
}
if [ ! -x .venv/bin/pip ]; then
  "$python" -m venv .venv || {
    echo "cannot create .venv with $python (Debian and Ubuntu: apt-get install python3-venv)" >&2
    exit 1
  }
fi
source .venv/bin/activate
stamp="$1 $(cat pyproject.toml ci/constraints.txt | sha256sum)"
if [ "$(cat ".venv/stamp-$1" 2>/dev/null)" != "$stamp" ]; then
  echo "installing fastequi[$1] into .venv (once)" >&2
  python -m pip install --quiet --disable-pip-version-check -c ci/constraints.txt -e ".[$1]"
  echo "$stamp" > ".venv/stamp-$1"
fi
