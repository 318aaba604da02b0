"""What the metrics follow: recordings damaged in known ways, judged by every metric.

Clips of a recorded instrument are made worse in one way at a time: louder, delayed, attacked
slowly, without high partials, out of tune, hissing in rests. Each metric should answer to what it
is made for, and to nothing else: the value is the larger of two that must be near 0, the changes of
log-mel distance and onset error by a gain. Without the recordings there is nothing to measure, and
it says so.
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import scipy.signal

from benchmarks import _harness as harness
from sweeps.tables import format_number, print_table
from thesis.data import VOICED_CONFIDENCE, ClipFormat, Clips
from thesis.metrics import Audio, Quality, compare, sounding
from thesis.onsets import find_onsets

NAME = "metrics_follow"
_BESIDE = Path(__file__).parents[2] / "shared" / "data"
_FORMAT = ClipFormat(16_000, 64, 4.0, 4.0, f0_min_hz=50.0, f0_max_hz=2000.0)
_CLIPS, _QUICK_CLIPS = 40, 4
_HEADS = {
    "f0_error_cents": "f0 cents",
    "f0_missed_share": "f0 missed",
    "loudness_error_db": "loudness",
    "mel_cepstral_distance_db": "cepstrum",
    "log_mel_distance_db": "log mel",
    "multi_scale_log_mel_distance_db": "multi-scale",
    "loudness_error_sounding_db": "sounding",
    "rest_excess_db": "rests",
    "register_level_error_db": "register",
    "onset_error_ms": "onset ms",
}
"""Metric -> its head in the table; dB where it does not say."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    options = _parser().parse_args(arguments)
    folder = options.data / options.instrument
    if not folder.is_dir():
        harness.say(f"skipped: no {options.instrument}/ in '{options.data}'; name one with --data")
        return
    clips = load_clips(folder, _QUICK_CLIPS if options.quick else _CLIPS)
    found: dict[str, Quality] = {}
    for damage, change in DAMAGES.items():
        harness.say(f"{len(clips)} clips of {options.instrument}: {damage}")
        found[damage] = compare(clips, change(clips), _FORMAT)
    print_table(
        ["damage", *_HEADS.values()],
        [
            [damage, *("-" if v is None else format_number(v) for v in asdict(quality).values())]
            for damage, quality in found.items()
        ],
    )
    gains = [quality for damage, quality in found.items() if damage.startswith("gain")]
    moved = max(max(q.log_mel_distance_db or 0.0, q.onset_error_ms or 0.0) for q in gains)
    result = harness.Result(
        NAME,
        moved,
        "dB or ms",
        "lower",
        "the recordings themselves",
        {damage: asdict(quality) for damage, quality in found.items()} | {"clips": len(clips)},
    )
    harness.emit(result, quick=options.quick, options=f"--instrument {options.instrument}")


def _parser() -> argparse.ArgumentParser:
    parser = harness.parser(NAME, __doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("SWEEPS_DATA", _BESIDE)),
        help="folder of folders of recordings; default: $SWEEPS_DATA, or shared/data beside the "
        "checkout",
    )
    parser.add_argument("--instrument", default="cello", help="folder in it; default: cello")
    return parser


