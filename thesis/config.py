"""What can be configured: a frozen, validated dataclass for each stage, and its name in gin.

No TensorFlow here: parameter counts and receptive fields are closed forms of the configuration,
so a candidate that is too large is turned away before anything heavy is imported.
The rest of the library is gin-free and takes these dataclasses.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, fields
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import gin

from thesis.architecture import (
    INPUTS,
    Activation,
    Add,
    Concat,
    Conv,
    Film,
    Gru,
    Node,
    Norm,
    Take,
    TransposedConv,
    macs_per_frame,
    receptive_field,
)
from thesis.errors import ConfigError, UserError

T = TypeVar("T")

N_INPUTS = 2
"""Decoder inputs a frame: scaled loudness and scaled f0, in this order."""
KERAS_EPSILON = 1e-3
"""Added to the variance by the layer norm of Keras, and so of ddsp's dense layers."""
MAX_RESAMPLING = 64
"""Resampling does not go beyond this factor, a quarter of a second at 250 frames a second."""


def gin_name(owner: object) -> str:
    """Returns what a part of a configuration is called in gin files."""
    return next(name for name, stage in CONFIGS.items() if isinstance(owner, stage))


def _check_range(owner: object, name: str, low: float, high: float) -> None:
    value = getattr(owner, name)
    if not low <= value <= high:
        raise ConfigError(
            f"{gin_name(owner)}.{name} = {value!r} is outside its range",
            hint=f"{name} must be between {low:g} and {high:g}",
        )


def _check_types(owner: object) -> None:
    """Raises ConfigError for a value of another type than its field, before it does harm."""
    kind: Any = type(owner)
    hints = _type_hints(kind)
    for f in fields(owner):  # type: ignore[arg-type]
        value, hint = getattr(owner, f.name), hints[f.name]
        if get_origin(hint) is Literal:
            choices = get_args(hint)
            if value not in choices:
                raise ConfigError(
                    f"{gin_name(owner)}.{f.name} = {value!r} is not a choice",
                    hint=f"{f.name} must be one of {', '.join(map(repr, choices))}",
                )
            continue
        allowed = (int, float) if hint is float else get_origin(hint) or hint
        # bool is an int to Python; `channels = True` is a mistake all the same.
        if not isinstance(value, allowed) or (isinstance(value, bool) and hint is not bool):
            raise ConfigError(
                f"{gin_name(owner)}.{f.name} = {value!r} has the wrong type",
                hint=f"{f.name} must be of type {hint.__name__}",
            )


@cache
def _type_hints(owner: type) -> dict[str, Any]:
    return get_type_hints(owner)  # which takes longer than all else that a configuration needs


@dataclass(frozen=True)
class DecoderConfig(ABC):
    """An architecture of a decoder: what gives a plan, and what is known of it before training."""

    @abstractmethod
    def plan(self, n_outputs: int) -> tuple[Node, ...]:
        """Returns the network as a plan, whose last node is a `Conv` named 'output'."""

    @abstractmethod
    def inactive_parameters(self) -> frozenset[str]:
        """Names of parameters whose value makes no difference to this model."""

    @property
    def receptive_field_frames(self) -> int | None:
        """Input frames from the first to the last that one output frame depends on, at most.

        None without a bound.
        """
        return receptive_field(self.plan(1))[0]

    @property
    def lookahead_frames(self) -> int | None:
        """Input frames after its own that an output frame depends on; None without a bound."""
        return receptive_field(self.plan(1))[1]

    @property
    def streamable(self) -> bool:
        """Whether each output frame can be had as soon as its input frame is there."""
        return self.lookahead_frames == 0

    def parameter_count(self, n_outputs: int) -> int:
        """Returns the number of trained weights, the output layer included."""
        return sum(node.parameter_count for node in self.plan(n_outputs))

    def macs_per_frame(self, n_outputs: int) -> int:
        """Returns the multiply-accumulates of the network for one frame, rounded up."""
        return macs_per_frame(self.plan(n_outputs))


