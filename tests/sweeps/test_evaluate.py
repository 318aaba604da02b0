"""One candidate from start to end: what is recorded when it goes well, and when it does not."""

import errno
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest

from sweeps import __version__
from sweeps.config import find_run, load_run, parse_candidate, parse_run
from sweeps.errors import LedgerError
from sweeps.evaluate import (
    ARTIFACTS,
    HISTORY_FILE,
    SUMMARIES,
    _History,
    blame_full_disk,
    cause_of,
    evaluate,
    rung_steps,
    stages,
)
from sweeps.trial import Measurement, Provenance, Reason, Status
from thesis import reference
from thesis.bundle import ARTIFACT_FILES, read_audio
from thesis.config import SynthConfig, stages_of
from thesis.controls import absolute_levels, decoder_inputs, white_noise
from thesis.data import ClipFormat, write_dataset
from thesis.errors import ConfigError, DatasetError, ExportError
from thesis.measure import RtfMeasurement, graph_hash
from thesis.metrics import Quality, compare
from thesis.runtimes.onnx_runtime import Session

FRESH = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from sweeps.evaluate import Task, evaluate
from sweeps.trial import Candidate
from thesis.measure import RtfMeasurement

task = json.load(sys.stdin)
task["candidate"] = Candidate.from_json(task["candidate"])
measured = RtfMeasurement(**json.loads(sys.argv[2]))
trial = evaluate(Task(**task), workdir=Path(sys.argv[1]), measure=lambda *_: measured)
print(json.dumps(asdict(trial.measurement)))
"""

MEASURED = RtfMeasurement(
    rtf=1e-4,
    rtf_ratio=1.5,
    rtf_ratio_low=1.4,
    rtf_ratio_high=1.6,
    reference_rtf=7e-5,
    reference_drift=0.02,
    reference_frames=125,
    p50_seconds=1e-4,
    p95_seconds=2e-4,
    p99_seconds=3e-4,
    calls=100,
    host="here",
    host_fingerprint="0123456789ab",
    measured_at=1.0,
    measure_attempts=2,
    measure_conditions={"load_average": 0.5},
)


@pytest.fixture(scope="module", autouse=True)
def fresh_process(task_of, tmp_path_factory):
    """Evaluates a candidate in a process of its own, while the other tests run."""
    task = task_of(channels=3, block="inverted_bottleneck")
    values = json.dumps({**vars(task), "candidate": task.candidate.to_json()})
    command = [sys.executable, "-c", FRESH, str(tmp_path_factory.mktemp("fresh"))]
    process = subprocess.Popen(
        [*command, json.dumps(asdict(MEASURED))],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    process.stdin.write(values)
    process.stdin.close()
    process.stdin = None
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def measure():
    """Measures nothing; counts how often it was asked to."""

    def measure(model, audio_seconds, config):
        measure.calls.append((model, audio_seconds, config))
        return MEASURED

    measure.calls = []
    return measure


@pytest.fixture
def every_step(monkeypatch):
    monkeypatch.setattr("thesis.train.REPORT_EVERY", 1)


def limited(*overrides):
    """The run 'tiny' with limits; nothing of it is meant to be trained."""
    return load_run(find_run("tiny"), overrides)


def never(*_, **__):
    pytest.fail("paid for a candidate that is not feasible")


# --- It goes well ---


def test_a_completed_trial_has_every_metric(completed):
    trial, _ = completed
    assert trial.status is Status.COMPLETED
    assert trial.reason is None
    assert trial.detail == ""
    for name, value in asdict(trial.measurement).items():
        assert value is not None, name
        assert math.isfinite(value), name
    m = trial.measurement
    assert 0 < m.rtf_ratio_low <= m.rtf_ratio <= m.rtf_ratio_high
    assert m.export_max_error < 1e-5
    assert m.parameters == 3 * 2 * 4 + 6 * 3 * 4 * 4 + 7 * 2 * 4 + 4 * 18 + 18
    assert m.parameters_with_reverb == m.parameters + 800


def test_a_trial_says_where_it_comes_from(completed, dataset, task_of):
    trial, _ = completed
    task, p = task_of(channels=4), trial.provenance
    assert (trial.sweep, trial.candidate) == (task.sweep, task.candidate)
    assert p.gin_config == task.gin_text
    assert p.dataset_fingerprint == dataset.facts.fingerprint
    assert (p.seed, p.train_steps) == (0, 4)
    assert p.host
    assert len(p.host_fingerprint) == 12
    assert {"python", "tensorflow-cpu", "onnxruntime", "numpy"} <= p.versions.keys()
    assert p.versions["ddsp-sweeps"] == __version__
    assert p.train_seconds > 0
    assert p.measure_seconds > 0
    assert 0 <= p.train_seconds + p.measure_seconds <= p.finished_at - p.started_at
    assert p.started_at <= p.measured_at <= p.finished_at
    assert p.measure_attempts == 1
    assert p.measure_conditions["load_average"] >= 0


def test_the_artifacts_are_those_that_a_bundle_needs(completed):
    trial, workdir = completed
    folder = workdir / ARTIFACTS
    assert sorted(path.name for path in folder.iterdir()) == sorted(ARTIFACT_FILES)
    assert (folder / "model.gin").read_text() == trial.provenance.gin_config
    assert (folder / "decoder.onnx").stat().st_size == trial.measurement.model_bytes


def test_summaries_are_among_the_artifacts_of_a_trial_that_asks_for_them(
    small_run, task_of, measure, tmp_path
):
    run = parse_run(small_run.text + "\ntrain.summaries = True\ntrain.steps = 1\n")
    trial = evaluate(task_of(run=run, channels=3), workdir=tmp_path, measure=measure)
    assert trial.status is Status.COMPLETED
    (events,) = (tmp_path / ARTIFACTS / SUMMARIES).iterdir()
    assert b"train/loss" in events.read_bytes()


def test_the_stored_decoder_is_the_one_of_the_stored_weights(completed):
    trial, workdir = completed
    config = parse_candidate(trial.provenance.gin_config, trial.candidate).decoder
    inputs = np.random.default_rng(0).random((50, 2)).astype(np.float32)
    with np.load(workdir / ARTIFACTS / "weights.npz", allow_pickle=False) as weights:
        expected = reference.decode(inputs, weights, config)
        assert sum(weights[name].size for name in weights) == trial.measurement.parameters
    outputs = Session(workdir / ARTIFACTS / "decoder.onnx").decode(inputs[None])[0]
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_the_quality_is_that_of_the_stored_model_on_the_validation_clips(completed, dataset):
    trial, workdir = completed
    clips, facts = dataset.clips("validation"), dataset.facts
    session = Session(workdir / ARTIFACTS / "decoder.onnx")
    response = read_audio(workdir / ARTIFACTS / "reverb.wav")
    inputs = decoder_inputs(clips.f0_hz, clips.loudness_db)
    synth = SynthConfig(**session.metadata["synth"])
    renderings = [
        reference.synthesize(
            absolute_levels(session.decode(inputs[i : i + 1])[0], inputs[i], synth),
            clips.f0_hz[i],
            noise,
            response,
            config=synth,
            sample_rate=facts.sample_rate,
            hop_size=facts.hop_size,
        )
        for i, noise in enumerate(white_noise(0, *clips.audio.shape))
    ]
    losses = [reference.spectral_loss(*pair) for pair in zip(clips.audio, renderings, strict=True)]
    # After so few steps the audio is nearly silent, and the logarithms of bins that are all but
    # empty are known to float32 to a few parts in ten thousand.
    assert trial.measurement.val_loss == pytest.approx(np.mean(losses), rel=3e-4)
    quality = asdict(compare(clips, np.array(renderings, np.float32), facts))
    assert len(quality) == 10
    for name, expected in quality.items():
        assert trial.metric(name) == pytest.approx(expected, rel=1e-3), name


def test_progress_tells_each_stage_and_step(task_of, measure, every_step, tmp_path):
    progress = list(stages(task_of(), workdir=tmp_path, measure=measure))
    assert [p.stage for p in progress] == ["build", "measure", *["train"] * 4, "export"]
    assert [p.step for p in progress] == [0, 0, 1, 2, 3, 4, 4]
    assert {p.steps for p in progress} == {4}
    assert [p.train_loss for p in progress[:2]] == [None, None]
    assert all(p.train_loss > 0 for p in progress[2:])


def test_what_is_measured_is_the_graph_of_the_trained_decoder_on_a_clip(task_of, measure, tmp_path):
    trial = evaluate(task_of(), workdir=tmp_path, measure=measure)
    ((model, audio_seconds, config),) = measure.calls
    trained = (tmp_path / ARTIFACTS / "decoder.onnx").read_bytes()
    assert model != trained
    assert graph_hash(model) == graph_hash(trained)
    assert audio_seconds == 0.5
    assert config.max_calls == 20
    shared = {f.name for f in fields(RtfMeasurement)} & {f.name for f in fields(Measurement)}
    assert len(shared) == 9
    assert {getattr(trial.measurement, name) == getattr(MEASURED, name) for name in shared} == {
        True
    }
    shared = {f.name for f in fields(RtfMeasurement)} & {f.name for f in fields(Provenance)}
    assert len(shared) == 5
    for name in shared:
        assert getattr(trial.provenance, name) == getattr(MEASURED, name)


def finish(running):
    """The steps that an evaluation still reports, and its trial."""
    steps = []
    while True:
        try:
            steps.append(next(running).step)
        except StopIteration as finished:
            return steps, finished.value


def test_an_interrupted_evaluation_continues_from_its_checkpoint(
    task_of, measure, every_step, tmp_path
):
    whole = evaluate(task_of(), workdir=tmp_path / "whole", measure=measure)
    running = stages(task_of(), workdir=tmp_path / "cut", measure=measure)
    for progress in running:
        if progress.step == 3:
            break
    running.close()
    again = stages(task_of(), workdir=tmp_path / "cut", measure=measure)
    steps, trial = finish(again)
    assert steps == [0, 0, 3, 4, 4]
    assert trial.status is Status.COMPLETED
    assert trial.provenance.train_steps == 4
    for name in ("val_loss", "train_loss"):
        assert trial.metric(name) == pytest.approx(whole.metric(name), rel=1e-6)


def test_an_evaluation_interrupted_after_training_is_as_complete_as_any(
    task_of, measure, tmp_path, monkeypatch
):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("thesis.train.validate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(task_of(), workdir=tmp_path, measure=measure)
    trial = evaluate(task_of(), workdir=tmp_path, measure=measure)
    assert trial.status is Status.COMPLETED
    assert trial.measurement.train_loss > 0
    assert trial.provenance.train_steps == 4


def test_two_candidates_in_one_process_equal_two_in_fresh_ones(
    task_of, measure, tmp_path, fresh_process
):
    other = load_run(
        find_run("tiny"),
        [
            "STEPS=1",
            "LEARNING_RATE=0.1",
            "SEED=5",
            "BATCH_SIZE=2",
            "NORM=('none',)",
            "DilatedConvStack.norm='none'",
            "train.clip_norm=0.1",
            "Synth.n_harmonics=8",
        ],
    )
    evaluate(task_of(other), workdir=tmp_path / "first", measure=measure)
    task = task_of(channels=3, block="inverted_bottleneck")
    trial = evaluate(task, workdir=tmp_path / "second", measure=measure)

    output, _ = fresh_process.communicate(timeout=200)
    assert fresh_process.returncode == 0
    fresh = json.loads(output.splitlines()[-1])
    for name, value in asdict(trial.measurement).items():
        # An error of 1e-7 is rounding, which threads may do in another order. A rendering without
        # a pitch has no error of pitch.
        expected = value if value is None else pytest.approx(value, rel=1e-5, abs=1e-6)
        assert fresh[name] == expected, name


# --- Rungs ---


@pytest.fixture
def rungs_run(small_run):
    """Four steps, validated after the first and the third as well."""
    return parse_run(small_run.text + "\nsweep.rungs = (0.25, 0.75)\n")


def test_a_rung_gives_the_validation_loss_of_the_decoder_as_it_is_then(
    rungs_run, task_of, measure, every_step, tmp_path
):
    # A cosine ends with the trial: the third of three steps is not the third of four.
    constant = rungs_run.text + "\ntrain.schedule = 'exponential'\n"
    stopped_at_three = parse_run(constant + "train.steps = 3\n")
    expected = evaluate(task_of(run=stopped_at_three), workdir=tmp_path / "3", measure=measure)
    trial = evaluate(task_of(run=parse_run(constant)), workdir=tmp_path / "4", measure=measure)
    assert trial.status is Status.COMPLETED
    assert list(trial.curve) == [1, 3]
    assert trial.curve[3] == pytest.approx(expected.measurement.val_loss, rel=1e-4)
    assert len({*trial.curve.values(), trial.measurement.val_loss}) == 3


def test_what_a_trial_has_reached_at_a_rung_is_a_pruned_trial(
    rungs_run, task_of, measure, every_step, tmp_path
):
    progress = list(stages(task_of(run=rungs_run), workdir=tmp_path, measure=measure))
    reached = {p.step: p.reached for p in progress if p.reached}
    assert list(reached) == [1, 3]
    for step, trial in reached.items():
        assert trial.status is Status.PRUNED
        assert max(trial.curve) == trial.provenance.train_steps == step
        assert trial.measurement.rtf_ratio == MEASURED.rtf_ratio
        assert trial.measurement.train_loss > 0
        assert trial.measurement.val_loss is None
        assert trial.measurement.export_max_error is None
    assert list(reached[1].curve) == [1]


def test_an_interrupted_evaluation_keeps_its_curve_and_its_time(
    rungs_run, task_of, measure, every_step, tmp_path, monkeypatch
):
    whole = evaluate(task_of(run=rungs_run), workdir=tmp_path / "whole", measure=measure)
    running = stages(task_of(run=rungs_run), workdir=tmp_path / "cut", measure=measure)
    while next(running).step < 3:  # a rung, and no multiple of `checkpoint_every`
        pass
    seconds = json.loads((tmp_path / "cut" / HISTORY_FILE).read_text())["train_seconds"]
    assert seconds > 0
    again = stages(task_of(run=rungs_run), workdir=tmp_path / "cut", measure=measure)
    steps, trial = finish(again)
    assert steps == [0, 0, 4, 4]
    assert trial.curve == pytest.approx(whole.curve, rel=1e-5)
    assert trial.provenance.train_seconds > seconds


def test_without_rungs_nothing_is_validated_before_the_end(completed):
    trial, _ = completed
    assert trial.curve == {}


@pytest.mark.parametrize(
    ("shares", "steps", "expected"),
    [
        ((0.1, 0.2, 0.5), 300, [30, 60, 150]),
        ((1 / 3,), 300, [100]),
        ((0.11, 0.12), 300, [40]),  # one report serves both
        ((0.5, 0.999), 300, [150]),  # the end is validated anyway
        ((0.5,), 4, []),
        ((), 300, []),
    ],
)
def test_rungs_are_where_training_reports(shares, steps, expected):
    assert rung_steps(shares, steps, every=10) == expected


# --- It does not ---


def failed(task, tmp_path, measure, reason):
    trial = evaluate(task, workdir=tmp_path, measure=measure)
    assert trial.reason is reason
    assert trial.status is reason.status
    assert trial.detail
    assert "\n" not in trial.detail
    assert trial.measurement.val_loss is None
    assert trial.measurement.parameters > 0
    assert trial.provenance.gin_config == task.gin_text
    assert not (tmp_path / ARTIFACTS).exists()
    return trial


def test_a_loss_that_becomes_nan_is_a_reason(dataset, task_of, measure, tmp_path, monkeypatch):
    nan = np.full_like(dataset.clips("train").audio[0], np.nan)
    monkeypatch.setattr("thesis.data._in_range", lambda *_: True)  # no dataset has such clips
    broken = copy_with(dataset, tmp_path / "data", audio=nan)
    trial = failed(task_of(path=broken.path), tmp_path, measure, Reason.DIVERGED)
    assert "step 1" in trial.detail
    assert trial.measurement.rtf_ratio == MEASURED.rtf_ratio


@pytest.mark.parametrize(
    "left",
    [
        b"",
        b"[",
        b"[]",
        b"{}",
        b'{"curve": {"a": 1.0}, "train_seconds": 1}',
        b'{"curve": {"2": NaN}, "train_seconds": 1}',
        b'{"curve": {"2": "1"}, "train_seconds": 1}',
        b'{"curve": [], "train_seconds": 1}',
        b'{"curve": {}, "train_seconds": 1e999}',
        b"\xff",
    ],
)
def test_a_history_that_was_damaged_is_begun_anew(tmp_path, left):
    file = tmp_path / HISTORY_FILE
    assert _History.read(file) == _History()
    _History({2: 1.5}, 3.0).write(file)
    assert _History.read(file) == _History({2: 1.5}, 3.0)
    file.write_bytes(left)
    assert _History.read(file) == _History()


def copy_with(dataset, path, **columns):
    """The dataset with columns of its training clips replaced."""
    from thesis.data import Clip

    made = [
        Clip(
            clip_id=clips.ids[i],
            source=clips.sources[i],
            start_seconds=0.0,
            split=split,
            **{
                name: columns[name] if name in columns and split == "train" else values[i]
                for name in ("audio", "f0_hz", "f0_confidence", "loudness_db")
                for values in [getattr(clips, name)]
            },
        )
        for split in ("train", "validation")
        for clips in [dataset.clips(split)]
        for i in range(len(clips))
    ]
    return write_dataset(
        path,
        made,
        clip_format=ClipFormat(
            **{f.name: getattr(dataset.facts, f.name) for f in fields(ClipFormat)}
        ),
        f0_estimator="known",
        sources=dataset.facts.sources,
        skipped={},
        total_seconds=2.5,
    )


def test_a_validation_loss_that_is_infinite_is_a_reason(task_of, measure, tmp_path, monkeypatch):
    from thesis.train import Validation

    def validate(model, clips, outputs_of):
        return Validation(np.zeros_like(clips.audio), np.array([1.0, np.inf], np.float32))

    monkeypatch.setattr("thesis.train.validate", validate)
    trial = failed(task_of(), tmp_path, measure, Reason.DIVERGED)
    assert trial.detail == "the validation loss is inf"


def test_an_export_that_differs_is_a_reason(task_of, measure, tmp_path, monkeypatch):
    from thesis import export

    exported = export.decoder_onnx

    def off_by_a_hundredth(decoder, synth, weights, **rates):
        moved = {**weights, "output/bias": weights["output/bias"] + np.float32(0.01)}
        return exported(decoder, synth, moved, **rates)

    monkeypatch.setattr("thesis.runtimes.contract.decoder_onnx", off_by_a_hundredth)
    trial = failed(task_of(), tmp_path, measure, Reason.EXPORT_MISMATCH)
    assert "largest difference 0.01 over" in trial.detail
    assert trial.measurement.export_max_error == pytest.approx(0.01, rel=1e-2)


def test_a_trained_decoder_that_is_nan_has_diverged(task_of, measure, tmp_path, monkeypatch):
    from thesis.decoder import Decoder

    decode = Decoder.__call__

    def nan_unless_trained(self, inputs, training=False, keep_moments=True):
        return decode(self, inputs, training, keep_moments) * (1.0 if training else np.nan)

    monkeypatch.setattr(Decoder, "__call__", nan_unless_trained)
    trial = failed(task_of(), tmp_path, measure, Reason.DIVERGED)
    assert "not finite" in trial.detail


def test_an_export_that_is_nan_for_one_clip_differs(task_of, measure, tmp_path, monkeypatch):
    decode = Session.decode
    seen = []

    def nan_from_the_second_clip_on(self, inputs):
        seen.append(inputs)
        return decode(self, inputs) * (np.nan if len(seen) > 1 else 1)

    monkeypatch.setattr(Session, "decode", nan_from_the_second_clip_on)
    failed(task_of(), tmp_path, measure, Reason.EXPORT_MISMATCH)


def test_a_decoder_that_the_runtime_refuses_is_a_reason(task_of, measure, tmp_path, monkeypatch):
    monkeypatch.setattr("thesis.runtimes.contract.decoder_onnx", lambda *_, **__: b"no model")
    trial = failed(task_of(), tmp_path, measure, Reason.ERROR)
    assert trial.detail.startswith("ExportError: model is no decoder")


def test_a_measurement_that_cannot_load_the_decoder_is_a_reason(task_of, tmp_path):
    def refuse(*_):
        raise ExportError("model is no decoder", hint="export it again")

    trial = evaluate(task_of(), workdir=tmp_path, measure=refuse)
    assert (trial.reason, trial.detail) == (Reason.ERROR, "ExportError: model is no decoder")


def test_a_slow_candidate_is_measured_and_not_trained(task_of, measure, tmp_path, monkeypatch):
    monkeypatch.setattr("thesis.train.train", never)
    trial = failed(task_of(limited("MAX_RTF_RATIO=1.2")), tmp_path, measure, Reason.RTF)
    assert trial.status is Status.INFEASIBLE
    assert trial.measurement.rtf_ratio == MEASURED.rtf_ratio
    assert trial.provenance.host_fingerprint == MEASURED.host_fingerprint
    assert trial.provenance.train_steps == 0
    assert len(measure.calls) == 1


def test_a_candidate_at_the_rtf_limit_is_trained(small_run, task_of, measure, tmp_path):
    run = replace(small_run, text=small_run.text + "\nsweep.max_rtf_ratio = 1.5\n")
    trial = evaluate(task_of(run), workdir=tmp_path, measure=measure)
    assert trial.status is Status.COMPLETED


@pytest.mark.parametrize(
    ("missed", "reason"),
    [(1.0, Reason.MISSED_PITCH), (0.3, None), (None, None)],
    ids=["silent", "on the limit", "no frame is voiced"],
)
def test_a_candidate_that_misses_the_pitch_is_infeasible_and_loses_nothing(
    small_run, task_of, measure, tmp_path, monkeypatch, missed, reason
):
    monkeypatch.setattr("thesis.metrics.compare", lambda *_: Quality(None, missed, 5.0, 20.0))
    run = replace(small_run, text=small_run.text + "\nsweep.max_f0_missed_share = 0.3\n")
    trial = evaluate(task_of(run), workdir=tmp_path, measure=measure)
    assert trial.reason is reason
    assert trial.detail == ("f0_missed_share is 1, the limit 0.3" if reason else "")
    assert trial.status is (Status.INFEASIBLE if reason else Status.COMPLETED)
    m = trial.measurement
    assert (m.f0_missed_share, m.loudness_error_db) == (missed, 5.0)
    assert m.val_loss > 0
    assert m.rtf_ratio == MEASURED.rtf_ratio
    assert trial.provenance.train_steps == 4
    assert sorted(path.name for path in (tmp_path / ARTIFACTS).iterdir()) == sorted(ARTIFACT_FILES)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("sweep.max_receptive_field_seconds=0.1", Reason.RECEPTIVE_FIELD),
        ("sweep.max_parameters=1000", Reason.PARAMETERS),
    ],
)
def test_a_candidate_over_a_closed_form_limit_is_not_even_built(
    task_of, measure, tmp_path, monkeypatch, override, reason
):
    monkeypatch.setattr("thesis.build.build", never)
    trial = failed(task_of(limited(override)), tmp_path, measure, reason)
    assert trial.status is Status.INFEASIBLE
    assert trial.measurement.rtf is None
    assert not measure.calls


def raising(error):
    def train(*_, **__):
        raise error
        yield

    return train


def test_too_little_memory_is_a_reason(task_of, measure, tmp_path, monkeypatch):
    from thesis._ddsp import tf

    exhausted = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating\ntensor")
    for error in (MemoryError(), MemoryError("no room"), exhausted):
        monkeypatch.setattr("thesis.train.train", raising(error))
        trial = failed(task_of(), tmp_path, measure, Reason.OUT_OF_MEMORY)
        assert type(error).__name__ in trial.detail


def test_a_full_disk_is_not_the_candidate_s_fault(task_of, measure, tmp_path, monkeypatch):
    from thesis._ddsp import tf

    words = os.strerror(errno.ENOSPC)
    checkpoint = tf.errors.ResourceExhaustedError(None, None, f"ckpt-1.tempstate7; {words}")
    for error in (OSError(errno.ENOSPC, words), checkpoint):
        monkeypatch.setattr("thesis.train.train", raising(error))
        with pytest.raises(LedgerError, match=words) as caught:
            evaluate(task_of(), workdir=tmp_path, measure=measure)
        assert caught.value.hint.startswith("free some space")


def test_an_unexpected_error_is_recorded_with_its_message(task_of, measure, tmp_path, monkeypatch):
    monkeypatch.setattr("thesis.train.train", raising(ValueError("no such\nluck")))
    trial = failed(task_of(), tmp_path, measure, Reason.ERROR)
    assert trial.detail.startswith("ValueError: no such luck (test_evaluate.py, line ")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_who_stops_the_program_is_not_recorded(task_of, measure, tmp_path, monkeypatch, error):
    monkeypatch.setattr("thesis.train.train", raising(error()))
    with pytest.raises(error):
        evaluate(task_of(), workdir=tmp_path, measure=measure)


# --- The sweep itself is wrong ---


def test_a_missing_dataset_is_the_users_to_mend(task_of, measure, tmp_path):
    with pytest.raises(DatasetError, match="no dataset at"):
        evaluate(task_of(path=tmp_path / "gone"), workdir=tmp_path, measure=measure)


def test_a_dataset_that_breaks_underway_is_the_users_to_mend(
    task_of, measure, tmp_path, monkeypatch
):
    monkeypatch.setattr("thesis.train.train", raising(DatasetError("gone", hint="bring it back")))
    with pytest.raises(DatasetError):
        evaluate(task_of(), workdir=tmp_path, measure=measure)


def test_a_configuration_that_is_not_the_candidates_is_the_users_to_mend(
    small_run, task_of, measure, tmp_path
):
    task = replace(task_of(channels=4), gin_text=small_run.text)
    with pytest.raises(ConfigError, match="does not reach the model"):
        evaluate(task, workdir=tmp_path, measure=measure)


def test_the_small_run_is_what_these_tests_think(small_run):
    assert stages_of(small_run.model)["train"].steps == 4
    assert small_run.sweep.limits.rtf_ratio is None


def test_an_exception_of_any_words_is_a_line_that_can_be_stored(tmp_path):
    class SpeechlessError(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    blame_full_disk(SpeechlessError(), tmp_path)
    assert cause_of(SpeechlessError()) == "SpeechlessError: "
    assert cause_of(OSError(os.fsdecode(b"no n\xff"))).encode() == b"OSError: no n\\udcff"
