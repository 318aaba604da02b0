"""Plays an exported model block by block, as an audio callback does. Needs ONNX Runtime only.

    stream = SynthStream(Path("bundle/synth_stream.onnx"))
    for f0_hz, loudness_db in blocks:
        audio = stream(f0_hz, loudness_db)

Whatever the blocks, the audio is that of the whole clip, later by `latency_samples`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thesis.config import N_INPUTS
from thesis.controls import noise_key
from thesis.errors import StreamError
from thesis.onnx_graph import NEXT, STATE
from thesis.runtimes.onnx_runtime import load, require_shape

Array = npt.NDArray[Any]


class _Stream:
    """A model and what it remembers.

    Attributes:
      facts: What the model says of itself.
      metadata: The same as JSON values by name.
      sample_rate: Of the audio, in Hz.
      hop_size: Samples a frame.
      synth: What the decoder's outputs mean.
      cycle: A block holds a multiple of so many frames.
      delay_frames: Frames by which the output is late.
    """

    artifact: str

    def __init__(self, model: bytes | Path) -> None:
        """Loads a model from its bytes or its file.

        Raises:
          ExportError: It cannot be read, or is another artefact.
        """
        self._model = load(model, self.artifact)
        facts = self._model.facts
        self.facts = facts
        self.metadata = self._model.metadata
        self.sample_rate: int = facts.sample_rate
        self.hop_size: int = facts.hop_size
        self.synth = facts.synth
        self.cycle: int = facts.cycle
        self.delay_frames: int = facts.delay_frames
        self._state = self._silence()
        self._names = [output.name for output in self._model.session.get_outputs()]

    @property
    def state(self) -> dict[str, Array]:
        """What is remembered, by name: a copy, to be set again later.

        Setting it raises StreamError for another name, shape or type than the model's.
        """
        return {name: value.copy() for name, value in self._state.items()}

    @state.setter
    def state(self, state: Mapping[str, Array]) -> None:
        expected = self._silence()
        if state.keys() != expected.keys():
            odd = sorted(state.keys() ^ expected.keys())
            raise StreamError(f"the state has other names: {', '.join(odd)}", hint=_STATE_HINT)
        for name, value in state.items():
            want = expected[name]
            if value.shape != want.shape or value.dtype != want.dtype:
                raise StreamError(
                    f"state '{name}' is {value.dtype} {list(value.shape)}, "
                    f"not {want.dtype} {list(want.shape)}",
                    hint=_STATE_HINT,
                )
        self._state = {name: value.copy() for name, value in state.items()}

    def reset(self) -> None:
        """Forgets all: the next block is the first of a clip."""
        self._state = self._silence()

    def _silence(self) -> dict[str, Array]:
        return {name: state.zeros for name, state in self.facts.states.items()}

    def _run(self, inputs: Mapping[str, Array]) -> Array:
        """Runs a block of controls, [..., frames], and remembers what the next one needs."""
        for name, value in inputs.items():
            n_frames = value.shape[-1]
            if n_frames == 0 or n_frames % self.cycle:
                raise StreamError(
                    f"a block of {n_frames} frames",
                    hint=f"this model takes multiples of {self.cycle}, from {self.cycle} on",
                )
            if not np.isfinite(value).all():
                # It would stay in the state for good.
                raise StreamError(
                    f"{name} holds values that are not finite",
                    hint="where there is no pitch, f0 is 0; silence is -80 dB",
                )
        states = {STATE + name: value for name, value in self._state.items()}
        values = dict(zip(self._names, self._model({**inputs, **states}), strict=True))
        self._state = {name: values.pop(NEXT + name) for name in self._state}
        output: Array
        (output,) = values.values()
        return output


_STATE_HINT = "take what `state` of a stream of the same model gave"


class DecoderStream(_Stream):
    """A decoder, block by block: controls in, raw synthesiser parameters out."""

    artifact = "decoder_stream"

    def __call__(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Returns the outputs of the next block, [1, frames, n_outputs].

        Args:
          inputs: [1, frames, 2], see `thesis.controls.decoder_inputs`.

        Raises:
          StreamError: Inputs of another shape, not finite, or not a multiple of `cycle` frames.
        """
        if inputs.ndim != 3 or inputs.shape[0] != 1 or inputs.shape[2] != N_INPUTS:
            raise StreamError(
                f"inputs of shape {list(inputs.shape)}", hint=f"[1, frames, {N_INPUTS}] is taken"
            )
        channels_first = inputs.transpose(0, 2, 1).astype(np.float32, order="C")
        outputs: npt.NDArray[np.float32] = self._run({"inputs": channels_first})
        shape = (1, self.synth.n_outputs, inputs.shape[1])
        require_shape(self._model.name, outputs, shape)
        return outputs.transpose(0, 2, 1)


class _AudioStream(_Stream):
    """A model that gives audio: with noise, and a latency in samples."""

    def __init__(self, model: bytes | Path, *, seed: int = 0) -> None:
        """Loads a model.

        Args:
          model: Its bytes or its file.
          seed: Of the noise.

        Raises:
          ExportError: It cannot be read, or is another artefact.
        """
        self._seed = seed
        super().__init__(model)

    @property
    def latency_samples(self) -> int:
        """Samples by which the audio is later than its controls."""
        return self.delay_frames * self.hop_size

    def _silence(self) -> dict[str, Array]:
        silence = super()._silence()
        return silence | {"noise_key": np.array([noise_key(self._seed)], np.int64)}

    def _play(self, inputs: Mapping[str, Array], n_frames: int) -> npt.NDArray[np.float32]:
        audio = self._run(inputs)
        require_shape(self._model.name, audio, (n_frames * self.hop_size,))
        return audio


class SynthStream(_AudioStream):
    """A whole model, block by block: pitch and loudness in, audio out."""

    artifact = "synth_stream"

    def __call__(self, f0_hz: Array, loudness_db: Array) -> npt.NDArray[np.float32]:
        """Returns the audio of the next block, [frames * hop_size].

        Args:
          f0_hz: Pitch in Hz, [frames]; 0 or less where there is none.
          loudness_db: Loudness in dB, -80 to 0, [frames].

        Raises:
          StreamError: Controls of another shape, not finite, or not a multiple of `cycle` frames.
          ExportError: The model fails, or gives another length, which no exported model does.
        """
        if f0_hz.ndim != 1 or f0_hz.shape != loudness_db.shape:
            raise StreamError(
                f"f0_hz of shape {list(f0_hz.shape)}, loudness_db {list(loudness_db.shape)}",
                hint="both are [frames]",
            )
        controls = {"f0_hz": f0_hz, "loudness_db": loudness_db}
        return self._play({k: x.astype(np.float32) for k, x in controls.items()}, f0_hz.size)


class SynthesisStream(_AudioStream):
    """The synthesiser alone, block by block: a decoder's output and pitch in, audio out.

    What plays a decoder that cannot stream; see `thesis.export.synthesis_stream_onnx`.
    """

    artifact = "synthesis_stream"

    def __call__(
        self, outputs: npt.NDArray[np.float32], f0_hz: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Returns the audio of the next block, [frames * hop_size].

        Args:
          outputs: The decoder's, raw, [frames, n_outputs].
          f0_hz: Pitch in Hz, [frames]; 0 or less where there is none.

        Raises:
          StreamError: No frame, or values that are not finite.
        """
        channels_first = np.ascontiguousarray(outputs.T, np.float32)[None]
        return self._play({"outputs": channels_first, "f0_hz": f0_hz}, f0_hz.size)