@dataclass(frozen=True)
class DilatedConvStackConfig(DecoderConfig):
    """A stack of dilated 1-D convolutions from controls to synthesiser parameters.

    The decoder of DDSP-CNN: an input convolution, then `stacks` times `layers_per_stack` residual
    blocks with dilation `dilation_base ** layer`, then a linear output layer. Without resampling
    and norm 'time', the receptive field is `1 + (k-1) * (1 + sum of dilations)` frames.

    Attributes:
      channels: Width of every hidden layer, 1 to 1024.
      layers_per_stack: Residual blocks in a stack, 1 to 12.
      stacks: How often the pattern of dilations repeats, 1 to 12.
      kernel_size: Frames that one convolution sees, 1 to 15.
      dilation_base: Base of the dilation, 1 to 8; 1 means no dilation.
      block: 'plain', one dilated convolution; or 'inverted_bottleneck', expand 1x1, depthwise
        dilated, project 1x1 (Sandler et al. 2018, MobileNetV2).
      expansion: Channel multiplier inside an inverted bottleneck, 1 to 8. Without effect on plain
        blocks.
      causal: Pad on the left only, so that no convolution sees a later frame. With norm 'time' the
        decoder sees the end of the clip all the same, see `streamable`.
      norm: 'none'; 'frame', layer norm over the channels of each frame, which leaves little more
        than signs of one or two channels; 'batch', batch norm, folded into the convolutions at
        export; 'time', ddsp's own: moments over all frames and channels of the clip.
      resample: 'none'; 'downsample', strided convolutions between stacks, and one transposed one
        after the last stack that brings the frame rate back; 'upsample', the mirror image: one
        strided convolution first, transposed ones between stacks. All of them are linear.
      resample_stride: Factor of one resampling, 2 to 8. Resamplings that would take the total
        factor beyond 64 are left out.
      stacks_per_resample: Stacks to a resampling, 1 to 12, or all that there are if they are
        fewer. Those left over in the end have none.
      resample_after_convolve: Whether a resampling follows its stacks or comes before them.
      conditioning: What the norm that ends a residual block takes its scale and shift from:
        'none', constants that are learned; 'scale_and_shift', linear layers of the controls, frame
        by frame (Perez et al. 2018, FiLM); 'shift', the shift only, and no scale.
    """

    channels: int = 8
    layers_per_stack: int = 3
    stacks: int = 2
    kernel_size: int = 3
    dilation_base: int = 3
    block: Literal["plain", "inverted_bottleneck"] = "plain"
    expansion: int = 2
    causal: bool = True
    norm: Norm = "frame"
    resample: Literal["none", "downsample", "upsample"] = "none"
    resample_stride: int = 2
    stacks_per_resample: int = 1
    resample_after_convolve: bool = True
    conditioning: Literal["none", "shift", "scale_and_shift"] = "none"

    def __post_init__(self) -> None:
        _check_types(self)
        _check_range(self, "channels", 1, 1024)
        _check_range(self, "layers_per_stack", 1, 12)
        _check_range(self, "stacks", 1, 12)
        _check_range(self, "kernel_size", 1, 15)
        _check_range(self, "dilation_base", 1, 8)
        _check_range(self, "expansion", 1, 8)
        _check_range(self, "resample_stride", 2, 8)
        _check_range(self, "stacks_per_resample", 1, 12)

    @property
    def dilations(self) -> tuple[int, ...]:
        """Dilation of each residual block, in frames, first block first."""
        return tuple(self.dilation_base**layer for layer in range(self.layers_per_stack)) * (
            self.stacks
        )

    @property
    def resamplings(self) -> tuple[int, ...]:
        """How many stacks come before each resampling."""
        if self.resample == "none":
            return ()
        every = min(self.stacks_per_resample, self.stacks)
        after = self.resample_after_convolve
        positions = range(every if after else 0, self.stacks + after, every)
        return tuple(
            position
            for i, position in enumerate(positions)
            if self.resample_stride ** (i + 1) <= MAX_RESAMPLING
        )

    def inactive_parameters(self) -> frozenset[str]:
        """Names of parameters whose value makes no difference to this model."""
        inactive = set()
        if self.block == "plain":
            inactive.add("expansion")
        if self.layers_per_stack == 1 or self.kernel_size == 1:
            inactive.add("dilation_base")
        if not self.resamplings and (self.kernel_size - 1) * max(self.dilations) <= 1:
            # The only frame to pad goes before the others in either case.
            inactive.add("causal")
        if self.resample == "none":
            inactive |= {"resample_stride", "resample_after_convolve"}
        if self.resample == "none" or self.stacks == 1:
            inactive.add("stacks_per_resample")
        return frozenset(inactive)

    def plan(self, n_outputs: int) -> tuple[Node, ...]:
        """Returns the network as a plan: input, stacks of residual blocks, linear output."""
        resamplings = self.resamplings
        total = self.resample_stride ** len(resamplings)
        x: Node = Conv(
            "input", (INPUTS,), self.channels, N_INPUTS, self.kernel_size,
            lookahead=self._lookahead(1), norm=self.norm, activation="relu6",
        )  # fmt: skip
        plan = [x]
        if self.resample == "upsample":
            plan.append(self._down("mirror", x, total))
        for stack in range(self.stacks + 1):
            if stack in resamplings:
                step = self._up if self.resample == "upsample" else self._down
                name = f"resample_{resamplings.index(stack)}"
                plan.append(step(name, plan[-1], self.resample_stride))
            if stack < self.stacks:
                for layer in range(self.layers_per_stack):
                    name = f"block_{stack * self.layers_per_stack + layer}"
                    plan += self._block(name, plan[-1], self.dilation_base**layer)
        if self.resample == "downsample":
            plan.append(self._up("mirror", plan[-1], total))
        return (*plan, Conv("output", (plan[-1].name,), n_outputs, self.channels))

    def _lookahead(self, dilation: int) -> int:
        return 0 if self.causal else (self.kernel_size - 1) * dilation // 2

    def _down(self, name: str, source: Node, stride: int) -> Conv:
        """Returns a strided convolution; it is linear, so that it keeps the size of the sums.

        Causal, an output frame sees its own input frame and those that were skipped before;
        otherwise its own and those that are skipped after it.
        """
        ch = self.channels
        return Conv(
            name, (source.name,), ch, ch, stride,
            lookahead=0 if self.causal else stride - 1, stride=stride,
            period=source.period * stride,
        )  # fmt: skip

    def _up(self, name: str, source: Node, stride: int) -> TransposedConv:
        """Returns a transposed convolution: what `_down` left, in the place where it was."""
        ch = self.channels
        return TransposedConv(
            name, (source.name,), ch, ch, stride, 0 if self.causal else stride // 2,
            period=source.period // stride,
        )  # fmt: skip

    def _block(self, name: str, source: Node, dilation: int) -> list[Node]:
        """Returns one residual block."""
        k, ch, norm, period = self.kernel_size, self.channels, self.norm, source.period
        ahead, learned = self._lookahead(dilation), self.conditioning == "none"
        plain = self.block == "plain"
        block: list[Node]
        if plain:
            block = [
                Conv(
                    name, (source.name,), ch, ch, k, dilation, ahead,
                    norm=norm, affine=learned, activation="relu6" if learned else "none",
                    period=period,
                )
            ]  # fmt: skip
        else:
            expand, depthwise, wide = f"{name}/expand", f"{name}/depthwise", ch * self.expansion
            block = [
                Conv(
                    expand, (source.name,), wide, ch,
                    norm=norm, activation="relu6", period=period,
                ),
                Conv(
                    depthwise, (expand,), wide, wide, k, dilation, ahead,
                    depthwise=True, norm=norm, activation="relu6", period=period,
                ),
                Conv(
                    f"{name}/project", (depthwise,), ch, wide,
                    norm=norm, affine=learned, period=period,
                ),
            ]  # fmt: skip
        if not learned:
            last: Activation
            film, scaled = f"{name}/film", self.conditioning == "scale_and_shift"
            x = block[-1].name
            last = "relu6" if plain else "none"
            block.append(Film(film, (x, INPUTS), ch, N_INPUTS, scaled, last, period=period))
        return [*block, Add(f"{name}/sum", (source.name, block[-1].name), ch, period=period)]


