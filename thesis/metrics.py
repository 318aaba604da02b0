"""How renderings differ from their clips in pitch, level, attack and timbre, beside the loss.

Renderings are aligned with their clips, so frames are compared one by one; the frames of all clips
together are summed up. `docs/concepts/sound.md` tells what each number sees and what it misses.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from thesis.data import VOICED_CONFIDENCE, ClipFormat, Clips
from thesis.features import SILENCE_DB, Samples, compute_loudness, estimate_f0
from thesis.onsets import onset_error

Audio = NDArray[np.float32]
"""Clips of equal length, shape [n, n_samples]."""

FrameValues = NDArray[np.floating]
"""One value for each frame of each clip, shape [n, n_frames]."""

F0_TOLERANCE_CENTS = 50.0
"""Farther from the target a pitch is another note: half a semitone."""

F0_SPACING_SECONDS = 0.016
"""From one estimate of a rendering's pitch to the next; see `compare`."""

MEL_BANDS = 40
CEPSTRAL_COEFFICIENTS = 13
MEL_FRAME_SECONDS, MEL_HOP_SECONDS = 0.064, 0.016
MEL_FLOOR_DB = -80.0
"""Softest level of a mel band that counts; a full-scale sine has 0 dB."""

LOG_MEL_BANDS = 64
LOG_MEL_RANGE_DB = 60.0
"""What is softer than the clip's loudest band by more counts as this soft."""
LOG_MEL_FRAME_SECONDS = 0.064
MULTI_SCALE_FRAME_SECONDS = (0.032, LOG_MEL_FRAME_SECONDS, 0.128, 0.256)
"""At 16 kHz 512, 1,024, 2,048 and 4,096 samples. The hop is a quarter of the frame."""

SOUNDING_RANGE_DB = 50.0
"""A clip rests where it is softer than its loudest frame by this, or by more."""

REGISTERS = 3
"""Parts of the clips' pitches, as many frames in each."""

_BLOCK_FRAMES = 4096
"""Frames whose spectrum is in memory at a time."""


@dataclass(frozen=True)
class Quality:
    """How renderings differ from their clips. Zero is best of each.

    Attributes:
      f0_error_cents: See `f0_error`; None where no frame is voiced in clip and rendering.
      f0_missed_share: See `f0_error`; None where no frame of a clip is voiced.
      loudness_error_db: See `loudness_error`.
      mel_cepstral_distance_db: See `mel_cepstral_distance`; None where the clips are silent.
      log_mel_distance_db: See `log_mel_distance`; None where the clips are silent.
      multi_scale_log_mel_distance_db: The mean of it over `MULTI_SCALE_FRAME_SECONDS`.
      loudness_error_sounding_db: See `loudness_error_sounding`; None where the clips are silent.
      rest_excess_db: See `rest_excess`; None where the clips never rest.
      register_level_error_db: See `register_level_error`; None where no frame of a clip is voiced.
      onset_error_ms: See `thesis.onsets.onset_error`; None where no note begins in the clips.
    """

    f0_error_cents: float | None
    f0_missed_share: float | None
    loudness_error_db: float
    mel_cepstral_distance_db: float | None
    log_mel_distance_db: float | None = None
    multi_scale_log_mel_distance_db: float | None = None
    loudness_error_sounding_db: float | None = None
    rest_excess_db: float | None = None
    register_level_error_db: float | None = None
    onset_error_ms: float | None = None


