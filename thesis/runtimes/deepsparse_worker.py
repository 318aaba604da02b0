"""Runs a decoder in DeepSparse: a script for the environment that DeepSparse has to itself.

`thesis.runtimes.deepsparse` starts it with that environment's interpreter; of this project it knows
nothing. A request is a line of JSON and then an array in NumPy's own format, of `bytes` bytes; a
reply is the same. The first reply says whether the model could be loaded.
"""

import io
import json
import os
import sys
import time
from typing import Any, BinaryIO

import numpy as np

FRAMES_TO_LOAD = 16


def main(path: str, requests: BinaryIO, replies: BinaryIO) -> None:
    """Serves requests until there are no more."""
    # Otherwise importing it looks up the machine's address and reports to its makers.
    os.environ["NM_DISABLE_ANALYTICS"] = "1"
    shape: Any = (1, 2, FRAMES_TO_LOAD)

    def compiled() -> Any:
        from deepsparse import compile_model

        return compile_model(path, batch_size=1, num_cores=1, input_shapes=[list(shape)])

    try:
        if not np.__version__.startswith("1."):
            raise RuntimeError("with NumPy 2 DeepSparse computes nonsense; it needs NumPy 1")
        engine = compiled()
        send(replies, {})
    except Exception as error:  # whatever it is, it goes to who started this
        send(replies, {"error": str(error).strip().partition("\n")[0]})
        return
    while (message := receive(requests)) is not None:
        request, inputs = message
        if inputs.shape != shape:
            shape = inputs.shape
            engine = compiled()
        start = time.perf_counter()
        (outputs,) = engine.run([inputs], val_inp=False)
        seconds = time.perf_counter() - start
        send(replies, {"seconds": seconds}, outputs if request["outputs"] else None)


def send(stream: BinaryIO, header: "dict[str, Any]", array: Any = None) -> None:
    """Writes a line of JSON and an array, if there is one."""
    content = io.BytesIO()
    if array is not None:
        np.save(content, array, allow_pickle=False)
    header["bytes"] = content.tell()
    stream.write(json.dumps(header).encode() + b"\n" + content.getvalue())
    stream.flush()


def receive(stream: BinaryIO) -> "tuple[dict[str, Any], Any] | None":
    """Returns what `send` wrote; None where nothing comes any more."""
    line = stream.readline()
    if not line:
        return None
    header = json.loads(line)
    content = stream.read(header["bytes"])
    return header, np.load(io.BytesIO(content), allow_pickle=False) if content else None


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "wb") as standard_output:
        os.dup2(2, 1)  # what DeepSparse prints is no reply
        main(sys.argv[1], sys.stdin.buffer, standard_output)