@dataclass(frozen=True)
class RnnFcConfig(DecoderConfig):
    """A recurrent decoder: ddsp's `RnnFcDecoder`, that of DDSP-full (Engel et al. 2020).

    A stack of dense layers for each control; a GRU over both; another stack over their outputs and
    the GRU's; a linear output layer. A dense layer is ddsp's `Fc`: with layer norm over the
    channels of each frame, and a leaky ReLU. It streams: the state sums up all frames before.

    Attributes:
      rnn_channels: Width of the GRU, 1 to 2048.
      channels: Width of the dense layers, 1 to 2048. Over fewer than three, layer norm leaves
        little more than signs.
      layers_per_stack: Dense layers in each of the three stacks, 0 to 12; 0 leaves them out.
    """

    rnn_channels: int = 512
    channels: int = 512
    layers_per_stack: int = 3

    def __post_init__(self) -> None:
        _check_types(self)
        _check_range(self, "rnn_channels", 1, 2048)
        _check_range(self, "channels", 1, 2048)
        _check_range(self, "layers_per_stack", 0, 12)

    def inactive_parameters(self) -> frozenset[str]:
        """Names of parameters whose value makes no difference to this model."""
        return frozenset() if self.layers_per_stack else frozenset({"channels"})

    def plan(self, n_outputs: int) -> tuple[Node, ...]:
        """Returns the network as a plan: a stack for each control, GRU, stack, linear output."""
        loudness = self._stack("loudness", Take("loudness/control", (INPUTS,), 1, 0))
        f0 = self._stack("f0", Take("f0/control", (INPUTS,), 1, 1))
        controls = _concat("controls", loudness[-1], f0[-1])
        rnn = Gru("rnn", (controls.name,), self.rnn_channels, controls.ch_out)
        out = self._stack("out", _concat("out/inputs", loudness[-1], f0[-1], rnn))
        output = Conv("output", (out[-1].name,), n_outputs, out[-1].ch_out)
        return (*loudness, *f0, controls, rnn, *out, output)

    def _stack(self, name: str, source: Node) -> list[Node]:
        """Returns a node and the dense layers that follow it."""
        stack = [source]
        for i in range(self.layers_per_stack):
            x = stack[-1]
            stack.append(
                Conv(
                    f"{name}/{i}", (x.name,), self.channels, x.ch_out,
                    norm="frame", norm_epsilon=KERAS_EPSILON, bias=True, activation="leaky_relu",
                )
            )  # fmt: skip
        return stack


