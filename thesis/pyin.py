"""pYIN: a pitch on a grid and a probability of voicing, for each frame of a monophonic recording.

Mauch and Dixon, "pYIN: a fundamental frequency estimator using probabilistic threshold
distributions" (ICASSP 2014), with the details of the authors' own program. So does librosa, whose
tracker finds the same pitches (`test_pyin.py`). This one needs no numba. numba caches what it
compiles beside librosa, where two processes that start together can leave a cache that crashes
every later one.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.special
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_THRESHOLDS = np.linspace(0, 1, 101)[1:]
_THRESHOLD_PRIOR = np.diff(scipy.special.betainc(2, 18, np.linspace(0, 1, 101)))
"""Of YIN's threshold: the beta distribution (2, 18), whose mean is 0.1."""

_TROUGH_DECAY = 2.0
"""Of the troughs below a threshold, each is less likely by exp(-2) than the one before it."""

_NO_TROUGH = 0.01
"""Probability that the lowest trough is the period where none is below the threshold."""

_SWITCH = 0.01
"""Probability that a frame is voiced after one that is not, or the other way round."""

_TINY = float(np.finfo(np.float64).tiny)
_LOG_ZERO = math.log(_TINY)
"""Log probability of what cannot be, so that a path leads through frames where nothing can."""

_BLOCK_SAMPLES = 2**20
"""Samples of overlapping frames that are analysed at a time: 8 MB, and some such arrays."""


@dataclass(frozen=True)
class PitchGrid:
    """The pitches that a frame may have, and how fast they may change.

    Attributes:
      sample_rate: In Hz.
      hop_size: Samples from one frame to the next.
      f0_min_hz: Lowest pitch of the grid.
      f0_max_hz: Highest pitch that is looked for, at most half of the sample rate.
      frame_size: Samples that a frame sees, more than two periods of the lowest pitch.
      bins_per_semitone: Steps of the grid.
      semitones_per_frame: How far the pitch may move from one frame to the next.
    """

    sample_rate: int
    hop_size: int
    f0_min_hz: float
    f0_max_hz: float
    frame_size: int
    bins_per_semitone: int
    semitones_per_frame: int

    @property
    def n_bins(self) -> int:
        """Pitches on the grid."""
        return (
            math.floor(12 * self.bins_per_semitone * math.log2(self.f0_max_hz / self.f0_min_hz)) + 1
        )

    @property
    def pitches_hz(self) -> Floats:
        """The pitch of each bin, shape [n_bins]."""
        return self.f0_min_hz * 2 ** (np.arange(self.n_bins) / (12 * self.bins_per_semitone))

    @property
    def min_period(self) -> int:
        """Of the highest pitch, in samples."""
        return math.floor(self.sample_rate / self.f0_max_hz)

    @property
    def max_period(self) -> int:
        """Of the lowest pitch, in samples."""
        return math.ceil(self.sample_rate / self.f0_min_hz)

    def bins_of(self, periods: Floats) -> NDArray[np.int_]:
        """Returns the bins of periods in samples. One above the grid counts as unvoiced."""
        octaves = np.log2(self.sample_rate / periods / self.f0_min_hz)
        steps = np.round(12 * self.bins_per_semitone * octaves)
        return np.clip(steps, 0, self.n_bins).astype(np.int_)


