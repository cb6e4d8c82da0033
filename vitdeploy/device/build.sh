#!/bin/sh
# Find a Python that has tensorrt and run build.py with it; all options are build.py's.
# Where no Python has tensorrt, trtexec builds alone: then nothing is compared with the golden
# outputs, and the exit code is 6 unless --no-check is given.
set -u
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 7

plain=
for python in "${PYTHON:-python3}" python3 /usr/bin/python3 python; do
    command -v "$python" >/dev/null 2>&1 || continue
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null || continue
    : "${plain:=$python}"
    if "$python" -c 'import tensorrt' >/dev/null 2>&1; then
        exec "$python" "$here/build.py" "$@"
    fi
done

if [ -z "$plain" ]; then
    echo "error: no Python 3.8 or newer. Install it: sudo apt install python3" >&2
    exit 6
fi
for trtexec in trtexec /usr/src/tensorrt/bin/trtexec /opt/tensorrt/bin/trtexec; do
    if command -v "$trtexec" >/dev/null 2>&1; then
        echo "no Python here has tensorrt: $trtexec builds alone" >&2
        exec "$plain" "$here/build.py" --trtexec "$trtexec" "$@"
    fi
done
exec "$plain" "$here/build.py" "$@" # says what to install