def _concat(name: str, *sources: Node) -> Concat:
    return Concat(name, tuple(x.name for x in sources), sum(x.ch_out for x in sources))


@dataclass(frozen=True)
class SynthConfig:
    """Harmonic oscillators, filtered noise and a trainable reverb (Engel et al. 2020, DDSP).

    Sample rate and hop size are facts of the dataset and are not repeated here.

    Attributes:
      n_harmonics: Sinusoids at multiples of f0, 1 to 200.
      n_noise_bands: Bands of the noise filter from 0 Hz to Nyquist, 3 to 257.
      reverb_seconds: Length of the impulse response, 0 to 4 s; 0 leaves the reverb out.
      reverb_decay_seconds: Time in which an envelope on the impulse response falls by 60 dB, 0 to
        60 s; 0 for no envelope. See `thesis.reference.reverb_envelope`.
      hop_multiple: The decoder runs on every n-th frame of the dataset, 1 to 16, and one of its
        frames lasts as many hops. At 2 it does half of the arithmetic.
      levels: 'loudness': the decoder's amplitude and noise magnitudes are deviations from the
        loudness that it is given, see `thesis.controls.absolute_levels`; 'absolute', as in ddsp.
      processor_group: A chain of ddsp's processors, which this one is to render alike; then
        `reverb_seconds` is that of the chain, and gin may not bind it to another. Not kept. See
        `thesis.from_ddsp`.
    """

    n_harmonics: int = 60
    n_noise_bands: int = 65
    reverb_seconds: float = 1.0
    reverb_decay_seconds: float = 0.0
    hop_multiple: int = 1
    levels: Literal["loudness", "absolute"] = "loudness"
    processor_group: InitVar[Any] = None

    def __post_init__(self, processor_group: Any) -> None:
        _check_types(self)
        if processor_group is not None:
            # TensorFlow, which is here already if there is a ProcessorGroup.
            from thesis.from_ddsp import reverb_seconds

            seconds = reverb_seconds(processor_group, self.n_noise_bands)
            object.__setattr__(self, "reverb_seconds", seconds)
        _check_range(self, "n_harmonics", 1, 200)
        _check_range(self, "n_noise_bands", 3, 257)
        _check_range(self, "reverb_seconds", 0, 4)
        _check_range(self, "reverb_decay_seconds", 0, 60)
        _check_range(self, "hop_multiple", 1, 16)

    @property
    def n_outputs(self) -> int:
        """Channels of the decoder's output: amplitude, harmonic distribution, noise magnitudes."""
        return 1 + self.n_harmonics + self.n_noise_bands

    @property
    def oscillators(self) -> "SynthConfig":
        """The same harmonics, noise bands and levels, all else as by default.

        Two configurations that are equal in this share their compiled synthesis.
        """
        return SynthConfig(self.n_harmonics, self.n_noise_bands, levels=self.levels)

    def reverb_length(self, sample_rate: int) -> int:
        """Returns the number of taps of the impulse response."""
        return round(self.reverb_seconds * sample_rate)

    def hop_size(self, dataset_hop_size: int) -> int:
        """Returns the samples from one of the decoder's frames to the next."""
        return self.hop_multiple * dataset_hop_size

    def inactive_parameters(self) -> frozenset[str]:
        """Names of parameters whose value makes no difference to this model."""
        return frozenset() if self.reverb_seconds else frozenset({"reverb_decay_seconds"})


