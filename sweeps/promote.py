"""Promotes a trial: fetches its model, measures it again, and writes a bundle that ships."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from sweeps.advice import most_missed
from sweeps.bundles import verify
from sweeps.config import parse_candidate
from sweeps.errors import TrialError
from sweeps.ledger import find_trial
from sweeps.meter import Meter
from sweeps.objectives import MISSED_PITCH, sings
from sweeps.trial import METRICS, Status, Trial
from thesis.bundle import (
    CLIP_FILE,
    CONFIG_FILE,
    DECODER_FILE,
    DECODER_STREAM_FILE,
    HEADER_FILE,
    RENDERING_FILE,
    REVERB_FILE,
    SYNTH_STREAM_FILE,
    Controls,
    ModelBundle,
    check_artifacts,
    read_audio,
    read_decoder,
    render,
    write_bundle,
)
from thesis.config import ModelConfig
from thesis.controls import decoder_inputs
from thesis.data import VOICED_CONFIDENCE, Clips, Dataset, load_dataset
from thesis.errors import BundleError, DatasetError, ExportError, UserError, first_line
from thesis.export import MAX_ERROR
from thesis.files import check_output
from thesis.measure import RtfMeasurement, measure_rtf, processor
from thesis.metrics import Quality, sounding
from thesis.quantise import shipped_onnx
from thesis.reference import decode, spectral_loss
from thesis.runtimes.onnx_runtime import Session


def promote(
    storage: str,
    trial_id: str,
    out: Path,
    *,
    sweep: str | None = None,
    dataset: str | None = None,
    allow_missed_pitch: bool = False,
) -> ModelBundle:
    """Writes the bundle of a completed trial.

    A trial whose record says that it misses the pitch, by the sweep's limit or `MOST_MISSED`, has
    to be asked for. One whose record does not say is believed to sing.

    The decoder is measured again on this machine, with its trained weights, and compared once more
    with those weights in float64. The clip that goes with it is one that the model plays neither
    well nor badly: of the validation clips with something to hear, the one whose loss is the
    median. The finished bundle is verified.

    Args:
      storage: Where the sweeps are kept.
      trial_id: Id of the trial, or a unique beginning of it.
      out: Folder to make.
      sweep: Sweep of the trial; by default all are searched.
      dataset: Folder of the dataset, where it has moved since the launch.
      allow_missed_pitch: Promote it even if it does not sing.

    Raises:
      TrialError: No such trial, one that did not complete, or one that does not sing.
      BundleError: `out` exists or cannot be written.
      DatasetError: The dataset is gone, or is another one.
      ExportError: The stored decoder differs from its weights.
    """
    check_output(out, BundleError)
    ledger, trial = find_trial(storage, trial_id, sweep)
    if not trial.trained:
        raise TrialError(
            f"trial {trial.id} is {trial.status.value}: {trial.detail or trial.reason}",
            hint=f"'sweeps front {trial.sweep}' lists trials that can be promoted",
        )
    most, missed = most_missed(ledger.facts), trial.metric(MISSED_PITCH)
    if not (allow_missed_pitch or (trial.status is Status.COMPLETED and sings(trial, most))):
        why = trial.detail or f"{MISSED_PITCH} is {missed or 0:.3g}, the limit {most:g}"
        raise TrialError(
            f"trial {trial.id} does not sing: {why}",
            hint=f"'sweeps front {trial.sweep}' offers one that does, or says what to do; "
            "--allow-missed-pitch promotes this one all the same",
        )
    data = load_dataset(Path(dataset or ledger.facts.dataset_path))
    if data.facts.fingerprint != trial.provenance.dataset_fingerprint:
        raise DatasetError(
            f"'{data.path}' is not the dataset that trial {trial.id} was trained on",
            hint="name it with --data",
        )
    model = parse_candidate(trial.provenance.gin_config, trial.candidate)
    clips = data.clips("validation").subsampled(model.synth.hop_multiple)
    with tempfile.TemporaryDirectory() as folder:
        artifacts = Path(folder)
        ledger.get_artifacts(trial.id, artifacts)
        with _reporting_damage(trial):
            _check_decoder(artifacts, model, data, clips)
            decoder = (artifacts / DECODER_FILE).read_bytes()
            check_artifacts(artifacts)
            row = _representative(artifacts, clips, data.facts.clip_seconds)
        measured = Meter(measure_rtf)(decoder, data.facts.clip_seconds, model.measure)
        write_bundle(
            out,
            artifacts,
            trial=trial.to_record() | {"promotion": asdict(measured)},
            card=model_card(trial, measured, clips.sources[row]),
            clip=clips.audio[row],
            controls=Controls(clips.f0_hz[row], clips.loudness_db[row]),
        )
    try:
        return verify(out)
    except UserError:  # what was stored is of several models
        shutil.rmtree(out, ignore_errors=True)
        raise


@contextmanager
def _reporting_damage(trial: Trial) -> Iterator[None]:
    """Raises ExportError where what is stored as a trial's model is no model of its kind."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile) as error:
        raise ExportError(
            f"the stored model of trial {trial.id} cannot be read: {first_line(error)}",
            hint="the stored model was damaged; run the trial again in a new sweep",
        ) from error


