"""Fuzz target: any bytes as a stored configuration, as a user's run file, and as one `--set`."""

import tempfile
from functools import cache
from pathlib import Path

from sweeps.config import find_run, gin_root, load_run, parse_run
from sweeps.printable import in_a_line
from tests import ddsp_chain
from thesis.errors import UserError

SMALL = "search_space.axes = {'DilatedConvStack.channels': (2, 4)}\n"
CHAIN = f"""\
{ddsp_chain.CHAIN}Harmonic.scale_fn = @core.exp_sigmoid
Reverb.reverb_length = 8000
Reverb.trainable = True
train.losses = (@losses.SpectralLoss(), @second/losses.SpectralLoss())
second/SpectralLoss.mag_weight = 0.25
SpectralLoss.fft_sizes = (2048, 64)
"""

SEEDS: list[bytes] = [
    *(file.read_bytes() for file in sorted(gin_root().glob("*/*.gin"))),
    *(
        text.encode()
        for text in (
            SMALL + CHAIN,
            SMALL + "A = %B\nB = (%A, %A)\ntrain.steps = %A\n",
            SMALL + "include 'run.gin'\ninclude \"spaces/decoder.gin\"\n",
            SMALL + "import os\nfrom os import path as p\nfrom __gin__ import dynamic_registration",
            SMALL + "train:\n  steps = 5  # so many\n  seed = -1\nscope/train.seed = 1e999\n",
            SMALL + "sweep.baselines = ({'channels': 4}, {1: [True, None, -0.5e-3, 0x1F]})\n",
            SMALL + "sweep.objectives = ('val_loss', 3, b'rtf', 1j, ('x' \"y\" r'''z'''))\n",
            SMALL
            + "model.decoder = @a/b.RnnFc()\nA/macro.value = @gin.singleton\nX = %gin.REQUIRED",
            "search_space.axes = {'train.learning_rate': {'low': 1e-3, 'high': 1e-2, 'log': True}}",
            "STEPS=500",
            "CHANNELS=(4, 8)",
            "train.learning_rate=1e-3",
            "SAMPLER=random",
            "sweep.rungs=(0.25, 0.5)\nSEED=3",
        )
    ),
    b"\xef\xbb\xbftrain.steps = 1\r\n\x0c\ttrain.seed \\\r\n = 2\x00\xff",
    b"train.losses = " + b"(" * 300 + b"1" + b")" * 300,
]
"""Starts for a mutator: what ships, and a little of all that has gone wrong."""


def check(data: bytes) -> None:
    """Reads bytes by every door that takes gin's language.

    Raises:
      Exception: A door raised something else than a `UserError` with a hint.
    """
    text = data.decode("utf-8", "surrogateescape")
    file = _folder() / "run.gin"
    file.write_bytes(data)
    for read in (
        lambda: parse_run(text),
        lambda: load_run(file),
        lambda: load_run(find_run("tiny"), [text]),
    ):
        try:
            read()
        except UserError as error:
            if not (in_a_line(error.message) and in_a_line(error.hint)):
                raise AssertionError(f"{error!r} has no message or no hint") from error


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-gin-"))