@dataclass(frozen=True)
class SpectralLoss:
    """Settings of a `ddsp.losses.SpectralLoss`; see there.

    Attributes:
      fft_sizes: Frames of the spectrograms that are compared, in samples.
      loss_type: Mean of absolute ('L1') or squared ('L2') differences.
      mag_weight: Of magnitudes.
      delta_time_weight: Of their differences from frame to frame.
      delta_freq_weight: Of their differences from bin to bin.
      cumsum_freq_weight: Of their sums over the bins below.
      logmag_weight: Of log magnitudes.
      loudness_weight: Of A-weighted loudness.
    """

    fft_sizes: tuple[int, ...] = (2048, 1024, 512, 256, 128, 64)
    loss_type: str = "L1"
    mag_weight: float = 1.0
    delta_time_weight: float = 0.0
    delta_freq_weight: float = 0.0
    cumsum_freq_weight: float = 0.0
    logmag_weight: float = 0.0
    loudness_weight: float = 0.0

    WEIGHTS: ClassVar[tuple[str, ...]] = (
        "mag_weight",
        "delta_time_weight",
        "delta_freq_weight",
        "cumsum_freq_weight",
        "logmag_weight",
        "loudness_weight",
    )


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
      steps: Optimiser steps, 0 to 10 million.
      batch_size: Clips a step, 1 to 512.
      learning_rate: Adam's largest step size, 1e-8 to 10.
      schedule: 'cosine': the step size rises for `warmup_steps`, then falls to zero over the other
        steps as half a cosine (Loshchilov & Hutter 2017, without restarts); 'exponential', as in
        ddsp: it falls by `decay_rate` every `decay_steps` steps.
      warmup_steps: Steps over which a cosine's step size rises, 0 to 10 million; a tenth of `steps`
        at the most.
      decay_rate: Factor of the exponential decay, 0 to 1.
      decay_steps: Steps between two decays, 1 to 10 million.
      clip_norm: Global norm to which gradients are clipped, 1e-6 to 1e6.
      crop_seconds: Length of the random crop of a clip that a step sees, 0 to 600 s; 0 takes whole
        clips.
      cache_megabytes: Memory for what never changes of whole clips, 0 to 1,000,000; 0 for none. A
        clip of 4 s at 16 kHz has 3 MB of spectrograms and, with 60 harmonics, 15 MB of sinusoids.
        What has no room, and random crops, are computed anew in every step.
      checkpoint_every: Steps between two checkpoints, 1 to 10 million.
      summaries: Whether the trial's files hold a folder for TensorBoard.
      sparsity: Share of each kernel's weights that are zero in the end, 0 to 0.99: the smallest
        ones, ever more of them over three quarters of the training (Zhu & Gupta 2017).
      seed: Seeds the weights, the order of the clips and the noise; 0 to 2**31 - 1.
      losses: What is minimised, the sum of them; by default the project's spectral loss, which is
        also what a model is judged by, whatever it was trained with. May be given as objects of
        `ddsp.losses.SpectralLoss`, and holds their settings. See `thesis.from_ddsp`.
    """

    steps: int = 300
    batch_size: int = 8
    learning_rate: float = 3e-3
    schedule: Literal["cosine", "exponential"] = "cosine"
    warmup_steps: int = 20
    decay_rate: float = 0.98
    decay_steps: int = 10_000
    clip_norm: float = 3.0
    crop_seconds: float = 0.0
    cache_megabytes: int = 1024
    checkpoint_every: int = 50
    summaries: bool = False
    sparsity: float = 0.0
    seed: int = 0
    losses: tuple[SpectralLoss, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.losses, list | tuple):
            object.__setattr__(self, "losses", tuple(map(_plain_loss, self.losses)))
        _check_types(self)
        _check_range(self, "steps", 0, 10_000_000)
        _check_range(self, "batch_size", 1, 512)
        _check_range(self, "learning_rate", 1e-8, 10.0)
        _check_range(self, "warmup_steps", 0, 10_000_000)
        _check_range(self, "decay_rate", 0.0, 1.0)
        _check_range(self, "decay_steps", 1, 10_000_000)
        _check_range(self, "clip_norm", 1e-6, 1e6)
        _check_range(self, "crop_seconds", 0.0, 600.0)
        _check_range(self, "cache_megabytes", 0, 1_000_000)
        _check_range(self, "checkpoint_every", 1, 10_000_000)
        _check_range(self, "sparsity", 0.0, 0.99)
        _check_range(self, "seed", 0, 2**31 - 1)

    def inactive_parameters(self) -> frozenset[str]:
        """Names of parameters whose value makes no difference to this training."""
        cosine = self.schedule == "cosine"
        return frozenset({"decay_rate", "decay_steps"} if cosine else {"warmup_steps"})


def _plain_loss(loss: Any) -> SpectralLoss:
    if isinstance(loss, SpectralLoss):
        return loss
    from thesis.from_ddsp import spectral_loss

    return spectral_loss(loss)


@dataclass(frozen=True)
class MeasureConfig:
    """How long the real-time factor is measured.

    Attributes:
      seconds: Processor time of one measurement, candidate and reference together, 0.01 to 600. It
        takes longer where other processes want the same core.
      min_calls: Calls of each model at the least, however long they take; 10 to a million.
      max_calls: Calls of each model at the most; `min_calls` to a million. Both are rounded up, so
        that all sessions of all rounds (`thesis.measure`) are called equally often.
    """

    seconds: float = 2.0
    min_calls: int = 40
    max_calls: int = 4000

    def __post_init__(self) -> None:
        _check_types(self)
        _check_range(self, "seconds", 0.01, 600)
        _check_range(self, "min_calls", 10, 1_000_000)
        _check_range(self, "max_calls", self.min_calls, 1_000_000)


@dataclass(frozen=True)
class ExportConfig:
    """What ships of a trained decoder.

    Attributes:
      quantisation: 'none', floats; otherwise 8-bit integers, with the norm left in floats and the
        ranges of activations from each call ('dynamic') or from training clips: their largest
        values ('minmax'), or those that 'entropy' or 'percentile' leaves. See
        `thesis.runtimes.contract.Quantisation`.
      calibration_clips: Training clips for the ranges, 1 to 10,000; few make them too narrow.
    """

    quantisation: Literal["none", "dynamic", "minmax", "entropy", "percentile"] = "none"
    calibration_clips: int = 32

    def __post_init__(self) -> None:
        _check_types(self)
        _check_range(self, "calibration_clips", 1, 10_000)

    def inactive_parameters(self) -> frozenset[str]:
        """Names of parameters whose value makes no difference to this model."""
        unused = self.quantisation in ("none", "dynamic")
        return frozenset({"calibration_clips"} if unused else ())


@dataclass(frozen=True)
class ModelConfig:
    """Everything that one trial is made from."""

    decoder: DecoderConfig
    synth: SynthConfig
    train: TrainConfig
    measure: MeasureConfig
    export: ExportConfig = ExportConfig()

    @classmethod
    def of_stages(cls, stages: Mapping[str, Any]) -> "ModelConfig":
        """Returns the configuration whose parts `stages_of` took apart, in its order."""
        return cls(*stages.values())

    def inactive_parameters(self) -> frozenset[str]:
        """Bindings, 'Stage.parameter', whose value makes no difference to this model."""
        return frozenset(
            f"{gin_name(stage)}.{parameter}"
            for stage in (self.decoder, self.synth, self.train, self.export)
            for parameter in stage.inactive_parameters()
        )


DECODERS: dict[str, type[DecoderConfig]] = {
    "DilatedConvStack": DilatedConvStackConfig,
    "RnnFc": RnnFcConfig,
}
"""Name in gin files -> the configuration of that decoder. A model has one of them."""

CONFIGS: dict[str, type] = {
    **DECODERS,
    "Synth": SynthConfig,
    "train": TrainConfig,
    "measure": MeasureConfig,
    "export": ExportConfig,
}
"""Name in gin files -> the configuration of that stage, in the order of ModelConfig's fields."""

