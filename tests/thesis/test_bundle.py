"""Model bundles: whole or not at all, and nobody changes a byte unnoticed."""

import errno
import json
import os
import pickle
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from thesis import bundle as stage
from thesis import reference
from thesis.bundle import (
    ARTIFACT_FILES,
    CHECKSUMS_FILE,
    CONTROLS_FILE,
    DECODER_FILE,
    RENDERING_FILE,
    TRIAL_FILE,
    WEIGHTS_FILE,
    Controls,
    load_bundle,
    read_audio,
    verify_bundle,
    write_audio,
)
from thesis.controls import decoder_inputs, white_noise
from thesis.errors import BundleError, ExportError
from thesis.files import sha256

FILES = (
    "decoder.onnx",
    "reverb.wav",
    "model.gin",
    "weights.npz",
    "trial.json",
    "clip.wav",
    "rendering.wav",
    "controls.npz",
    "README.md",
    "decoder_stream.onnx",
    "synth_stream.onnx",
    "ddsp.h",
)


@pytest.fixture(scope="module")
def written(write_small_bundle, tmp_path_factory):
    """A bundle that no test may change."""
    return write_small_bundle(tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture
def path(written, tmp_path):
    """Folder of a bundle that a test may spoil."""
    return shutil.copytree(written.path, tmp_path / "bundle")


def sign_again(path):
    """Makes the checksums right, as whoever forges a bundle would."""
    sums = "".join(f"{sha256(path / name)}  {name}\n" for name in FILES)
    (path / CHECKSUMS_FILE).write_text(sums)


def assert_one_line_with_hint(error):
    assert "\n" not in error.message
    assert error.hint


# --- What is in it ---


def test_a_bundle_holds_these_files_and_no_others(written):
    assert sorted(p.name for p in written.path.iterdir()) == sorted([*FILES, "SHA256SUMS"])


def test_what_was_written_is_what_is_loaded(written, dataset, artifacts):
    bundle = load_bundle(written.path)
    clips = dataset.clips("validation")
    for name in ARTIFACT_FILES:
        assert (bundle.path / name).read_bytes() == (artifacts / name).read_bytes()
    assert bundle.trial == {"id": "3fa91c", "val_loss": 10.5, "detail": None}
    np.testing.assert_array_equal(bundle.impulse_response, read_audio(artifacts / "reverb.wav"))
    np.testing.assert_array_equal(bundle.controls().f0_hz, clips.f0_hz[0])
    np.testing.assert_array_equal(bundle.controls().loudness_db, clips.loudness_db[0])
    np.testing.assert_array_equal(read_audio(bundle.path / "clip.wav"), clips.audio[0])
    assert (bundle.path / "README.md").read_text() == "# A model\n"


def test_the_rendering_is_what_the_weights_make_of_the_controls(written, small, rates):
    bundle = load_bundle(written.path)
    controls = bundle.controls()
    with np.load(bundle.path / WEIGHTS_FILE, allow_pickle=False) as weights:
        inputs = decoder_inputs(controls.f0_hz, controls.loudness_db)
        outputs = reference.decode(inputs, weights, small.decoder)
    noise = white_noise(0, 1, len(controls.f0_hz) * rates["hop_size"])[0]
    expected = reference.synthesize(
        outputs, controls.f0_hz, noise, bundle.impulse_response, config=small.synth, **rates
    )
    np.testing.assert_allclose(read_audio(bundle.path / RENDERING_FILE), expected, atol=1e-4)
    assert abs(expected).max() > 1e-3


def test_a_bundle_verifies_also_after_it_has_moved(path):
    moved = path.rename(path.with_name("moved"))
    assert verify_bundle(moved).path == moved


def test_the_checksums_are_those_of_sha256sum(written):
    if shutil.which("sha256sum") is None:
        pytest.skip("there is no sha256sum here")
    command = ["sha256sum", "--check", "--strict", CHECKSUMS_FILE]
    subprocess.run(command, cwd=written.path, check=True, capture_output=True)


def test_another_seed_is_other_noise(written):
    bundle = load_bundle(written.path)
    controls = bundle.controls()
    audio = bundle.render(controls)
    np.testing.assert_array_equal(audio, bundle.render(controls, seed=0))
    assert (audio != bundle.render(controls, seed=1)).any()


def test_audio_of_any_level_is_read_back_exactly(tmp_path):
    audio = np.array([0.0, 1.5, -2.0, 1e-30, np.pi], np.float32)
    write_audio(tmp_path / "a.wav", audio, 16_000)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav"), audio)
    assert soundfile.info(tmp_path / "a.wav").samplerate == 16_000


def test_a_model_without_reverb_is_bundled(artifacts, write_small_bundle, tmp_path):
    folder = shutil.copytree(artifacts, tmp_path / "dry")
    write_audio(folder / "reverb.wav", np.empty(0, np.float32), 16_000)
    write_small_bundle(tmp_path / "bundle", folder)
    assert verify_bundle(tmp_path / "bundle").impulse_response.shape == (0,)


def test_a_bundle_plays_its_clip_as_a_stream(written):
    bundle = load_bundle(written.path)
    controls, stream = bundle.controls(), bundle.stream(seed=5)
    blocks = np.array_split(np.arange(len(controls.f0_hz)), 9)
    audio = [stream(controls.f0_hz[block], controls.loudness_db[block]) for block in blocks]
    late = stream.latency_samples
    expected = bundle.render(controls, seed=5)[:-late]
    np.testing.assert_allclose(np.concatenate(audio)[late:], expected, atol=1e-5)


def test_a_model_that_cannot_stream_is_bundled_without(
    artifacts, export, small, write_small_bundle, tmp_path
):
    from dataclasses import replace

    folder = shutil.copytree(artifacts, tmp_path / "whole_clip")
    model, weights = export(replace(small.decoder, norm="time"), small.synth)
    (folder / DECODER_FILE).write_bytes(model)
    np.savez(folder / WEIGHTS_FILE, **weights)
    write_small_bundle(tmp_path / "bundle", folder)
    bundle = verify_bundle(tmp_path / "bundle")
    assert not bundle.streams
    assert not (tmp_path / "bundle" / "synth_stream.onnx").exists()
    with pytest.raises(BundleError, match="cannot stream") as caught:
        bundle.stream()
    assert_one_line_with_hint(caught.value)


# --- What was changed ---


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def add_a_byte(file):
    file.write_bytes(file.read_bytes() + b"\0")


def empty(file):
    file.write_bytes(b"")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("spoil", [flip_a_bit, add_a_byte, empty])
def test_a_changed_file_is_named(path, name, spoil):
    spoil(path / name)
    for check in (load_bundle, verify_bundle):
        with pytest.raises(BundleError, match=rf"^{name} in '.*' is not the file") as caught:
            check(path)
        assert_one_line_with_hint(caught.value)


def test_nothing_changed_is_loaded(path, monkeypatch):
    flip_a_bit(path / "README.md")
    monkeypatch.setattr(stage, "Session", lambda _: pytest.fail("loaded"))
    with pytest.raises(BundleError):
        verify_bundle(path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_missing_file_is_named(path, name, as_folder):
    (path / name).unlink()
    if as_folder:
        (path / name).mkdir()
    with pytest.raises(BundleError, match=f"has no {name}") as caught:
        load_bundle(path)
    assert_one_line_with_hint(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_file_without_a_checksum_is_named(path, name):
    sums = (path / CHECKSUMS_FILE).read_text().splitlines(keepends=True)
    (path / CHECKSUMS_FILE).write_text("".join(s for s in sums if not s.endswith(f"{name}\n")))
    with pytest.raises(BundleError, match=f"has no {name}"):
        load_bundle(path)


@pytest.mark.parametrize("content", [None, b"", b"three words here\n", b"\xff\xfe\x00" * 9])
def test_without_readable_checksums_it_is_no_bundle(path, content):
    (path / CHECKSUMS_FILE).unlink()
    if content is not None:
        (path / CHECKSUMS_FILE).write_bytes(content)
    with pytest.raises(BundleError) as caught:
        load_bundle(path)
    assert_one_line_with_hint(caught.value)


def test_a_missing_folder_and_a_file_are_no_bundle(tmp_path):
    (tmp_path / "file").touch()
    for name in ("missing", "file"):
        with pytest.raises(BundleError, match=f"{name}' is no model bundle") as caught:
            load_bundle(tmp_path / name)
        assert "sweeps promote" in caught.value.hint


@pytest.mark.parametrize(
    "change", [lambda a: a + np.float32(2e-4), lambda a: a[:-1], lambda a: a * np.nan]
)
def test_a_rendering_that_the_model_does_not_make_is_found(path, change):
    write_audio(path / RENDERING_FILE, change(read_audio(path / RENDERING_FILE)), 16_000)
    sign_again(path)
    load_bundle(path)
    with pytest.raises(BundleError, match=r"the rendering of .* differs by") as caught:
        verify_bundle(path)
    assert_one_line_with_hint(caught.value)


def test_a_decoder_that_cannot_be_loaded_is_an_error(path):
    (path / DECODER_FILE).write_bytes(b"no model")
    sign_again(path)
    with pytest.raises(ExportError):
        verify_bundle(path)


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_nothing_in_a_bundle_is_ever_unpickled(path, tmp_path):
    trap = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Payload(trap)))
    trap.rmdir()
    payload = np.array([Payload(trap)], dtype=object)
    np.savez(path / CONTROLS_FILE, f0_hz=payload, loudness_db=payload)
    sign_again(path)
    with pytest.raises((ValueError, BundleError)):
        verify_bundle(path)
    assert not trap.exists()


def test_the_arrays_of_a_bundle_hold_numbers_only(written):
    for name in (WEIGHTS_FILE, CONTROLS_FILE):
        with np.load(written.path / name, allow_pickle=False) as arrays:
            assert len(arrays.files) >= 2
            assert {arrays[key].dtype for key in arrays.files} == {np.dtype(np.float32)}


# --- Whole or not at all ---


def names_in(folder):
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.write_text("mine")])
def test_what_exists_is_refused_and_left_alone(write_small_bundle, tmp_path, make):
    out = tmp_path / "out"
    make(out)
    before = out.stat()
    with pytest.raises(BundleError, match="exists already") as caught:
        write_small_bundle(out)
    assert_one_line_with_hint(caught.value)
    assert out.stat() == before
    assert names_in(tmp_path) == ["out"]


