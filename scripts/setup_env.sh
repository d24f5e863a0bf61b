#!/usr/bin/env bash
# Makes .venv with everything pinned in requirements-dev.txt and tood_jax itself. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -f .venv/installed ] && cmp -s .venv/installed <(cat requirements.txt requirements-dev.txt pyproject.toml); then
    exit 0
fi

python=""
for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
        python="$candidate"
        break
    fi
done
if [ -z "$python" ]; then
    echo "Python 3.11, 3.12 or 3.13 is needed; found $(python3 --version 2>&1). Install one, or name it: PYTHON=/path/to/python3.12 make demo" >&2
    exit 1
fi

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian and Ubuntu ship venv as a package of its own.
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -y -qq python3-venv
    else
        echo "Python's venv module is missing. Install it first: sudo apt-get install python3-venv" >&2
        exit 1
    fi
fi

echo "Installing into .venv (once, a few minutes) …"
rm -rf .venv
"$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --config-settings editable_mode=compat -e .
cat requirements.txt requirements-dev.txt pyproject.toml > .venv/installed