REFERABLE_OF_DDSP = (
    "ddsp.core.exp_sigmoid",
    "ddsp.processors.ProcessorGroup",
    "ddsp.processors.Add",
    "ddsp.synths.Harmonic",
    "ddsp.synths.FilteredNoise",
    "ddsp.effects.Reverb",
    "ddsp.losses.SpectralLoss",
)
"""What has a counterpart here of what ddsp registers with gin, by its complete name there."""

OF_DDSP = REFERABLE_OF_DDSP + tuple(
    f"ddsp.{module}.{name}"
    for module, names in {
        "core": "sym_exp_sigmoid frequencies_softmax frequencies_sigmoid "
        "frequencies_critical_bands angular_cumsum oscillator_bank harmonic_oscillator_bank",
        "dags": "run_dag DAGLayer",
        "processors": "Mix Crop",
        "synths": "TensorToAudio Wavetable Sinusoidal",
        "effects": "ExpDecayReverb FilteredNoiseReverb FIRFilter",
        "losses": "LossGroup HmmTranscriber EmbeddingLoss PretrainedCREPEEmbeddingLoss "
        "FilteredNoiseConsistencyLoss HarmonicConsistencyLoss WassersteinConsistencyLoss "
        "KDEConsistencyLoss TWMLoss ParamLoss",
        "spectral_ops": "compute_mag compute_mel compute_logmag compute_logmel compute_mfcc "
        "compute_loudness compute_f0",
    }.items()
    for name in names.split()
)
"""All that ddsp registers with gin when `thesis.from_ddsp` is imported, which need not happen."""

