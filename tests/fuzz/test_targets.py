"""Every fuzz target, on its seeds and some damaged copies; `make nightly` goes on from there."""

import importlib

import numpy as np
import pytest

from tests.fuzz.__main__ import TARGETS

COPIES = 20


def damaged(seed: bytes, rng: np.random.Generator) -> bytes:
    """A copy that is cut, or has some bytes replaced, put in or left out."""
    data = bytearray(seed)
    for _ in range(int(rng.integers(1, 5))):
        at, length = (int(rng.integers(0, n + 1)) for n in (len(data), 16))
        match rng.integers(4):
            case 0:
                data = data[:at]
            case 1:
                data[at : at + length] = rng.bytes(length)
            case 2:
                data[at:at] = bytes(length)
            case 3:
                del data[at : at + length]
    return bytes(data)


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_files_are_read_or_refused(target: str) -> None:
    module = importlib.import_module(f"tests.fuzz.{target}")
    rng = np.random.default_rng(0)
    for seed in module.SEEDS:
        module.check(seed)
        for _ in range(COPIES):
            module.check(damaged(seed, rng))
