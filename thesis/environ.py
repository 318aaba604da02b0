"""Environment variables for a while."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""Has Python processes look for no modules in the folder that they are started in."""


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Sets environment variables, for packages and processes that read them, and unsets them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