REFERENCE_DECODER = DilatedConvStackConfig()
"""DDSP-CNN-Tiny: what `rtf_ratio` is measured against."""

# gin returns wrappers: they fill in bindings, while the classes themselves stay gin-free.
_FROM_GIN = {name: gin.external_configurable(config, name) for name, config in CONFIGS.items()}


def _model(decoder: object = None) -> object:
    """What gin knows as `model`: says which decoder it has."""
    return decoder


_MODEL_FROM_GIN = gin.external_configurable(_model, "model")


def stages_of(config: ModelConfig) -> dict[str, Any]:
    """Returns the parts of a configuration by the names that gin knows them by."""
    parts = (config.decoder, config.synth, config.train, config.measure, config.export)
    return {gin_name(part): part for part in parts}


def from_gin() -> ModelConfig:
    """Returns the model configuration that the parsed gin bindings describe.

    Which decoder it has is `model.decoder`, '@DilatedConvStack()' (the default) or '@RnnFc()'.

    Raises:
      ConfigError: A bound value has the wrong type or is outside its range, belongs to a decoder
        that the model does not have, or is another than what a chain of ddsp's says.
    """
    chosen = made_by_gin(_MODEL_FROM_GIN)
    stages = [made_by_gin(make) for name, make in _FROM_GIN.items() if name not in DECODERS]
    if chosen is None:
        chosen = made_by_gin(_FROM_GIN["DilatedConvStack"])
    _check_decoder(chosen)
    config = ModelConfig(chosen, *stages)
    _check_reverb(config.synth)
    return config


