"""Promotion: a completed trial becomes a verified bundle, anything else one line."""

import io
import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from sweeps import promote as stage
from sweeps.bundles import verify
from sweeps.errors import SweepError, TrialError
from sweeps.evaluate import ARTIFACTS, evaluate
from sweeps.ledger import Ledger, SweepFacts
from sweeps.promote import model_card, promote
from sweeps.trial import METRICS, Candidate, Measurement, Reason
from thesis.bundle import (
    ARTIFACT_FILES,
    CHECKSUMS_FILE,
    CONFIG_FILE,
    DECODER_FILE,
    TRIAL_FILE,
    WEIGHTS_FILE,
    Controls,
    load_bundle,
    read_audio,
)
from thesis.data import Clips
from thesis.errors import BundleError, ConfigError, DatasetError, ExportError
from thesis.files import sha256
from thesis.measure import ROUNDS, RtfMeasurement
from thesis.metrics import Quality
from thesis.prepare import prepare_demo
from thesis.reference import spectral_loss


def make_ledger(storage, dataset, run):
    facts = SweepFacts(
        name="small",
        gin_config=run.text,
        dataset_fingerprint=dataset.facts.fingerprint,
        objectives=run.sweep.objectives,
        dataset_path=str(dataset.path),
    )
    return Ledger.create(str(storage), "small", facts)


def missing(trial, share):
    """A trial that misses so much of the pitch."""
    return replace(trial, measurement=replace(trial.measurement, f0_missed_share=share))


@pytest.fixture(scope="module")
def trial(completed):
    """A completed trial that sings. In four steps nothing learns to, but its record says so."""
    return missing(completed[0], 0.1)


@pytest.fixture(scope="module")
def storage(completed, trial, dataset, small_run, tmp_path_factory):
    """Storage of a sweep with a completed trial, one that diverged and one that was too slow."""
    workdir = completed[1]
    folder = tmp_path_factory.mktemp("runs")
    ledger = make_ledger(folder, dataset, small_run)
    ledger.append(trial)
    ledger.put_artifacts(trial.id, workdir / ARTIFACTS)
    for channels, reason in ((32, Reason.DIVERGED), (24, Reason.RTF)):
        candidate = Candidate.of({"channels": channels})
        ledger.append(replace(trial, candidate=candidate, reason=reason, detail="so it was"))
    return str(folder)


