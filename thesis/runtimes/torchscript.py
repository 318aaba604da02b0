"""TorchScript on one CPU thread: the plan as PyTorch functions, traced and frozen."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from thesis.architecture import (
    INPUTS,
    LEAK,
    Activation,
    Add,
    Concat,
    Conv,
    Film,
    Gru,
    Layer,
    Node,
    Take,
    TransposedConv,
    Weights,
)
from thesis.config import N_INPUTS
from thesis.runtimes import contract
from thesis.runtimes.contract import Floats, TrainedDecoder

_TRACED_FRAMES = 64


class Session(contract.Session):
    """A decoder loaded for inference. PyTorch's threads belong to the process: one from now on."""

    channels_first = True

    def __init__(self, path: Path):
        """Loads a frozen module."""
        import torch

        torch.set_num_threads(1)
        self._torch = torch
        with _deprecated():
            self._module = torch.jit.load(path)

    def __call__(self, inputs: Floats) -> Floats:
        """See `contract.Session`."""
        with self._torch.inference_mode():
            outputs: Floats = self._module(self._torch.from_numpy(inputs)).numpy()
        return outputs


class TorchScript(contract.Runtime):
    """TorchScript, which PyTorch has deprecated and mobile and C++ hosts still load."""

    title = "TorchScript"
    distribution = "torch"
    install = 'pip install "ddsp-sweeps[torch]"'

    def _convert(self, model: TrainedDecoder, folder: Path) -> Path:
        import torch

        network = _network(torch, *model.folded)
        path = folder / "decoder.pt"
        with _deprecated(), torch.no_grad():
            traced = torch.jit.trace(network, torch.rand(1, N_INPUTS, _TRACED_FRAMES))
            torch.jit.save(torch.jit.freeze(traced.eval()), path)
        return path

    def _load(self, path: Path) -> Session:
        return Session(path)


RUNTIME = TorchScript()


@contextmanager
def _deprecated() -> Iterator[None]:
    """TorchScript is what this runtime is, deprecated or not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        yield


def _network(torch: Any, plan: tuple[Node, ...], weights: Weights) -> Any:
    """Returns a function of a plan, [1, 2, frames] -> [1, n_outputs, frames], to be traced."""
    f = torch.nn.functional
    tensors = {name: torch.tensor(np.asarray(value)) for name, value in weights.items()}

    def weight(node: Node, name: str) -> Any:
        return tensors[f"{node.name}/{name}"]

    def column(node: Node, name: str) -> Any:
        return weight(node, name)[None, :, None]

    def bias(layer: Layer) -> Any:
        return weight(layer, "bias") if layer.biased else None

    def conv(node: Conv, _: Any, x: Any) -> Any:
        # [taps, in, out] -> [out, in, taps], laid out so: else every call does it again.
        kernel = weight(node, "kernel").permute(2, 1, 0).contiguous()
        groups = node.ch_in if node.depthwise else 1
        x = f.pad(x, node.padding) if node.reach else x
        y = f.conv1d(x, kernel, bias(node), node.stride, 0, node.dilation, groups)
        return normed(node, y)

    def transposed_conv(node: TransposedConv, n_frames: Any, x: Any) -> Any:
        kernel = weight(node, "kernel").permute(1, 2, 0)  # [taps, in, out] -> [in, out, taps]
        y = f.conv_transpose1d(x, kernel, bias(node), node.stride)
        kept = (n_frames + node.period - 1) // node.period
        return normed(node, y[:, :, node.lookahead : node.lookahead + kept])

    def normed(layer: Layer, y: Any) -> Any:
        if layer.norm != "none":
            over = {"frame": [1], "time": [1, 2]}[layer.norm]
            if not layer.centred:
                y = y - y.mean(over, keepdim=True)
            y = y * torch.rsqrt((y * y).mean(over, keepdim=True) + layer.epsilon)
        if layer.rescaled:
            y = torch.addcmul(column(layer, "shift"), y, column(layer, "scale"))
        return activated(layer.activation, y)

    def activated(activation: Activation, y: Any) -> Any:
        if activation == "relu6":
            return f.relu6(y)
        return f.leaky_relu(y, LEAK) if activation == "leaky_relu" else y

    def film(node: Film, _: Any, x: Any, conditions: Any) -> Any:
        seen = conditions[:, :, :: node.period]

        def of_conditions(name: str) -> Any:
            kernel = weight(node, f"{name}_kernel").T[:, :, None]
            return f.conv1d(seen, kernel, weight(node, name))

        y = x * of_conditions("scale") if node.scaled else x
        return activated(node.activation, y + of_conditions("shift"))

    def gru(node: Gru, _: Any, x: Any) -> Any:
        # PyTorch has the reset first, where the plan has the update.
        parameters = [
            torch.cat([w.chunk(3)[gate] for gate in (1, 0, 2)])
            for w in (
                weight(node, "kernel").T,
                weight(node, "recurrent_kernel").T,
                *weight(node, "bias").unbind(),
            )
        ]
        zeros = torch.zeros(1, 1, node.ch_out)
        # With biases, one layer, no dropout, not in training, one direction, frames first.
        states, _ = torch.gru(
            x.permute(2, 0, 1), zeros, parameters, True, 1, 0.0, False, False, False
        )
        return states.permute(1, 2, 0)

    def add(_: Add, __: Any, *sources: Any) -> Any:
        return sum(sources[1:], sources[0])

    def take(node: Take, _: Any, x: Any) -> Any:
        return x[:, node.first : node.first + node.ch_out]

    def concat(_: Concat, __: Any, *sources: Any) -> Any:
        return torch.cat(sources, 1)

    layers: dict[type[Node], Callable[..., Any]] = {
        Conv: conv,
        TransposedConv: transposed_conv,
        Film: film,
        Gru: gru,
        Add: add,
        Take: take,
        Concat: concat,
    }

    class Network(torch.nn.Module):  # type: ignore[misc]
        def forward(self, inputs: Any) -> Any:
            values = {INPUTS: inputs}
            for node in plan:
                sources = [values[source] for source in node.sources]
                values[node.name] = layers[type(node)](node, inputs.shape[2], *sources)
            return values[plan[-1].name]

    return Network()