def compare(clips: Clips, renderings: Audio, clip_format: ClipFormat) -> Quality:
    """Returns how renderings differ from the clips that they were made from.

    Takes 30 to 50 ms a clip of 4 s at 16 kHz on one core, most for noisy renderings; about 10 ms
    are for the log-mel distances, the rest is pitch, mostly. That is estimated on frames 16 ms
    apart: on the clips' own, 4 ms apart, it takes four times as long, for an
    `f0_error_cents` that differed by 0.02 and an `f0_missed_share` that differed by 0.003 on
    renderings of 41 cello clips.

    Args:
      clips: The targets.
      renderings: [n, n_samples], finite.
      clip_format: Sample rate, hop size and range of pitch of the clips.
    """
    rate, hop_size = clip_format.sample_rate, clip_format.hop_size
    stride = max(1, round(F0_SPACING_SECONDS * clip_format.frame_rate))
    tracked = [
        estimate_f0(audio, rate, stride * hop_size, clip_format.f0_min_hz, clip_format.f0_max_hz)
        for audio in renderings
    ]
    f0_hz, confidence = (np.stack(values) for values in zip(*tracked, strict=True))
    f0_error_cents, f0_missed_share = f0_error(
        clips.f0_hz[:, ::stride], clips.f0_confidence[:, ::stride], f0_hz, confidence
    )
    target_db, rendered_db = (
        np.stack([compute_loudness(clip, rate, hop_size) for clip in audio])
        for audio in (clips.audio, renderings)
    )
    sounds = sounding(target_db)
    log_mel_distances_db = {
        seconds: log_mel_distance(
            clips.audio,
            renderings,
            sounds,
            sample_rate=rate,
            hop_size=hop_size,
            frame_seconds=seconds,
        )
        for seconds in MULTI_SCALE_FRAME_SECONDS
    }
    return Quality(
        f0_error_cents=f0_error_cents,
        f0_missed_share=f0_missed_share,
        loudness_error_db=float(np.abs(target_db - rendered_db).mean()),
        mel_cepstral_distance_db=mel_cepstral_distance(clips.audio, renderings, sample_rate=rate),
        log_mel_distance_db=log_mel_distances_db[LOG_MEL_FRAME_SECONDS],
        multi_scale_log_mel_distance_db=_mean(
            [d for d in log_mel_distances_db.values() if d is not None]
        ),
        loudness_error_sounding_db=loudness_error_sounding(target_db, rendered_db),
        rest_excess_db=rest_excess(target_db, rendered_db),
        register_level_error_db=register_level_error(
            target_db, rendered_db, clips.f0_hz, clips.f0_confidence
        ),
        onset_error_ms=onset_error(target_db, rendered_db, clip_format.frame_rate),
    )