def load_clips(folder: Path, count: int) -> Clips:
    """Returns the beginnings of so many recordings of a folder, from low names to high ones."""
    from thesis.features import compute_loudness, estimate_f0, load_audio
    from thesis.prepare import find_recordings

    rate, hop_size = _FORMAT.sample_rate, _FORMAT.hop_size
    names = find_recordings(folder)
    names = names[:: max(1, len(names) // count)][:count]
    audio = np.zeros((len(names), _FORMAT.n_samples), np.float32)
    for row, name in zip(audio, names, strict=True):
        recording = load_audio(folder / name, rate)[: len(row)]
        row[: len(recording)] = recording
    tracked = [
        estimate_f0(clip, rate, hop_size, _FORMAT.f0_min_hz, _FORMAT.f0_max_hz) for clip in audio
    ]
    f0_hz, confidence = (np.stack(values) for values in zip(*tracked, strict=True))
    loudness_db = np.stack([compute_loudness(clip, rate, hop_size) for clip in audio])
    return Clips(audio, f0_hz, confidence, loudness_db, tuple(names), tuple(names))


# --- Damages ------------------------------------------------------------------------------------


def unharmed(clips: Clips) -> Audio:
    """Returns the clips as they are: what the trackers differ by from themselves."""
    return clips.audio.copy()


def gain(decibels: float) -> Callable[[Clips], Audio]:
    """Returns what makes clips louder by so many dB."""
    return lambda clips: clips.audio * np.float32(10 ** (decibels / 20))


def hiss_in_rests(clips: Clips) -> Audio:
    """Returns the clips with white noise of -60 dB of full scale (RMS) where they rest."""
    rests = ~sounding(clips.loudness_db)
    noise = 10 ** (-60 / 20) * np.random.default_rng(0).standard_normal(clips.audio.shape)
    return (clips.audio + noise * np.repeat(rests, _FORMAT.hop_size, axis=1)).astype(np.float32)


def only_noise(clips: Clips) -> Audio:
    """Returns noise of the clips' spectrum and loudness: the phase of each moment is drawn anew.

    What a decoder plays that has found the spectral envelope and no harmonics: spectra of frames of
    64 ms, smoothed over 200 Hz, filter white noise.
    """
    size = 1024
    made = []
    for seed, clip in enumerate(clips.audio):
        _, _, of_clip = scipy.signal.stft(clip, nperseg=size)
        white = np.random.default_rng(seed).standard_normal(len(clip))
        _, _, of_noise = scipy.signal.stft(white, nperseg=size)
        power = scipy.ndimage.uniform_filter1d(np.abs(of_clip) ** 2, 13, axis=0)
        typical = np.sqrt(np.mean(np.abs(of_noise) ** 2))
        _, audio = scipy.signal.istft(np.sqrt(power) * of_noise / typical, nperseg=size)
        made.append(audio[: len(clip)])
    return np.stack(made).astype(np.float32)


def shifted(cents: float) -> Callable[[Clips], Audio]:
    """Returns what plays clips at another pitch and as fast: stretched, then resampled."""
    ratio = 2 ** (cents / 1200)

    def shift(clips: Clips) -> Audio:
        at = ratio * np.arange(clips.audio.shape[1])
        stretched = [_stretched(clip, ratio) for clip in clips.audio]
        return np.stack([np.interp(at, np.arange(len(clip)), clip) for clip in stretched]).astype(
            np.float32
        )

    return shift


def _stretched(clip: npt.NDArray[np.float32], ratio: float) -> npt.NDArray[np.float64]:
    """Returns a clip that lasts so many times as long: a phase vocoder (Flanagan and Golden)."""
    size, hop = 1024, 256
    _, _, spectra = scipy.signal.stft(clip, nperseg=size, noverlap=size - hop)
    at = np.arange(0, spectra.shape[1] - 1, 1 / ratio)
    before = at.astype(int)
    part = at - before
    magnitude = (1 - part) * np.abs(spectra[:, before]) + part * np.abs(spectra[:, before + 1])
    turns = np.angle(spectra[:, before + 1]) - np.angle(spectra[:, before])
    phase = np.angle(spectra[:, :1]) + np.cumsum(turns, axis=1) - turns[:, :1]
    made = magnitude * np.exp(1j * phase)
    return np.asarray(scipy.signal.istft(made, nperseg=size, noverlap=size - hop)[1])


def delayed(milliseconds: float) -> Callable[[Clips], Audio]:
    """Returns what delays clips."""
    samples = round(milliseconds / 1000 * _FORMAT.sample_rate)
    return lambda clips: np.pad(clips.audio, ((0, 0), (samples, 0)))[:, : clips.audio.shape[1]]


def softened(milliseconds: float) -> Callable[[Clips], Audio]:
    """Returns what makes notes come in slowly, in a line of that length from each onset on."""
    samples = round(milliseconds / 1000 * _FORMAT.sample_rate)

    def soften(clips: Clips) -> Audio:
        made = clips.audio.copy()
        for clip, loudness_db in zip(made, clips.loudness_db, strict=True):
            for seconds in find_onsets(loudness_db, _FORMAT.frame_rate):
                # The attack itself, which is before the time that it is halfway at.
                first = max(0, round((seconds - 0.02) * _FORMAT.sample_rate))
                note = clip[first : first + samples]
                note *= np.linspace(0, 1, samples, dtype=np.float32)[: len(note)]
        return made

    return soften


def low_passed(highest_hz: float) -> Callable[[Clips], Audio]:
    """Returns what takes all partials above a frequency out of clips."""

    def low_pass(clips: Clips) -> Audio:
        filter_ = scipy.signal.butter(8, highest_hz, fs=_FORMAT.sample_rate, output="sos")
        return np.asarray(scipy.signal.sosfiltfilt(filter_, clips.audio), np.float32)

    return low_pass


def soft_in_the_bass(clips: Clips) -> Audio:
    """Returns the clips with the lower third of their notes 9 dB softer."""
    voiced = clips.f0_confidence >= VOICED_CONFIDENCE
    pitch = np.array(
        [np.median(f0[of_clip] if of_clip.any() else f0)
         for f0, of_clip in zip(clips.f0_hz, voiced, strict=True)]
    )  # fmt: skip
    is_low = pitch <= np.quantile(pitch, 1 / 3)
    return clips.audio * np.where(is_low, 10 ** (-9 / 20), 1.0)[:, None].astype(np.float32)


DAMAGES: Mapping[str, Callable[[Clips], Audio]] = {
    "none": unharmed,
    "gain of 6 dB": gain(6.0),
    "gain of -12 dB": gain(-12.0),
    "hiss in rests": hiss_in_rests,
    "noise for harmonics": only_noise,
    "20 cents sharp": shifted(20.0),
    "100 cents sharp": shifted(100.0),
    "30 ms late": delayed(30.0),
    "attacks of 100 ms": softened(100.0),
    "nothing over 2 kHz": low_passed(2000.0),
    "low notes -9 dB": soft_in_the_bass,
    "silence": lambda clips: np.zeros_like(clips.audio),
}
"""What is done to clips, by name."""


if __name__ == "__main__":
    main()