@pytest.fixture(scope="module")
def bundle(storage, trial, tmp_path_factory):
    """A promoted trial; no test may change it."""
    return promote(storage, trial.id, tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture
def spoiled(storage, trial, dataset, small_run, completed, tmp_path):
    """A function: storage of the trial with an artefact replaced."""

    def spoiled(name, content):
        folder = shutil.copytree(completed[1] / ARTIFACTS, tmp_path / "artifacts")
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        ledger = make_ledger(tmp_path / "runs", dataset, small_run)
        ledger.append(trial)
        ledger.put_artifacts(trial.id, folder)
        return str(tmp_path / "runs")

    return spoiled


# --- A stranger's record ---


def test_the_configuration_of_a_record_is_data(trial, dataset, small_run, tmp_path, canary):
    text = f"import canary_module\n{trial.provenance.gin_config}"
    ledger = make_ledger(tmp_path / "runs", dataset, small_run)
    ledger.append(replace(trial, provenance=replace(trial.provenance, gin_config=text)))
    with pytest.raises(ConfigError, match="'canary_module' is imported"):
        promote(str(tmp_path / "runs"), trial.id, tmp_path / "bundle")
    assert not canary.exists()
    assert not (tmp_path / "bundle").exists()


# --- A bundle ---


def test_a_promoted_trial_is_a_bundle_that_verifies(bundle, trial):
    assert verify(bundle.path) == bundle
    assert bundle.trial["id"] == trial.id


def rewritten(bundle, folder, name, change):
    """A copy of a bundle with a text changed, and checksums that match."""
    shutil.copytree(bundle.path, folder)
    (folder / name).write_text(change((folder / name).read_text()))
    names = [line.split("  ")[1] for line in (folder / CHECKSUMS_FILE).read_text().splitlines()]
    sums = [f"{sha256(folder / name)}  {name}\n" for name in names]
    (folder / CHECKSUMS_FILE).write_text("".join(sums))
    return folder


@pytest.mark.parametrize(
    "values",
    [
        {"id": "deadbeefdead"},
        {"id": ""},
        {"axis_colour": "red"},
        {"axis_colour": [1]},
        {"macs_per_frame": 1},
        {"receptive_field_frames": 1, "receptive_field_seconds": None},
        {"model_bytes": 1},
    ],
    ids=str,
)
def test_a_record_of_another_trial_is_found(bundle, tmp_path, values):
    path = rewritten(
        bundle, tmp_path / "b", TRIAL_FILE, lambda text: json.dumps(json.loads(text) | values)
    )
    with pytest.raises(BundleError, match=TRIAL_FILE):
        verify(path)


@pytest.mark.parametrize(
    "line",
    [
        "DilatedConvStack.channels = \\\n  77",
        "thesis.config.DilatedConvStack.channels = (\n77)",
        "DilatedConvStack.channels = %N\nN = 77",
        "DilatedConvStack.channels = %x/N\nx/N = 77",
        "DilatedConvStack.channels = %M\nM = %N\nN = 77",
        "DilatedConvStack:\n  channels = 77",
        "import canary_module",
        "include 'x.gin'",
        "f.x = @open('x')",
    ],
)
def test_a_configuration_of_another_model_is_found_however_it_is_laid_out(
    bundle, tmp_path, canary, line
):
    path = rewritten(bundle, tmp_path / "b", CONFIG_FILE, lambda text: f"{text}\n{line}\n")
    with pytest.raises(BundleError, match=CONFIG_FILE):
        verify(path)
    assert not canary.exists()


def test_a_trial_is_promoted_from_an_object_store(
    s3, completed, trial, dataset, small_run, bundle, tmp_path
):
    workdir = completed[1]
    ledger = make_ledger(s3(tmp_path.name), dataset, small_run)
    ledger.append(trial)
    ledger.put_artifacts(trial.id, workdir / ARTIFACTS)
    promoted = promote(s3(tmp_path.name), trial.id, tmp_path / "bundle")
    assert verify(promoted.path) == promoted
    for name in ARTIFACT_FILES:
        assert (promoted.path / name).read_bytes() == (bundle.path / name).read_bytes()


def test_the_bundle_holds_what_the_trial_kept(bundle, completed):
    for name in ARTIFACT_FILES:
        kept = (completed[1] / ARTIFACTS / name).read_bytes()
        assert (bundle.path / name).read_bytes() == kept


def test_the_record_is_the_trials_with_the_measurement_at_promotion(bundle, trial):
    record = dict(bundle.trial)
    promotion = record.pop("promotion")
    assert record == json.loads(json.dumps(trial.to_record()))
    assert 0 < promotion["rtf_ratio_low"] <= promotion["rtf_ratio"]
    assert promotion["rtf_ratio"] != trial.measurement.rtf_ratio
    assert promotion["calls"] == 2 * ROUNDS


def test_the_clip_is_the_one_whose_loss_is_the_median(bundle, dataset):
    clips = dataset.clips("validation")
    losses = [
        spectral_loss(audio, bundle.render(Controls(f0_hz, loudness_db)))
        for audio, f0_hz, loudness_db in zip(
            clips.audio, clips.f0_hz, clips.loudness_db, strict=True
        )
    ]
    assert len(stage.heard(clips)) == len(losses) == 2  # the lower one of two
    row = int(np.argmin(losses))
    np.testing.assert_array_equal(read_audio(bundle.path / "clip.wav"), clips.audio[row])
    np.testing.assert_array_equal(bundle.controls().f0_hz, clips.f0_hz[row])
    assert clips.sources[row] in (bundle.path / "README.md").read_text()


@pytest.mark.parametrize(
    ("losses", "row"),
    [([3.0], 0), ([9.0, 2.0], 1), ([5.0, 9.0, 1.0], 0), ([4.0, 1.0, 3.0, 2.0], 3), ([2.0] * 5, 2)],
)
def test_neither_the_best_clip_nor_the_worst_is_representative(losses, row):
    assert stage.representative(losses) == row


def clips_of(*voiced, loudness_db=-20.0, n_frames=100):
    """Clips of which so many frames are voiced, all of one loudness where they are."""
    confidence = np.array([np.arange(n_frames) < n for n in voiced], np.float32)
    loudness = np.where(confidence > 0, loudness_db, -80.0).astype(np.float32)
    names = tuple(map(str, range(len(voiced))))
    audio = np.zeros((len(voiced), n_frames * 64), np.float32)
    return Clips(audio, 220 + confidence, confidence, loudness, names, names)


def test_clips_that_are_mostly_rest_are_not_considered():
    assert stage.heard(clips_of(10, 100, 49, 50, 0, 80)).tolist() == [1, 3, 5]
    assert stage.heard(clips_of(0, 3, 0)).tolist() == [1]
    assert stage.heard(clips_of(0, 0)).tolist() == [0, 1]


def test_loudness_does_not_choose_the_clip():
    clips = clips_of(100, 100, 90)
    clips.loudness_db[0] += 15
    assert stage.heard(clips).tolist() == [0, 1, 2]


def test_of_many_clips_some_are_judged_from_first_to_last(bundle, monkeypatch):
    clips = clips_of(*[100] * 9)
    judged = []
    monkeypatch.setattr(stage, "spectral_loss", lambda *_: len(judged))
    monkeypatch.setattr(stage, "render", lambda *_: judged.append(1) or np.zeros(6400))
    monkeypatch.setattr(stage, "MOST_JUDGED_SECONDS", 12.5)
    assert stage._representative(bundle.path, clips, 4.0) == 4
    assert len(judged) == 3
    assert stage._representative(bundle.path, clips, 100.0) == 0


def test_the_model_card_says_what_it_is_and_how_to_use_it(bundle, trial):
    card = (bundle.path / "README.md").read_text()
    m = trial.measurement
    for words in (
        f"# Model {trial.id}",
        f"{m.val_loss:.4f}",
        f"| {m.loudness_error_db:.3g} dB |",
        f"{m.parameters:,}",
        "| channels | 4 |",
        "sweeps render . in.wav out.wav",
        "sweeps verify .",
        "`decoder.onnx`",
    ):
        assert words in card
    assert "None" not in card
    assert "nan" not in card


def test_the_model_card_of_an_older_record_leaves_out_what_it_does_not_know(bundle, trial):
    measured = RtfMeasurement(**bundle.trial["promotion"])
    unknown = dict.fromkeys([field.name for field in fields(Quality)])
    older = replace(trial, measurement=replace(trial.measurement, **unknown))
    cards = [model_card(t, measured, "a.wav") for t in (trial, older)]
    new, old = (card.splitlines() for card in cards)
    assert len(new) - len(old) == len([name for name in unknown if trial.metric(name) is not None])
    assert set(old) < set(new)


def test_the_model_card_of_a_norm_over_time_says_that_it_sees_the_whole_clip(bundle, trial):
    unbounded = replace(
        trial.measurement, receptive_field_frames=None, receptive_field_seconds=None
    )
    card = model_card(
        replace(trial, measurement=unbounded),
        RtfMeasurement(**bundle.trial["promotion"]),
        "recording.wav",
    )
    assert "| receptive field | the whole clip |" in card
    assert "None" not in card


def test_the_python_of_the_model_card_runs(bundle, monkeypatch):
    card = (bundle.path / "README.md").read_text()
    code = card.partition("or from Python:")[2].partition("`clip.wav`")[0]
    code = "\n".join(line[4:] for line in code.splitlines() if line.startswith("    "))
    monkeypatch.chdir(bundle.path)
    names = {}
    exec(code, names)
    np.testing.assert_array_equal(names["audio"], bundle.render(bundle.controls()))


def test_the_beginning_of_an_id_and_the_sweep_are_enough(storage, trial, tmp_path):
    found = promote(storage, trial.id[:8], tmp_path / "out", sweep="small")
    assert found.trial["id"] == trial.id


def test_a_dataset_may_have_moved(storage, trial, dataset, small_run, completed, tmp_path):
    moved = shutil.copytree(dataset.path, tmp_path / "moved")
    gone = replace(dataset, path=tmp_path / "gone")
    ledger = make_ledger(tmp_path / "runs", gone, small_run)
    ledger.append(trial)
    ledger.put_artifacts(trial.id, completed[1] / ARTIFACTS)
    with pytest.raises(DatasetError, match="no dataset at"):
        promote(str(tmp_path / "runs"), trial.id, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    promote(str(tmp_path / "runs"), trial.id, tmp_path / "out", dataset=str(moved))
    load_bundle(tmp_path / "out")


# --- No bundle ---


def assert_refused(error, match, *arguments, left=(), **options):
    """Checks that a promotion to `out` is refused in one line and leaves nothing."""
    out = arguments[2]
    with pytest.raises(error, match=match) as caught:
        promote(*arguments, **options)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert {path.name for path in out.parent.iterdir()} <= {"runs", "artifacts", "data", *left}


@pytest.mark.parametrize(
    ("channels", "match"), [(32, "is failed: so it was"), (24, "is infeasible: so it was")]
)
def test_a_trial_that_did_not_complete_is_refused(storage, tmp_path, channels, match):
    trial_id = Candidate.of({"channels": channels}).id
    assert_refused(TrialError, match, storage, trial_id, tmp_path / "out")


def make_silent(folder, trial, dataset, run, workdir, limits=None):
    """Storage of one trial, which is taken as it is."""
    facts = SweepFacts(
        name="small",
        gin_config=run.text,
        dataset_fingerprint=dataset.facts.fingerprint,
        objectives=run.sweep.objectives,
        dataset_path=str(dataset.path),
        limits=limits,
    )
    ledger = Ledger.create(str(folder), "small", facts)
    ledger.append(trial)
    ledger.put_artifacts(trial.id, workdir / ARTIFACTS)
    return str(folder)


@pytest.mark.parametrize(
    ("missed", "limits", "said"),
    [
        (1.0, None, "f0_missed_share is 1, the limit 0.3"),
        (0.31, {}, "f0_missed_share is 0.31, the limit 0.3"),
        (0.2, {"f0_missed_share": 0.1}, "f0_missed_share is 0.2, the limit 0.1"),
    ],
)
def test_a_trial_that_does_not_sing_is_refused(
    trial, dataset, small_run, completed, tmp_path, monkeypatch, missed, limits, said
):
    silent = missing(trial, missed)
    runs = make_silent(tmp_path / "runs", silent, dataset, small_run, completed[1], limits)
    monkeypatch.setattr(stage, "load_dataset", lambda *_: pytest.fail("worked in vain"))
    with pytest.raises(TrialError, match=f"trial {trial.id} does not sing: {said}") as caught:
        promote(runs, trial.id, tmp_path / "out")
    assert "--allow-missed-pitch" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize("reason", [None, Reason.MISSED_PITCH])
def test_a_trial_that_does_not_sing_is_promoted_if_that_is_asked_for(
    trial, dataset, small_run, completed, tmp_path, reason
):
    """One that is infeasible for it has a model, too."""
    detail = "f0_missed_share is 1, the limit 0.3" if reason else ""
    silent = replace(missing(trial, 1.0), reason=reason, detail=detail)
    runs = make_silent(tmp_path / "runs", silent, dataset, small_run, completed[1])
    if reason:
        assert_refused(TrialError, f"does not sing: {detail}", runs, trial.id, tmp_path / "out")
    bundle = promote(runs, trial.id, tmp_path / "out", allow_missed_pitch=True)
    assert verify(bundle.path) == bundle
    assert bundle.trial["f0_missed_share"] == 1.0
    card = (bundle.path / "README.md").read_text()
    said = METRICS["f0_missed_share"].metadata["description"]
    assert f"| {said} | 1 " in card


def test_a_trial_of_which_it_is_not_known_whether_it_sings_is_promoted(
    trial, dataset, small_run, completed, tmp_path
):
    older = missing(trial, None)
    limits = {"f0_missed_share": 0.1}
    runs = make_silent(tmp_path / "runs", older, dataset, small_run, completed[1], limits)
    assert promote(runs, trial.id, tmp_path / "out").trial["f0_missed_share"] is None


def test_a_trial_within_the_limit_of_its_sweep_is_promoted(
    trial, dataset, small_run, completed, tmp_path
):
    hoarse, limits = missing(trial, 0.8), {"f0_missed_share": 0.8}
    runs = make_silent(tmp_path / "runs", hoarse, dataset, small_run, completed[1], limits)
    assert promote(runs, trial.id, tmp_path / "out").path.is_dir()


def test_an_unknown_trial_is_refused(storage, tmp_path):
    assert_refused(TrialError, "0000", storage, "0000", tmp_path / "out")


def test_an_unknown_sweep_is_refused(storage, trial, tmp_path):
    assert_refused(SweepError, "smal", storage, trial.id, tmp_path / "out", sweep="smal")


def test_what_exists_is_refused_before_any_work_and_left_alone(
    storage, trial, tmp_path, monkeypatch
):
    monkeypatch.setattr(stage, "find_trial", lambda *_: pytest.fail("worked in vain"))
    (tmp_path / "out").write_text("mine")
    assert_refused(BundleError, "exists already", storage, trial.id, tmp_path / "out", left=["out"])
    assert (tmp_path / "out").read_text() == "mine"


def test_a_damaged_dataset_is_refused(storage, trial, dataset, tmp_path):
    damaged = shutil.copytree(dataset.path, tmp_path / "data")
    content = bytearray((damaged / "clips.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / "clips.arrow").write_bytes(content)
    with pytest.raises(DatasetError, match="altered, cut short"):
        promote(storage, trial.id, tmp_path / "out", dataset=str(damaged))
    assert not (tmp_path / "out").exists()


def test_another_dataset_is_refused(storage, trial, tmp_path):
    other = prepare_demo(tmp_path / "data", n_train=1, n_validation=1, clip_seconds=0.5, seed=5)
    assert_refused(
        DatasetError,
        "is not the dataset",
        storage,
        trial.id,
        tmp_path / "out",
        dataset=str(other.path),
    )


def test_a_damaged_decoder_is_refused(spoiled, trial, tmp_path):
    storage = spoiled("decoder.onnx", b"no model")
    assert_refused(ExportError, "is no decoder", storage, trial.id, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x05\x06" + bytes(18)])
def test_weights_that_cannot_be_read_are_refused(spoiled, trial, tmp_path, content):
    storage = spoiled("weights.npz", content)
    assert_refused(ExportError, r"weights\.npz", storage, trial.id, tmp_path / "out")


def test_a_decoder_of_other_weights_is_refused(spoiled, completed, trial, tmp_path):
    with np.load(completed[1] / ARTIFACTS / "weights.npz") as weights:
        moved = {name: weights[name] + np.float32(name == "output/bias") for name in weights}
    np.savez(tmp_path / "data", **moved)
    content = (tmp_path / "data.npz").read_bytes()
    (tmp_path / "data.npz").unlink()
    storage = spoiled("weights.npz", content)
    assert_refused(
        ExportError, "differs from its weights by 1", storage, trial.id, tmp_path / "out"
    )


def test_a_missing_reverb_is_refused(spoiled, trial, tmp_path):
    storage = spoiled("reverb.wav", None)
    assert_refused(BundleError, r"has no reverb\.wav", storage, trial.id, tmp_path / "out")


def test_a_trial_whose_model_was_not_stored_is_refused(trial, dataset, small_run, tmp_path):
    ledger = make_ledger(tmp_path / "runs", dataset, small_run)
    ledger.append(trial)
    match = "no model is stored"
    assert_refused(TrialError, match, str(tmp_path / "runs"), trial.id, tmp_path / "out")


def test_an_interrupt_leaves_nothing(storage, trial, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "measure_rtf", interrupt)
    with pytest.raises(KeyboardInterrupt):
        promote(storage, trial.id, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# --- In 8-bit integers ---


def test_a_quantised_trial_is_measured_and_promoted_as_what_it_is(
    task_of, trial, dataset, small_run, tmp_path
):
    from thesis.measure import measure_rtf
    from thesis.runtimes.onnx_runtime import Session

    task = task_of(channels=4)
    task = replace(task, gin_text=task.gin_text + "export.quantisation = 'minmax'\n")
    measured = []

    def measure(model, *arguments):
        measured.append(model)
        return measure_rtf(model, *arguments)

    quantised = evaluate(task, workdir=tmp_path / "work", measure=measure)
    assert quantised.reason is None, quantised.detail
    decoder = tmp_path / "work" / ARTIFACTS / "decoder.onnx"
    assert [Session(model).metadata["quantisation"] for model in (*measured, decoder)] == [
        "minmax-operators-float_norm"
    ] * 2
    # Close to the same model in floats, and not the same.
    loss = quantised.measurement.val_loss
    assert loss == pytest.approx(trial.measurement.val_loss, rel=0.05)
    assert loss != trial.measurement.val_loss

    ledger = make_ledger(tmp_path / "runs", dataset, small_run)
    ledger.append(quantised)
    ledger.put_artifacts(quantised.id, tmp_path / "work" / ARTIFACTS)
    bundle = promote(str(tmp_path / "runs"), quantised.id, tmp_path / "bundle")
    assert not bundle.streams
    assert bundle.session.metadata["quantisation"] == "minmax-operators-float_norm"


@pytest.mark.parametrize("name", [DECODER_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("content", [None, b"", b"junk" * 100, b"PK\x03\x04" + bytes(99)])
def test_a_stored_model_that_is_none_is_refused(spoiled, trial, tmp_path, name, content):
    with pytest.raises(ExportError) as caught:
        promote(spoiled(name, content), trial.id, tmp_path / "out")
    assert caught.value.hint
    assert caught.value.message.isprintable()
    assert not (tmp_path / "out").exists()


def test_stored_weights_of_another_model_are_refused(spoiled, trial, tmp_path):
    other = io.BytesIO()
    np.savez(other, allow_pickle=False, something=np.zeros(3))
    with pytest.raises(ExportError, match="holds no"):
        promote(spoiled(WEIGHTS_FILE, other.getvalue()), trial.id, tmp_path / "out")


def test_stored_weights_are_not_unpickled(spoiled, trial, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    evil = io.BytesIO()
    np.save(evil, np.array([Evil()], object), allow_pickle=True)
    with pytest.raises(ExportError):
        promote(spoiled(WEIGHTS_FILE, evil.getvalue()), trial.id, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_a_model_card_says_what_is_not_recorded(bundle, trial):
    measured = RtfMeasurement(**bundle.trial["promotion"])
    card = model_card(replace(trial, measurement=Measurement()), measured, "a clip")
    assert "not recorded, not recorded" in card