def test_a_dangling_link_is_refused(write_small_bundle, tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="exists already"):
        write_small_bundle(tmp_path / "out")
    assert names_in(tmp_path) == ["out"]


def test_a_parent_that_cannot_be_written_to_is_refused(write_small_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for anyone but the superuser
    with pytest.raises(BundleError, match="cannot write") as caught:
        write_small_bundle(tmp_path / "out")
    assert_one_line_with_hint(caught.value)
    assert names_in(tmp_path) == []


def test_a_parent_that_is_a_file_is_refused(write_small_bundle, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match="cannot write"):
        write_small_bundle(tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "mine"


def test_parents_are_made(write_small_bundle, tmp_path):
    write_small_bundle(tmp_path / "a" / "b")
    verify_bundle(tmp_path / "a" / "b")


@pytest.mark.parametrize("name", ARTIFACT_FILES)
def test_an_artefact_that_is_missing_is_named_and_nothing_is_left(
    artifacts, write_small_bundle, tmp_path, name
):
    folder = shutil.copytree(artifacts, tmp_path / "artifacts")
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"the trial has no {name}"):
        write_small_bundle(tmp_path / "out", folder)
    assert names_in(tmp_path) == ["artifacts"]


@pytest.mark.parametrize("function", ["write_audio", "render", "sha256"])
def test_a_full_disk_is_one_line_and_nothing_is_left(
    write_small_bundle, tmp_path, monkeypatch, function
):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stage, function, full)
    with pytest.raises(BundleError, match=r"cannot write .*: No space left") as caught:
        write_small_bundle(tmp_path / "out")
    assert_one_line_with_hint(caught.value)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_whatever_happens_halfway_nothing_is_left(write_small_bundle, tmp_path, monkeypatch, error):
    def interrupt(*_):
        raise error

    monkeypatch.setattr(stage, "write_audio", interrupt)
    with pytest.raises((error, BundleError)):
        write_small_bundle(tmp_path / "out")
    assert names_in(tmp_path) == []


def test_a_record_that_json_cannot_hold_leaves_nothing(artifacts, dataset, tmp_path):
    clips = dataset.clips("validation")
    with pytest.raises(TypeError):
        stage.write_bundle(
            tmp_path / "out",
            artifacts,
            trial={"id": object()},
            card="",
            clip=clips.audio[0],
            controls=Controls(clips.f0_hz[0], clips.loudness_db[0]),
        )
    assert names_in(tmp_path) == []


def test_the_record_is_plain_json(written):
    def refuse(constant):
        pytest.fail(f"{constant} is no JSON")

    json.loads((written.path / TRIAL_FILE).read_text(), parse_constant=refuse)
