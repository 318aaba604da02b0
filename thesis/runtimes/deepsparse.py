"""DeepSparse on one CPU core, in a process and an environment of its own.

Its last release, 1.8.0, is from before its end of life and needs older packages than the rest of
this project. Its licence is for evaluation only. So nothing installs it unless asked to.
"""

import os
import subprocess
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Any

from thesis.quantise import quantised_onnx
from thesis.runtimes import contract, deepsparse_worker
from thesis.runtimes.contract import Floats, Quantisation, TrainedDecoder

PYTHON_VARIABLE = "SWEEPS_DEEPSPARSE"
"""Environment variable with the Python interpreter of the environment that has DeepSparse."""


class Session(contract.Session):
    """A decoder loaded for inference, by a worker that is stopped with the session.

    The worker compiles it for the frames that come, and again for others.
    """

    channels_first = True

    def __init__(self, path: Path):
        """Starts a worker, which loads a model."""
        self._worker: Any = subprocess.Popen(
            [os.environ[PYTHON_VARIABLE], "-I", deepsparse_worker.__file__, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        weakref.finalize(self, _stop, self._worker)
        self._reply()

    def __call__(self, inputs: Floats) -> Floats:
        """See `contract.Session`."""
        self._request(inputs, outputs=True)
        outputs: Floats = self._reply()[1]
        return outputs

    def seconds(self, arranged: Floats) -> float:
        """As `contract.Session.seconds`, as the worker measures it: without the way to it."""
        self._request(arranged, outputs=False)
        seconds: float = self._reply()[0]["seconds"]
        return seconds

    def _request(self, inputs: Floats, *, outputs: bool) -> None:
        deepsparse_worker.send(self._worker.stdin, {"outputs": outputs}, inputs)

    def _reply(self) -> tuple[dict[str, Any], Any]:
        reply = deepsparse_worker.receive(self._worker.stdout)
        if reply is None:
            raise RuntimeError("DeepSparse's process has ended")
        if "error" in reply[0]:
            raise RuntimeError(reply[0]["error"])
        return reply


class DeepSparse(contract.Runtime):
    """DeepSparse, which reads ONNX itself."""

    title = "DeepSparse"
    distribution = "deepsparse"
    install = (
        "make runtimes DEEPSPARSE=1, "
        f"then export {PYTHON_VARIABLE}=$PWD/.venv-deepsparse/bin/python"
    )
    # It does not compute with nodes of floats between others that quantise: it hands them on to
    # the ONNX Runtime that it brings along.
    quantisations = tuple(
        Quantisation(ranges, "operators", norm)
        for ranges in ("minmax", "percentile", "entropy")
        for norm in (True, False)
    )

    @property
    def version(self) -> str | None:
        """The version that is installed in its own environment; None for none."""
        return _version(os.environ.get(PYTHON_VARIABLE, ""))

    def _convert(self, model: TrainedDecoder, folder: Path) -> Path:
        path = folder / "decoder.onnx"
        path.write_bytes(model.onnx)
        return path

    def _quantise(
        self, model: TrainedDecoder, folder: Path, how: Quantisation, inputs: Floats
    ) -> Path:
        path = folder / f"decoder-{how.name}.onnx"
        path.write_bytes(quantised_onnx(model, how, inputs))
        return path

    def _load(self, path: Path) -> Session:
        return Session(path)


RUNTIME = DeepSparse()


@lru_cache
def _version(python: str) -> str | None:
    if not python:
        return None
    ask = "from importlib.metadata import version; print(version('deepsparse'))"
    try:
        ran = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return ran.stdout.strip()


def _stop(worker: "subprocess.Popen[bytes]") -> None:
    with worker:  # closes its standard input, which ends it, and waits
        pass
