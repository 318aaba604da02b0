"""The way to DeepSparse's own environment, where that environment is not what it should be."""

import io
import sys

import numpy as np
import pytest

from thesis.errors import ExportError
from thesis.runtimes import runtime
from thesis.runtimes.deepsparse import PYTHON_VARIABLE
from thesis.runtimes.deepsparse_worker import receive, send


@pytest.mark.parametrize("python", ["", "/nowhere/python", sys.executable])
def test_an_interpreter_without_deepsparse_is_no_installation(monkeypatch, python):
    monkeypatch.setenv(PYTHON_VARIABLE, python)
    assert runtime("deepsparse").version is None


def test_what_the_worker_cannot_do_is_one_error_that_says_why(monkeypatch, tmp_path):
    found = runtime("deepsparse")
    monkeypatch.setenv(PYTHON_VARIABLE, sys.executable)  # which has another NumPy
    monkeypatch.setattr(type(found), "version", "1.8.0")
    (tmp_path / "decoder.onnx").write_bytes(b"")
    with pytest.raises(ExportError, match="with NumPy 2 DeepSparse computes nonsense"):
        found.load(tmp_path / "decoder.onnx")


def test_messages_arrive_as_they_were_sent_and_end_where_the_stream_does():
    stream = io.BytesIO()
    array = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    send(stream, {"outputs": True}, array)
    send(stream, {"seconds": 0.5})
    stream.seek(0)
    header, received = receive(stream)
    assert header["outputs"] is True
    np.testing.assert_array_equal(received, array)
    header, received = receive(stream)
    assert (header["seconds"], received) == (0.5, None)
    assert receive(stream) is None