def _check_decoder(chosen: object) -> None:
    """Raises ConfigError for what is no decoder, and for bindings to another one."""
    if not isinstance(chosen, DecoderConfig):
        raise ConfigError(
            f"model.decoder = {chosen!r} is no decoder",
            hint=f"choose from {', '.join(f'@{name}()' for name in DECODERS)}",
        )
    for name in DECODERS.keys() - {gin_name(chosen)}:
        for parameter in gin.get_bindings(name, resolve_references=False):
            raise ConfigError(
                f"{name}.{parameter} reaches nothing: the decoder is {gin_name(chosen)}",
                hint=f"leave it out, or have model.decoder = @{name}()",
            )


def _check_reverb(synth: SynthConfig) -> None:
    """Raises ConfigError where the reverb is bound to another length than that of ddsp's chain."""
    bound = gin.get_bindings("Synth").get("reverb_seconds", synth.reverb_seconds)
    if bound != synth.reverb_seconds:
        raise ConfigError(
            f"Synth.reverb_seconds = {bound!r}, but Synth.processor_group has "
            f"{synth.reverb_seconds:g} s of reverb",
            hint=f"have Synth.reverb_seconds = {synth.reverb_seconds!r}, and no axis of that name",
        )


def made_by_gin(make: Callable[[], T]) -> T:
    """Returns what a gin configurable makes, and raises its errors as they are.

    gin raises a look-alike instead: its text has a second line and it cannot be pickled.
    """
    try:
        return make()
    except UserError as error:
        # A look-alike of a look-alike, where one function of gin's was called by another.
        original = next(kind for kind in type(error).__mro__ if "__getattr__" not in vars(kind))
        raise original(error.message, hint=error.hint) from None
