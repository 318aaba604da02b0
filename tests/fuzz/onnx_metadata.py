"""Fuzz target: ONNX models of a bundle, and what they say of themselves."""

import json
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from thesis.architecture import initial_weights
from thesis.config import DilatedConvStackConfig, SynthConfig
from thesis.errors import UserError
from thesis.export import decoder_onnx, decoder_stream_onnx, synth_stream_onnx
from thesis.runtimes.onnx_runtime import Session
from thesis.stream import DecoderStream, SynthStream

_DECODER = DilatedConvStackConfig(channels=2, layers_per_stack=1, stacks=1)
_SYNTH = SynthConfig(n_harmonics=2, n_noise_bands=3, reverb_seconds=0.01)
_WEIGHTS = initial_weights(_DECODER.plan(_SYNTH.n_outputs), seed=0)
_MODEL = _DECODER, _SYNTH, _WEIGHTS
_RATES = {"sample_rate": 16_000, "hop_size": 64}

_MODELS: dict[str, bytes] = {
    "decoder": decoder_onnx(*_MODEL, **_RATES),
    "decoder_stream": decoder_stream_onnx(*_MODEL, **_RATES),
    "synth_stream": synth_stream_onnx(*_MODEL, np.zeros(160, np.float32), **_RATES),
}
_N_FRAMES = 4
_CONTROLS = np.full(_N_FRAMES, 220, np.float32), np.full(_N_FRAMES, -20, np.float32)
_INPUTS = np.full((1, _N_FRAMES, 2), 0.5, np.float32)


def _play_decoder(model: bytes) -> object:
    session = Session(model)
    return session.decode(_INPUTS), session.decoder_config


def _play_decoder_stream(model: bytes) -> object:
    return DecoderStream(model)(_INPUTS)


def _play_synth_stream(model: bytes) -> object:
    return SynthStream(model)(*_CONTROLS)


_PLAYERS: dict[str, Callable[[bytes], object]] = {
    "decoder": _play_decoder,
    "decoder_stream": _play_decoder_stream,
    "synth_stream": _play_synth_stream,
}


def check(data: bytes) -> None:
    """Loads a model, and plays a few frames with it, as each artefact of a bundle.

    Args:
      data: A serialised model; or the metadata of one, a JSON object of texts, which good models
        of each kind are given.

    Raises:
      Exception: Anything but a `UserError` is a bug.
    """
    for artifact, play in _PLAYERS.items():
        model = _with_metadata(artifact, data) if data.startswith(b"{") else data
        with suppress(UserError):
            play(model)


def _with_metadata(artifact: str, data: bytes) -> bytes:
    """Returns a good model with other metadata; what is no object of texts is left out of it."""
    model = onnx.load_from_string(_MODELS[artifact])
    try:
        metadata = json.loads(data)
        texts = {key: value for key, value in metadata.items() if isinstance(value, str)}
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, texts)
        serialised: bytes = model.SerializeToString()
    except (ValueError, RecursionError, DecodeError):
        return _MODELS[artifact]
    return serialised


def _metadata_of(artifact: str) -> bytes:
    model = onnx.load_from_string(_MODELS[artifact])
    return json.dumps({entry.key: entry.value for entry in model.metadata_props}).encode()


SEEDS: list[bytes] = [*map(_metadata_of, _MODELS), *_MODELS.values()]