def _check_decoder(artifacts: Path, model: ModelConfig, data: Dataset, clips: Clips) -> None:
    """Raises ExportError where the stored decoder is not the one that its weights describe."""
    session = Session(artifacts / DECODER_FILE)
    if (session.decoder_config, session.synth) != (model.decoder, model.synth):
        raise ExportError(
            "the stored decoder is of another candidate",
            hint="the stored model was damaged; run the trial again in a new sweep",
        )
    trained = read_decoder(artifacts, session, ExportError)
    inputs = decoder_inputs(clips.f0_hz[0], clips.loudness_db[0])
    if model.export.quantisation == "none":
        expected = decode(inputs, trained.weights, model.decoder)
    else:
        calibration = data.clips("train").subsampled(model.synth.hop_multiple)
        anew = Session(shipped_onnx(trained, model.export, calibration))
        expected = anew.decode(inputs[None])[0]
    error = float(abs(session.decode(inputs[None])[0] - expected).max())
    if not error <= MAX_ERROR:
        raise ExportError(
            f"the stored decoder differs from its weights by {error:.3g}, allowed {MAX_ERROR:g}",
            hint="the stored model was damaged; run the trial again in a new sweep",
        )


MOST_JUDGED_SECONDS = 160.0
"""Of validation clips, to find the one that a bundle holds: some five seconds of work."""


def _representative(artifacts: Path, clips: Clips, clip_seconds: float) -> int:
    """Returns the number of the clip that a bundle holds; see `representative`.

    Each of some clips that are heard is rendered as the bundle will render it, and compared by the
    spectral loss, in float64.
    """
    session, response = Session(artifacts / DECODER_FILE), read_audio(artifacts / REVERB_FILE)

    def loss(row: int) -> float:
        controls = Controls(clips.f0_hz[row], clips.loudness_db[row])
        audio = clips.audio[row]
        return spectral_loss(audio, render(session, response, controls)[: audio.size])

    rows = heard(clips)
    most = max(1, int(MOST_JUDGED_SECONDS / clip_seconds))
    rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.intp)]
    return int(rows[representative([loss(int(row)) for row in rows])])


def heard(clips: Clips) -> npt.NDArray[np.intp]:
    """Returns the numbers of the clips with something to hear, rising; at least one.

    Those in which frames that sound and are voiced are at least half as many as in the clip that
    has most of them: a clip that is mostly rest, or padding, says little of a model.
    """
    voiced = (clips.f0_confidence >= VOICED_CONFIDENCE) & sounding(clips.loudness_db)
    n_frames = voiced.sum(axis=1)
    return np.flatnonzero(2 * n_frames >= n_frames.max())


