"""Commands that run once: a folder holds what came out of one, and a mark that it is whole."""

import hashlib
import pathlib
import subprocess
import sys


def run_once(command, out, inputs=()):
    """Runs the command unless `out` holds its result already; whether it ran. The result depends on the command and on the
    files in `inputs`."""
    command = list(map(str, command))
    digest = hashlib.sha256("\0".join(command).encode())
    for path in inputs:
        digest.update(pathlib.Path(path).read_bytes())
    mark = out / "step"
    if mark.exists() and mark.read_text() == digest.hexdigest():
        return False
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "log", "w") as log:
        code = subprocess.call(command, stdout=log, stderr=log)
    if code != 0:
        sys.exit(f"failed: {' '.join(command)}\n{(out / 'log').read_text()}")
    mark.write_text(digest.hexdigest())
    return True
