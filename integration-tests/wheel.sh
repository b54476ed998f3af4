#!/usr/bin/env bash
# The wheel, as a user gets it: a fresh virtual environment, no compiler, the source tree out of reach.
# Usage: integration-tests/wheel.sh PYTHON WHEEL
set -euo pipefail
python=$1
wheel=$(realpath "$2")
repository=$(realpath "$(dirname "$0")/..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$wheel" "$work"
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-index "$work"/*.whl
cat > "$work/app.py" <<'PY'
import rebeam
from rebeam import Actor, Supervisor, child


class Hello(Actor):
    def hello(self, name: str) -> str:
        return f"hello {name} from {rebeam.__file__}"


tree = Supervisor([child(Hello, name="hello")])
PY
cat > "$work/check" <<SH
set -euo pipefail
cd "$work"
export PATH="$work/venv/bin:/usr/bin:/bin" HOME="$work" REBEAM_RUNTIME_DIR="$work/run"
unset VIRTUAL_ENV REBEAM_PYTHON
rebeam up app:tree 2> up.log & up=\$!
for _ in \$(seq 400); do grep -q 'up with 1 actor' up.log && break; sleep 0.05; done
answer=\$(rebeam call hello hello world)
rebeam down
wait \$up
echo "\$answer"
[[ "\$answer" == "hello world from $work/venv/"* ]]
SH
if unshare --mount true 2> /dev/null; then
    # An empty file system over the repository: nothing of it can be found by accident.
    unshare --mount bash -c "mount -t tmpfs none '$repository' && bash '$work/check'"
else
    echo "wheel.sh: no mount namespace is available here; the source tree is only left aside" >&2
    bash "$work/check"
fi
echo "the wheel works"
