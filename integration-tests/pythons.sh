#!/usr/bin/env bash
# The suite, the package's own tests and the wheel on other Pythons, each in a virtual environment of its own.
# Usage: integration-tests/pythons.sh VERSION|PATH...
# A version that the machine does not have is reported and skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

find_python() {
    local wanted=$1 candidate
    [[ $wanted == */* ]] && candidates=("$wanted") ||
        candidates=("python$wanted" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$wanted".*/bin/python3)
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import venv' 2> /dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

for wanted in "$@"; do
    if ! python=$(find_python "$wanted"); then
        echo "NOT TESTED: Python $wanted is not available here" >&2
        continue
    fi
    version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
    echo "== Python $version ($python)"
    make PYTHON="$python" VENV="$PWD/.venv-$version" test-rust test-python test-wheel
done
