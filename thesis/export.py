"""A trained model as ONNX graphs, laid out for speed.

Graphs are written by hand rather than converted: channels first, so that a convolution is one
node and nothing is transposed, and the norm folded as far as it goes. At this size the layout and
the number of nodes matter more than the arithmetic.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from thesis.architecture import INPUTS, Weights, for_inference, initial_weights
from thesis.config import N_INPUTS, REFERENCE_DECODER, DecoderConfig, SynthConfig, gin_name
from thesis.onnx_decoder import count_frames, lay
from thesis.onnx_graph import Graph
from thesis.onnx_synth import F0, LOUDNESS, Synth, scaled_controls
from thesis.streaming import schedule, synthesis_delay

OUTPUTS = "outputs"
MAX_ERROR = 1e-4
"""An exported decoder may differ from the trained one by this much and no more."""


def decoder_onnx(
    config: DecoderConfig,
    synth: SynthConfig,
    weights: Weights,
    *,
    sample_rate: int,
    hop_size: int,
) -> bytes:
    """Returns the decoder as a serialised ONNX model.

    Input `inputs`, [1, 2, frames]: scaled loudness and f0 (see `thesis.controls.decoder_inputs`).
    Output `outputs`, [1, n_outputs, frames]: raw synthesiser parameters. `frames` is free. The
    metadata holds configuration, rates and how the channels are split.

    Args:
      config: The architecture.
      synth: How many outputs there are and what they mean.
      weights: Every weight of the plan by name.
      sample_rate: Of the audio, in Hz.
      hop_size: Samples a frame.
    """
    graph = Graph()
    plan, ready = for_inference(config.plan(synth.n_outputs), weights)
    graph.input(INPUTS, [1, N_INPUTS, "frames"])
    graph.rename(lay(graph, plan, ready), OUTPUTS)
    graph.output(OUTPUTS, [1, synth.n_outputs, "frames"])
    return graph.serialize("decoder", _metadata(config, synth, sample_rate, hop_size))


def decoder_stream_onnx(
    config: DecoderConfig,
    synth: SynthConfig,
    weights: Weights,
    *,
    sample_rate: int,
    hop_size: int,
) -> bytes:
    """Returns the decoder as a serialised ONNX model that takes its frames in blocks.

    As `decoder_onnx`, with states beside the inputs and the states of the next block beside the
    outputs: `state/NAME` and `next/NAME`, zeros at first. Outputs are late by `delay_frames` of the
    metadata, and a block holds a multiple of `cycle` frames. See `thesis.stream`.

    Raises:
      ExportError: The decoder cannot stream, see `thesis.streaming.schedule`.
    """
    graph = Graph()
    plan, ready = for_inference(config.plan(synth.n_outputs), weights)
    scheduled = schedule(plan)
    graph.input(INPUTS, [1, N_INPUTS, "frames"])
    if scheduled.delay:
        count_frames(graph, INPUTS, axis=2)
    graph.rename(lay(graph, plan, ready, scheduled), OUTPUTS)
    graph.output(OUTPUTS, [1, synth.n_outputs, "frames"])
    metadata = _metadata(config, synth, sample_rate, hop_size)
    metadata |= {"delay_frames": scheduled.delay, "cycle": scheduled.cycle}
    return graph.serialize("decoder_stream", metadata)


def synth_stream_onnx(
    config: DecoderConfig,
    synth: SynthConfig,
    weights: Weights,
    impulse_response: npt.NDArray[np.float32],
    *,
    sample_rate: int,
    hop_size: int,
) -> bytes:
    """Returns the whole model as a serialised ONNX model that plays its controls in blocks.

    Inputs `f0_hz` and `loudness_db`, [frames]; output `audio`, [frames * hop_size]; states as in
    `decoder_stream_onnx`, zeros at first but for `noise_key` (`thesis.controls.noise_key`). The
    audio is late by `latency_samples` of the metadata. See `thesis.stream`.

    Args:
      config: The architecture.
      synth: How many outputs there are and what they mean.
      weights: Every weight of the plan by name.
      impulse_response: The reverb as it is heard, [taps]; empty for none.
      sample_rate: Of the audio, in Hz.
      hop_size: Samples a frame.

    Raises:
      ExportError: The decoder cannot stream, see `thesis.streaming.schedule`.
    """
    graph = Graph()
    plan, ready = for_inference(config.plan(synth.n_outputs), weights)
    scheduled = schedule(plan)
    for name in (F0, LOUDNESS):
        graph.input(name, ["frames"])
    count_frames(graph, F0, axis=0)
    scaled_controls(graph, INPUTS)
    outputs = lay(graph, plan, ready, scheduled)
    Synth(graph, synth, sample_rate, hop_size, scheduled.delay).lay(
        outputs, impulse_response, loudness=LOUDNESS
    )
    delay = scheduled.delay + synthesis_delay(synth, hop_size)
    metadata = _metadata(config, synth, sample_rate, hop_size) | {
        "inputs": ["f0_hz", "loudness_db"],
        "outputs": ["audio"],
        "delay_frames": delay,
        "latency_samples": delay * hop_size,
        "cycle": scheduled.cycle,
    }
    return graph.serialize("synth_stream", metadata)


def synthesis_stream_onnx(
    config: DecoderConfig,
    synth: SynthConfig,
    impulse_response: npt.NDArray[np.float32],
    *,
    sample_rate: int,
    hop_size: int,
) -> bytes:
    """Returns the synthesiser alone as a serialised ONNX model that plays in blocks.

    As `synth_stream_onnx`, with a decoder's output in place of the loudness: `outputs`,
    [1, n_outputs, frames], of absolute levels (`thesis.controls.absolute_levels`), and `f0_hz`,
    [frames]. What plays a decoder that cannot stream.

    Args:
      config: The architecture of that decoder, for the metadata.
      synth: How many outputs there are and what they mean.
      impulse_response: The reverb as it is heard, [taps]; empty for none.
      sample_rate: Of the audio, in Hz.
      hop_size: Samples a frame.
    """
    graph = Graph()
    graph.input(OUTPUTS, [1, synth.n_outputs, "frames"])
    graph.input(F0, ["frames"])
    count_frames(graph, F0, axis=0)
    Synth(graph, synth, sample_rate, hop_size, late=0).lay(OUTPUTS, impulse_response)
    delay = synthesis_delay(synth, hop_size)
    metadata = _metadata(config, synth, sample_rate, hop_size) | {
        "inputs": [OUTPUTS, F0],
        "outputs": ["audio"],
        "delay_frames": delay,
        "latency_samples": delay * hop_size,
        "cycle": 1,
    }
    return graph.serialize("synthesis_stream", metadata)


def _metadata(
    config: DecoderConfig, synth: SynthConfig, sample_rate: int, hop_size: int
) -> dict[str, Any]:
    return {
        "decoder_type": gin_name(config),
        "decoder": asdict(config),
        "synth": asdict(synth),
        "sample_rate": sample_rate,
        "hop_size": hop_size,
        "receptive_field_frames": config.receptive_field_frames,
        "inputs": ["loudness_db / 80 + 1", "midi(f0_hz) / 127"],
        "outputs": {
            "amplitude": 1,
            "harmonic_distribution": synth.n_harmonics,
            "noise_magnitudes": synth.n_noise_bands,
        },
    }


def reference_onnx(*, sample_rate: int, hop_size: int) -> bytes:
    """Returns DDSP-CNN-Tiny exported the same way, with new weights: speed does not need more."""
    synth = SynthConfig()
    weights = initial_weights(REFERENCE_DECODER.plan(synth.n_outputs), seed=0)
    return decoder_onnx(
        REFERENCE_DECODER, synth, weights, sample_rate=sample_rate, hop_size=hop_size
    )
