"""What a worker that crashed has said of it: Python tells of the signal, and where it was then."""

import re
from pathlib import Path

_FATAL = re.compile(
    r'Fatal Python error: ([^\n]+)\n(?:.*\n)*?  File "([^"\n]+)", line (\d+) in (.+)'
)
"""As `faulthandler`, which Ray's workers have on, writes it: the innermost frame first."""

_MOST_BYTES = 2**20


def last_words(logs: Path, told: str) -> str:
    """Returns how a worker crashed, '' if unknown: 'Segmentation fault (pitch.py, line 4 in f)'.

    Args:
      logs: Where Ray's workers of this machine write to.
      told: What Ray has said of the worker's end; it names the process.
    """
    process = re.search(r"\bpid: (\d+)", told)
    for log in logs.glob(f"worker-*-{process[1]}.err") if process else ():
        with log.open("rb") as file:
            said = file.read(_MOST_BYTES).decode(errors="replace")
        if fatal := _FATAL.search(said):
            what, path, line, function = fatal.groups()
            return f"{what} ({Path(path).name}, line {line} in {function})"
    return ""
