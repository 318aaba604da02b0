"""TVM on one CPU thread: the ONNX graph compiled to a shared library for this processor.

It is not tuned: what its schedules are by default. Needs a C compiler to link.
"""

from pathlib import Path

from thesis.architecture import Gru, TransposedConv
from thesis.runtimes import contract
from thesis.runtimes.contract import EVERY_NODE, Floats, TrainedDecoder


class Session(contract.Session):
    """A decoder loaded for inference. TVM's threads belong to the process: one from now on."""

    channels_first = True

    def __init__(self, path: Path):
        """Loads a shared library."""
        import tvm

        tvm.get_global_func("runtime.config_threadpool")(1, 1)
        self._tensor = tvm.runtime.tensor
        machine = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
        self._main = machine["main"]

    def __call__(self, inputs: Floats) -> Floats:
        """See `contract.Session`."""
        outputs: Floats = self._main(self._tensor(inputs)).numpy()
        return outputs


class Tvm(contract.Runtime):
    """Apache TVM, by way of its importer for ONNX."""

    title = "TVM"
    distribution = "apache-tvm"
    install = 'pip install "ddsp-sweeps[tvm]"'
    # Its importer has no GRU, and with a free number of frames no crop to another one.
    takes = EVERY_NODE - {Gru, TransposedConv}

    def _convert(self, model: TrainedDecoder, folder: Path) -> Path:
        import onnx
        import tvm
        from tvm.relax.frontend.onnx import from_onnx

        # Without the name of the processor it compiles for any x86-64: 190 us, not 115.
        processor = tvm.target.codegen.llvm_get_system_cpu()
        target = tvm.target.Target({"kind": "llvm", "mcpu": processor})
        path = folder / "decoder.so"
        tvm.compile(from_onnx(onnx.load_from_string(model.onnx)), target).export_library(str(path))
        return path

    def _load(self, path: Path) -> Session:
        return Session(path)


RUNTIME = Tvm()