def representative(losses: Sequence[float]) -> int:
    """Returns which loss is the median; of an even number the lower one of the middle."""
    return int(np.argsort(losses, kind="stable")[(len(losses) - 1) // 2])


def _quality_rows(trial: Trial) -> str:
    """Returns table rows of what is known of the renderings: older records know nothing."""
    rows = []
    for name in (field.name for field in fields(Quality)):
        value, about = trial.metric(name), METRICS[name].metadata
        if value is not None:
            rows.append(f"| {about['description']} | {value:.3g} {about['unit']} |\n")
    return "".join(rows)


def _number(value: float | None, form: str) -> str:
    return "not recorded" if value is None else format(value, form)


def model_card(trial: Trial, measured: RtfMeasurement, source: str) -> str:
    """Returns the README of a bundle, Markdown."""
    m, p = trial.measurement, trial.provenance
    times = (measured.p50_seconds, measured.p95_seconds, measured.p99_seconds)
    quantiles = ", ".join(f"{seconds * 1e3:.3f} ms" for seconds in times)
    axes = "\n".join(f"| {name} | {value} |" for name, value in trial.candidate.values)
    field = "the whole clip"
    if m.receptive_field_frames is not None:
        seconds = _number(m.receptive_field_seconds, ".3g")
        field = f"{m.receptive_field_frames} frames, {seconds} s"
    ratio = (
        f"{measured.rtf_ratio:.3f} [{measured.rtf_ratio_low:.3f}, {measured.rtf_ratio_high:.3f}]"
    )
    return f"""\
# Model {trial.id}

A DDSP decoder found by the sweep '{trial.sweep}': pitch and loudness in, parameters of a harmonic
synthesiser, filtered noise and a reverb out.

| | |
|---|---|
| spectral loss, validation clips, exported model | {_number(m.val_loss, ".4f")} |
{_quality_rows(trial)}\
| real-time factor of the decoder | {measured.rtf:.3g} ({1 / measured.rtf:,.0f}x real time) |
| relative to DDSP-CNN-Tiny [95%] | {ratio} |
| p50, p95, p99 of one clip | {quantiles} |
| measured on | {processor()}, one thread, ONNX Runtime {p.versions.get("onnxruntime", "")} |
| parameters, with reverb | {_number(m.parameters, ",")}, {_number(m.parameters_with_reverb, ",")} |
| receptive field | {field} |
| largest difference to the trained model | {_number(m.export_max_error, ".2g")} |

## Architecture

| axis | value |
|---|---|
{axes}

The full configuration is in `{CONFIG_FILE}`.

## Use

`{SYNTH_STREAM_FILE}` plays: `f0_hz` and `loudness_db` [frames] in blocks, `audio` out, and whatever
`state/NAME` takes is what `next/NAME` gave for the block before, zeros at first. In Python, with
ONNX Runtime:

    stream = load_bundle(Path(".")).stream()
    audio = stream(f0_hz, loudness_db)  # of a block; late by stream.latency_samples

`{HEADER_FILE}` is the same model in C, for plugins: one header that needs nothing; its first
comment says how. `{DECODER_STREAM_FILE}` is the decoder alone, in blocks. `{DECODER_FILE}` takes
whole clips, `inputs` [1, 2, frames], loudness_db / 80 + 1 and the MIDI note of f0 / 127, and gives
`outputs` [1, channels, frames]; its metadata says how they are split. `{REVERB_FILE}` is the room.
(A model whose norm needs the whole clip, or one in 8-bit integers, has neither streams nor header.)
Play a recording through it:

    sweeps render . in.wav out.wav

or from Python:

    from pathlib import Path
    from thesis.bundle import load_bundle

    bundle = load_bundle(Path("."))
    audio = bundle.render(bundle.controls())

`{CLIP_FILE}` is a validation clip, from {source}: of those with something to hear, one with the
median loss. `{RENDERING_FILE}` is what the model makes of its pitch and loudness.
`sweeps verify .` checks all files and renders the clip again.
"""