def pyin(audio: NDArray[np.floating], grid: PitchGrid) -> tuple[Floats, NDArray[np.bool_], Floats]:
    """Tracks the pitch of a monophonic recording.

    Args:
      audio: Shape [n_samples]. Frames are centred on every hop, beyond its ends it is silent.
      grid: The pitches to choose from.

    Returns:
      The most likely pitch in Hz, on the grid, also where nothing is voiced; whether the most
      likely path is voiced there; and the probability that the frame is, 0 to 1. Shape
      [1 + n_samples // hop_size] each.
    """
    padded = np.pad(audio, grid.frame_size // 2)
    frames = sliding_window_view(padded, grid.frame_size)[:: grid.hop_size]
    block = max(1, _BLOCK_SAMPLES // grid.frame_size)
    likelihood = np.concatenate(
        [_likelihood(frames[at : at + block], grid) for at in range(0, len(frames), block)]
    )
    voicing = np.clip(likelihood.sum(axis=1), 0, 1)
    bins, voiced = _most_likely_path(likelihood, voicing, grid)
    return grid.pitches_hz[bins], voiced, voicing


# --- What a frame says --------------------------------------------------------------------------


def _likelihood(frames: NDArray[np.floating], grid: PitchGrid) -> Floats:
    """Returns the probability of each voiced pitch from each frame alone, [n_frames, n_bins]."""
    curves = _normalised_difference(frames.astype(np.float64), grid.min_period, grid.max_period)
    of_frame, at = np.nonzero(_is_trough(curves))
    probability = _trough_probabilities(curves[of_frame, at], of_frame, len(curves))
    bins = grid.bins_of(grid.min_period + at + _parabolic_shift(curves, of_frame, at))
    likelihood = np.zeros((len(curves), grid.n_bins + 1))
    possible = probability > 0
    # Of two troughs in one bin the longer period stays, as in the authors' program.
    likelihood[of_frame[possible], bins[possible]] = probability[possible]
    return likelihood[:, : grid.n_bins]


def _normalised_difference(frames: Floats, min_period: int, max_period: int) -> Floats:
    """Returns YIN's cumulative mean normalised difference (de Cheveigne and Kawahara 2002, eq. 8).

    Args:
      frames: Shape [n_frames, frame_size].
      min_period: First lag of the result.
      max_period: Last lag of it, below the frame size.

    Returns:
      Shape [n_frames, max_period - min_period + 1].
    """
    n_fft = scipy.fft.next_fast_len(frames.shape[1] + max_period + 1, real=True)
    power = np.abs(scipy.fft.rfft(frames, n_fft)) ** 2
    correlation = scipy.fft.irfft(power, n_fft)[:, : max_period + 1]
    # What a lag pushes out of the frame's other end is not taken off, as in the authors' program.
    energy = np.cumsum(frames[:, :max_period] ** 2, axis=1)
    difference = 2 * (correlation[:, :1] - correlation[:, 1:]) - energy
    mean = np.cumsum(difference, axis=1) / np.arange(1, max_period + 1)
    chosen = slice(min_period - 1, max_period)
    return np.asarray(difference[:, chosen] / (mean[:, chosen] + _TINY))


def _is_trough(curves: Floats) -> NDArray[np.bool_]:
    """Returns which lags are local minima, both ends included, shape [n_frames, n_lags]."""
    falls = curves[:, 1:] < curves[:, :-1]
    rises = np.ones(curves.shape, np.bool_)
    rises[:, :-1] = ~falls
    rises[:, 0] = curves[:, 0] < curves[:, 1]
    rises[:, 1:] &= falls
    return rises


def _parabolic_shift(curves: Floats, of_frame: NDArray[np.int_], at: NDArray[np.int_]) -> Floats:
    """Returns how far the lowest point of a parabola through three lags is from the middle one."""
    inside = (at > 0) & (at < curves.shape[1] - 1)
    middle = np.where(inside, at, 1)
    before, here, after = (curves[of_frame, middle + step] for step in (-1, 0, 1))
    curvature, slope = before + after - 2 * here, (after - before) / 2
    near = inside & (np.abs(slope) < np.abs(curvature))
    return np.asarray(np.divide(-slope, curvature, out=np.zeros_like(here), where=near))


def _trough_probabilities(heights: Floats, of_frame: NDArray[np.int_], n_frames: int) -> Floats:
    """Returns the probability of each trough to be its frame's period.

    For each threshold the troughs below it share its prior, the first one most (a truncated
    geometric distribution). Where none is below it, the lowest may still be the period.

    Args:
      heights: Of the troughs, frame by frame, short periods first; shape [n_troughs].
      of_frame: The frame of each, rising.
      n_frames: Frames in all.
    """
    below = heights[:, None] < _THRESHOLDS
    counted = np.zeros((1 + len(heights), len(_THRESHOLDS)), np.int32)
    np.cumsum(below, axis=0, dtype=np.int32, out=counted[1:])
    edges = np.searchsorted(of_frame, np.arange(n_frames + 1))
    before = counted[edges[:-1]]
    n_below = counted[edges[1:]] - before
    # Powers of whole numbers, looked up: each is needed a thousand times.
    decay = np.exp(-_TROUGH_DECAY * np.arange(1 + n_below.max(initial=1)))
    all_below = (1 - decay.take(np.maximum(n_below, 1)))[of_frame]
    place = counted[:-1] - before[of_frame]
    share = (decay * (1 - math.exp(-_TROUGH_DECAY))).take(place)
    share /= all_below
    share *= below
    probability = share @ _THRESHOLD_PRIOR
    lowest = np.lexsort((np.arange(len(heights)), heights, of_frame))[
        edges[:-1][np.diff(edges) > 0]
    ]
    probability[lowest] += _NO_TROUGH * (~below[lowest] @ _THRESHOLD_PRIOR)
    return np.asarray(probability)


# --- What all frames say together ---------------------------------------------------------------


def _most_likely_path(
    likelihood: Floats, voicing: Floats, grid: PitchGrid
) -> tuple[NDArray[np.int_], NDArray[np.bool_]]:
    """Returns the most likely bin of each frame and whether it is voiced (Viterbi 1967).

    Each bin is two states, voiced and not. A step goes to bins nearby; any other is as good as
    impossible, and taken only where all are.
    """
    n_frames, n_bins = likelihood.shape
    reach = grid.semitones_per_frame * grid.bins_per_semitone // 2
    silence = np.broadcast_to(((1 - voicing) / n_bins)[:, None], likelihood.shape)
    observed = np.log(np.stack([likelihood, silence], axis=1) + _TINY)
    steps = _log_steps(n_bins, reach)
    # Scores of where a step may come from: [voiced or not, offset, to voiced or not, bin].
    switch = np.log([[1 - _SWITCH, _SWITCH], [_SWITCH, 1 - _SWITCH]])
    costs = switch[:, None, :, None] + steps[None, :, None, :]
    n_offsets = 2 * reach + 1
    padded = np.full((2, n_bins + 2 * reach), -np.inf)
    near = sliding_window_view(padded, n_bins, axis=1)  # [2, offset, bin], follows `padded`
    came_from = np.empty((n_frames, 2, n_bins), np.int32)
    score = observed[0] - math.log(2 * n_bins)
    # Where each of `reached` comes from: [voiced or not and offset, bin].
    offset_of = np.arange(2 * n_offsets)[:, None]
    sources = offset_of // n_offsets * n_bins + np.arange(n_bins) + offset_of % n_offsets - reach
    here = np.arange(n_bins)
    reached_of = np.empty_like(costs)
    reached = reached_of.reshape(2 * n_offsets, 2, n_bins)
    for t in range(1, n_frames):
        padded[:, reach : reach + n_bins] = score
        np.add(near[:, :, None, :], costs, out=reached_of)
        value = reached.max(axis=0)
        source = sources[reached.argmax(axis=0), here]
        leap = score.argmax()
        leaps = value < score.flat[leap] + _LOG_ZERO
        if leaps.any():
            source = np.where(leaps, leap, source)
            value = np.where(leaps, score.flat[leap] + _LOG_ZERO, value)
        came_from[t] = source
        score = observed[t] + value
    states = np.empty(n_frames, np.int_)
    states[-1] = score.argmax()
    flat = came_from.reshape(n_frames, 2 * n_bins)
    for t in range(n_frames - 1, 0, -1):
        states[t - 1] = flat[t, states[t]]
    return states % n_bins, states < n_bins


def _log_steps(n_bins: int, reach: int) -> Floats:
    """Returns the log probability of a step to each bin from the bins around it.

    From a bin it falls in a line with the distance; near the grid's ends what is left is scaled up.

    Returns:
      Shape [2 * reach + 1, n_bins]: [o, b] is that of the step from b + o - reach to b.
    """
    weights = 1 - np.abs(np.arange(-reach, reach + 1)) / (reach + 1)
    source = np.arange(n_bins) + np.arange(-reach, reach + 1)[:, None]
    inside = (source >= 0) & (source < n_bins)
    from_each = np.convolve(np.ones(n_bins), weights, mode="same")
    probability = np.where(
        inside, weights[:, None] / from_each[np.clip(source, 0, n_bins - 1)], 0.0
    )
    return np.log(probability + _TINY)
