"""Which code of this project runs here."""

import functools
import hashlib
from pathlib import Path

import sweeps
import thesis


@functools.cache
def code_version() -> str:
    """Returns the release and a digest of every module of `sweeps` and `thesis`, as imported.

    Wherever it lies: equal code has equal versions on every machine.
    """
    digest = hashlib.sha256()
    for package in (sweeps, thesis):
        for folder in map(Path, package.__path__):
            for path in sorted(folder.rglob("*.py")):
                name = path.relative_to(folder).as_posix()
                digest.update(f"{package.__name__}/{name}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{sweeps.__version__}+{digest.hexdigest()[:12]}"