def _mean(values: NDArray[np.floating] | list[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def f0_error(
    target_f0_hz: FrameValues,
    target_confidence: FrameValues,
    f0_hz: FrameValues,
    confidence: FrameValues,
) -> tuple[float | None, float | None]:
    """Returns how far the pitch is off where there is one, and how often there is none.

    They correspond to F0 (L1) and F0 Outliers of Engel et al. 2020. The first is the median and
    not, as there, the mean: a tracker's octave errors, 1,200 cents each, are rare and make a mean
    a matter of luck. On renderings of 41 cello clips the mean was 14 to 22 cents, depending on
    which frames were tracked, the median 3.1 each time. What the median passes over, the second
    number counts. It is 1 minus the raw pitch accuracy of melody extraction (Salamon et al. 2014),
    but that a frame without a confident pitch is missed whatever the tracker's guess.

    A frame is voiced where its confidence is `VOICED_CONFIDENCE` or more.

    Args:
      target_f0_hz: Pitch of the clips in Hz; 0 or less means none.
      target_confidence: Its confidence, 0 to 1.
      f0_hz: Pitch of the renderings in Hz.
      confidence: Its confidence, 0 to 1.

    Returns:
      The median absolute error in cents over frames voiced in both, or None without such a frame;
      the share, 0 to 1, of the frames voiced in the clips that are unvoiced in the rendering or
      off by more than `F0_TOLERANCE_CENTS`, or None where no frame of the clips is voiced.
    """
    in_target = (target_confidence >= VOICED_CONFIDENCE) & (target_f0_hz > 0.0)
    in_both = in_target & (confidence >= VOICED_CONFIDENCE)
    error_cents = 1200 * np.abs(np.log2(f0_hz[in_both] / target_f0_hz[in_both]))
    if not in_target.any():
        return None, None
    missed_share = 1 - np.count_nonzero(error_cents <= F0_TOLERANCE_CENTS) / in_target.sum()
    return float(np.median(error_cents)) if error_cents.size else None, float(missed_share)


def loudness_error(targets: Audio, renderings: Audio, *, sample_rate: int, hop_size: int) -> float:
    """Returns the mean absolute difference of loudness, in dB; Loudness (L1) of Engel et al. 2020.

    The loudness is that of `thesis.features.compute_loudness` and ddsp: A-weighted, -80 dB or
    above. Frames in which the clip is silent count too: noise where nothing should sound is an
    error, up to 100 dB of it.

    Args:
      targets: [n, n_samples].
      renderings: [n, n_samples].
      sample_rate: In Hz.
      hop_size: Samples from one frame to the next.
    """
    differences = [
        compute_loudness(target, sample_rate, hop_size)
        - compute_loudness(audio, sample_rate, hop_size)
        for target, audio in zip(targets, renderings, strict=True)
    ]
    return float(np.abs(differences).mean())


def sounding(loudness_db: FrameValues) -> NDArray[np.bool_]:
    """Returns the frames in which clips sound; in the others they rest.

    A frame sounds where its loudness is less than `SOUNDING_RANGE_DB` below that of its clip's
    loudest frame, and above `SILENCE_DB`. In notes of cello, saxophone and double bass there is
    hardly anything between: 1 in 100 frames is 40 to 60 dB below the loudest one.

    Args:
      loudness_db: Of the clips, [n, n_frames], see `thesis.features.compute_loudness`.
    """
    loudest = loudness_db.max(axis=1, keepdims=True)
    return np.asarray(loudness_db > np.maximum(loudest - SOUNDING_RANGE_DB, SILENCE_DB))


def loudness_error_sounding(target_db: FrameValues, loudness_db: FrameValues) -> float | None:
    """Returns the mean absolute difference of loudness where the clips sound, in dB.

    It is `loudness_error`, but for what flatters that: where clips are padded, any model is silent
    too, and such frames may be half of a dataset.

    Args:
      target_db: Loudness of the clips, [n, n_frames].
      loudness_db: Loudness of the renderings, likewise.

    Returns:
      0 or above; None where the clips are silent.
    """
    return _mean(np.abs(target_db - loudness_db)[sounding(target_db)])


def rest_excess(target_db: FrameValues, loudness_db: FrameValues) -> float | None:
    """Returns by how much renderings are louder than the clips where those rest, in dB.

    The mean over the frames of rests; a frame that is softer than the clip's has 0. What is softer
    than `SILENCE_DB` counts as that loud, in clip and rendering: nobody hears the difference.

    Args:
      target_db: Loudness of the clips, [n, n_frames].
      loudness_db: Loudness of the renderings, likewise.

    Returns:
      0 or above; None where the clips never rest.
    """
    target_db, loudness_db = (np.maximum(db, SILENCE_DB) for db in (target_db, loudness_db))
    excess = np.maximum(0.0, loudness_db - target_db)
    return _mean(excess[~sounding(target_db)])


def register_level_error(
    target_db: FrameValues,
    loudness_db: FrameValues,
    target_f0_hz: FrameValues,
    target_confidence: FrameValues,
) -> float | None:
    """Returns how far the level is off in the register where it is furthest off, in dB.

    The frames that sound and are voiced in the clips are divided by their pitch into low, middle
    and high, a third of them in each. In each the differences of loudness, with their signs, are
    averaged. A model that plays the ends of its range too softly has an error here that
    `loudness_error` hides among those of single frames.

    Args:
      target_db: Loudness of the clips, [n, n_frames].
      loudness_db: Loudness of the renderings, likewise.
      target_f0_hz: Pitch of the clips in Hz, likewise; 0 or less means none.
      target_confidence: Its confidence, 0 to 1.

    Returns:
      The largest of three absolute means, 0 or above; None where no such frame is voiced.
    """
    voiced = (target_confidence >= VOICED_CONFIDENCE) & (target_f0_hz > 0.0)
    judged = voiced & sounding(target_db)
    if not judged.any():
        return None
    f0_hz = target_f0_hz[judged]
    difference = (loudness_db - target_db)[judged]
    # Frames of one pitch are in one register: where all are, that is the only one.
    edges = np.quantile(f0_hz, np.arange(1, REGISTERS) / REGISTERS)
    register = np.searchsorted(edges, f0_hz)
    means = [difference[register == which].mean() for which in np.unique(register)]
    return float(np.abs(means).max())


def log_mel_distance(
    targets: Audio,
    renderings: Audio,
    sounds: NDArray[np.bool_],
    *,
    sample_rate: int,
    hop_size: int,
    frame_seconds: float = LOG_MEL_FRAME_SECONDS,
) -> float | None:
    """Returns the mean absolute difference of mel bands in dB, after the levels are made equal.

    Of what this project records it follows ears best: over 334 sounds that listeners rated in 21
    studies, ranks of the ratings and of this distance have a correlation (Spearman) of 0.48; ddsp's
    spectral loss has 0.41, mel cepstra have 0.28 to 0.36. That was at 16 kHz, with frames of 1,024
    samples.

    Each rendering is first brought to the RMS of its clip, so that a gain makes no difference.
    Then the powers of `LOG_MEL_BANDS` bands (see `mel_bands`) are compared in dB, band by band and
    frame by frame, where the clip sounds. What a rendering does in rests is for `rest_excess` to
    tell. No band is taken as softer than `LOG_MEL_RANGE_DB` below the clip's loudest one: what is
    softer is masked, or is the room's noise.

    Frames last as long at any sample rate, and bands reach from 0 Hz to Nyquist, so figures compare
    at one rate only. Below 16 kHz the lowest bands of the shortest frames hold no bin and have no
    difference.

    Args:
      targets: [n, n_samples].
      renderings: [n, n_samples].
      sounds: Which frames of the clips sound, [n, n_frames].
      sample_rate: In Hz.
      hop_size: Samples from one frame of `sounds` to the next.
      frame_seconds: Length of a spectrum's frame; by default 1,024 samples at 16 kHz. The hop is a
        quarter of it.

    Returns:
      0 to `LOG_MEL_RANGE_DB`; None where no clip sounds.
    """
    size = round(frame_seconds * sample_rate)
    hop = max(1, round(frame_seconds * sample_rate / 4))
    starts = np.arange(0, targets.shape[1], hop)
    nearest = np.minimum(np.round(starts / hop_size).astype(np.int_), sounds.shape[1] - 1)
    n_fft = scipy.fft.next_fast_len(size, real=True)
    bands = mel_bands(sample_rate, n_fft, LOG_MEL_BANDS).astype(np.float32)
    differences = []
    for target, audio, sounding_frames in zip(targets, renderings, sounds, strict=True):
        at = starts[sounding_frames[nearest]]
        if not at.size:
            continue
        gain = np.sqrt(_energy(target) / (_energy(audio) or 1.0))
        of_target, of_audio = (
            _mel_power(a, at, size, n_fft, bands)
            for a in (target, (gain * audio).astype(np.float32))
        )
        floor = 10 ** (-LOG_MEL_RANGE_DB / 10) * of_target.max()
        ratio = np.maximum(of_audio, floor) / np.maximum(of_target, floor)
        differences.append(np.abs(10 * np.log10(ratio)).mean(axis=1))
    return _mean(np.concatenate(differences)) if differences else None


def _energy(audio: Samples) -> float:
    return float(np.sum(audio.astype(np.float64) ** 2))


def _mel_power(
    audio: Samples, centres: NDArray[np.int_], size: int, n_fft: int, bands: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Returns the power of each mel band around some samples, [centres, bands], unscaled."""
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)
    frames = sliding_window_view(np.pad(audio, size // 2), size)

    def blocks() -> Iterator[NDArray[np.float32]]:
        for first in range(0, len(centres), _BLOCK_FRAMES):
            block = frames[centres[first : first + _BLOCK_FRAMES]]
            spectrum = scipy.fft.rfft(block * window, n_fft)
            yield (spectrum.real**2 + spectrum.imag**2) @ bands

    return np.concatenate([*blocks()])


def mel_cepstral_distance(targets: Audio, renderings: Audio, *, sample_rate: int) -> float | None:
    """Returns the mean mel-cepstral distance in dB (Kubichek 1993), without time warping.

    For each frame `10 / ln 10 * sqrt(2 * sum((c[d] - c'[d])**2 for d in 1..13))`, where
    `c[0] + c[1] cos(w) + c[2] cos(2 w) + ..` is the logarithm of the amplitude along the mel scale.
    So it is the root mean square difference of two spectral envelopes in dB, each smoothed and
    brought to the same level: a distance of timbre. A change of level alone has none, but for what
    it moves across the floor.

    Bands: 40 triangles from 0 Hz to Nyquist, evenly spaced on the mel scale (O'Shaughnessy 1987),
    over the power spectrum of Hann frames of 64 ms, 16 ms apart. A band is never taken as softer
    than -80 dB of a full-scale sine; frames in which all bands of the target are softer are left
    out. Figures compare with others only where all of this is equal.

    Args:
      targets: [n, n_samples].
      renderings: [n, n_samples].
      sample_rate: In Hz.

    Returns:
      The distance, 0 or above; None when no frame of the targets is above the floor.
    """
    distances = []
    for target, audio in zip(targets, renderings, strict=True):
        of_target, of_audio = (_log_mel_power(a, sample_rate) for a in (target, audio))
        sounds = (of_target > _LOG_MEL_FLOOR).any(axis=1)
        # The transform is that of twice the log amplitude, times two.
        cepstra = scipy.fft.dct(of_target[sounds] - of_audio[sounds]) / (2 * MEL_BANDS)
        squares = np.sum(cepstra[:, 1 : 1 + CEPSTRAL_COEFFICIENTS] ** 2, axis=1)
        distances.append(10 / np.log(10) * np.sqrt(2 * squares))
    of_frames = np.concatenate(distances)
    return float(of_frames.mean()) if of_frames.size else None


_LOG_MEL_FLOOR = MEL_FLOOR_DB / 10 * np.log(10)


def _log_mel_power(audio: Samples, sample_rate: int) -> NDArray[np.float64]:
    """Returns the natural logarithm of the power of each mel band, [frames, MEL_BANDS]."""
    size, hop = round(MEL_FRAME_SECONDS * sample_rate), round(MEL_HOP_SECONDS * sample_rate)
    padded = np.pad(audio.astype(np.float64), size // 2)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    spectrum = scipy.fft.rfft(sliding_window_view(padded, size)[::hop] * window)
    power = np.abs(spectrum / (window.sum() / 2)) ** 2
    bands = mel_bands(sample_rate, size)
    return np.asarray(np.log(np.maximum(power @ bands, 10 ** (MEL_FLOOR_DB / 10))))


def mel_bands(sample_rate: int, fft_size: int, n_bands: int = MEL_BANDS) -> NDArray[np.float64]:
    """Returns triangular bands, evenly spaced in mel from 0 to Nyquist, [bins, n_bands].

    Each is 1 at its centre and 0 at its neighbours' centres. The scale is O'Shaughnessy's, as HTK
    has it: `2595 log10(1 + f / 700)`.
    """
    highest_mel = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest_mel, n_bands + 2) / 2595) - 1)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    frequencies = np.fft.rfftfreq(fft_size, 1 / sample_rate)[:, None]
    rising, falling = (
        (frequencies - lower) / (centre - lower),
        (upper - frequencies) / (upper - centre),
    )
    return np.asarray(np.maximum(0, np.minimum(rising, falling)))
