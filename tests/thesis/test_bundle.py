"""Model bundles: whole or not at all, and nobody changes a byte unnoticed."""

import errno
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
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
from thesis.checked_files import read_arrays
from thesis.controls import absolute_levels, decoder_inputs, white_noise
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
    outputs = absolute_levels(outputs, inputs, small.synth)
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


# --- What was forged, with right checksums ---


@pytest.fixture(scope="module")
def other(written, artifacts, small, export, dataset, tmp_path_factory):
    """A bundle of the same architecture with other weights and another reverb."""
    folder = tmp_path_factory.mktemp("other")
    decoder, weights = export(small.decoder, small.synth, seed=1)
    (folder / DECODER_FILE).write_bytes(decoder)
    (folder / "model.gin").write_text("")
    np.savez(folder / WEIGHTS_FILE, **weights)
    write_audio(folder / "reverb.wav", 0.5 * read_audio(artifacts / "reverb.wav"), 16_000)
    clips = dataset.clips("validation")
    return stage.write_bundle(
        folder / "bundle",
        folder,
        trial={"id": "b0b"},
        card="",
        clip=clips.audio[0],
        controls=Controls(clips.f0_hz[0], clips.loudness_db[0]),
    )


def assert_found(path, name):
    """Verification names a file of a forged bundle, or says what differs."""
    sign_again(path)
    load_bundle(path)
    with pytest.raises((BundleError, ExportError), match=name) as caught:
        verify_bundle(path)
    assert_one_line_with_hint(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        DECODER_FILE,
        "decoder_stream.onnx",
        "synth_stream.onnx",
        "ddsp.h",
        "weights.npz",
        "reverb.wav",
        "rendering.wav",
    ],
)
def test_a_part_of_another_model_is_found(path, other, name):
    shutil.copy(other.path / name, path / name)
    assert_found(path, r"weights\.npz|" if name == "weights.npz" else ".")


def test_parts_of_another_model_are_found_whatever_goes_with_them(path, other):
    for name in (DECODER_FILE, "reverb.wav", "rendering.wav"):
        shutil.copy(other.path / name, path / name)
    assert_found(path, "decoder.onnx .* is not of the model of the other files")


def rewritten(file, change):
    """Changes the metadata of an ONNX model, JSON values by name."""
    model = onnx.load(file)
    metadata = change({p.key: json.loads(p.value) for p in model.metadata_props})
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {k: json.dumps(v) for k, v in metadata.items()})
    onnx.save(model, file)


@pytest.mark.parametrize("name", ["decoder.onnx", "decoder_stream.onnx", "synth_stream.onnx"])
@pytest.mark.parametrize(
    "change",
    [{"sample_rate": 22_050}, {"hop_size": 80}, {"synth": {"n_harmonics": 7, "n_noise_bands": 10}}],
)
def test_rates_of_another_model_are_found(path, name, change):
    rewritten(path / name, lambda metadata: metadata | change)
    assert_found(path, ".")


@pytest.mark.parametrize("change", [{"sample_rate": 22_050}, {"hop_size": 80}])
def test_a_stream_of_another_model_is_not_played(path, change):
    rewritten(path / "synth_stream.onnx", lambda metadata: metadata | change)
    sign_again(path)
    bundle = load_bundle(path)
    with pytest.raises(BundleError, match=r"synth_stream\.onnx .* is not of the model"):
        next(bundle.play(bundle.controls()))


@pytest.mark.parametrize("name", ["clip.wav", "rendering.wav", "reverb.wav"])
def test_audio_at_another_rate_is_found(path, name):
    write_audio(path / name, read_audio(path / name), 22_050)
    assert_found(path, f"{name} .* is at 22050 Hz, its model at 16000")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("#define DDSP_HOP 64", "#define DDSP_HOP 65"),
        ("#define DDSP_SAMPLE_RATE 16000", "#define DDSP_SAMPLE_RATE 22050"),
        ("#include <math.h>", '#include <math.h>\n#include "/etc/passwd"'),
        ("2.0f", "2.1f"),
        ("return", "system(0); return"),
    ],
)
def test_a_header_that_the_weights_do_not_make_is_found(path, old, new):
    header = (path / "ddsp.h").read_text()
    assert old in header
    (path / "ddsp.h").write_text(header.replace(old, new, 1))
    assert_found(path, "ddsp.h .* is not of the model of the other files")


def test_a_number_in_a_header_that_the_weights_do_not_make_is_found(path, written):
    header = (path / "ddsp.h").read_text()
    number = f"{read_arrays(path / WEIGHTS_FILE, BundleError)['output/bias'][0]!s}f"
    (path / "ddsp.h").write_text(header.replace(number, "0.125f", 1))
    assert_found(path, "the numbers of 'ddsp_output_bias' are others")


def test_the_header_of_another_release_is_compared_by_its_numbers(path, other):
    record = json.loads((path / TRIAL_FILE).read_text()) | {"versions": {"ddsp-sweeps": "0.1.9"}}
    (path / TRIAL_FILE).write_text(json.dumps(record))
    header = (path / "ddsp.h").read_text()
    (path / "ddsp.h").write_text(header.replace("#endif", "/* as it was */\n#endif"))
    sign_again(path)
    notes = []
    verify_bundle(path, on_note=notes.append)
    assert [note.partition(" ")[0] for note in notes] == ["ddsp.h"]
    theirs = (other.path / "ddsp.h").read_text()
    (path / "ddsp.h").write_text(theirs.replace("#endif", "/* as it was */\n#endif"))
    assert_found(path, "ddsp.h .* the numbers of")


def test_a_header_whose_numbers_another_processor_rounds_otherwise_is_the_same(path):
    header = (path / "ddsp.h").read_text()
    number = f"{read_arrays(path / WEIGHTS_FILE, BundleError)['output/bias'][0]!s}f"
    rounded = f"{np.nextafter(np.float32(number[:-1]), np.float32(9))!s}f"
    assert rounded != number
    (path / "ddsp.h").write_text(header.replace(number, rounded, 1))
    sign_again(path)
    verify_bundle(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w | {"output/bias": w["output/bias"] + np.float32(1e-3)},
        lambda w: {k: v for k, v in w.items() if k != "output/bias"},
        lambda w: w | {"more": np.zeros(3, np.float32)},
        lambda w: w | {"output/bias": w["output/bias"][:-1]},
        lambda w: w | {"output/bias": w["output/bias"] * np.float32("nan")},
        lambda w: w | {"output/bias": w["output/bias"].astype(np.float64)},
        lambda w: {},
    ],
)
def test_weights_that_do_not_make_the_decoder_are_found(path, change):
    weights = read_arrays(path / WEIGHTS_FILE, BundleError)
    np.savez(path / WEIGHTS_FILE, **change(weights))
    assert_found(path, r"weights\.npz|decoder\.onnx")


@pytest.mark.parametrize(
    "change",
    [
        {"axis_channels": 8},
        {"axis_norm": "none"},
        {"axis_n_harmonics": 60},
        {"axis_kernel_size": [3]},
        {"parameters": 2446},
        {"receptive_field_frames": 10, "receptive_field_seconds": 0.02},
    ],
)
def test_the_record_of_another_model_is_found(path, change):
    record = json.loads((path / TRIAL_FILE).read_text())
    (path / TRIAL_FILE).write_text(json.dumps(record | change))
    assert_found(path, "trial.json .* is not of the model of the other files")


@pytest.mark.parametrize(
    "text",
    [
        "DilatedConvStack.channels = 8\n",
        "CHANNELS = 8\nDilatedConvStack.channels = %CHANNELS\n",
        "thesis.config.Synth.n_harmonics = 60\n",
        "model.decoder = @RnnFc()\n",
    ],
)
def test_the_configuration_of_another_model_is_found(path, text):
    (path / "model.gin").write_text(text)
    assert_found(path, "model.gin .* is not of the model of the other files")


@pytest.mark.parametrize(
    "text",
    [
        "DilatedConvStack.channels = 8\nDilatedConvStack.channels = 4\n",
        "import os\ninclude 'x'\ntrain.steps = @os.system()\n",
        "DilatedConvStack.channels = " + "[" * 9999,
        "DilatedConvStack.channels = %GONE\n",
        "# naïve Ω\n",
        "\ufeffSynth.n_noise_bands = 9  # of the small model\n",
    ],
)
def test_gin_is_read_as_text_and_never_parsed(path, text):
    (path / "model.gin").write_text(text, encoding="utf-8")
    sign_again(path)
    verify_bundle(path)


# --- What is no bundle's at all ---

NO_RECORD = [
    b"", b"[]", b"null", b'"id"', b"{}", b'{"id": 3}', b'{"id": null}', b'{"id": "x", "a": NaN}',
    b'{"id": "x", "a": 1e999}', b'{"id": "x"', b"\xff\xfe{\x00}\x00", b"\x00" * 99, b"[" * 99_999,
    b'{"id": "x", "a": ' + b"[" * 99_999, b'{"id": "x", "a": ' + b"9" * 9999 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("content", NO_RECORD)
def test_what_is_no_record_is_one_line(path, content):
    (path / TRIAL_FILE).write_bytes(content)
    assert_found(path, TRIAL_FILE)


@pytest.mark.parametrize("content", [b"\xff\xfeM\x00", b"\x80"])
def test_a_configuration_that_is_no_text_is_one_line(path, content):
    (path / "model.gin").write_bytes(content)
    assert_found(path, "model.gin")


@pytest.mark.parametrize("name", ["weights.npz", "controls.npz", "clip.wav", "reverb.wav"])
@pytest.mark.parametrize(
    "content", [b"", b"no numbers", b"PK\x05\x06" + b"\0" * 18, b"RIFF\xff\xff\xff\xffWAVE"]
)
def test_numbers_that_cannot_be_read_are_one_line(path, name, content):
    (path / name).write_bytes(content)
    assert_found(path, name)


@pytest.mark.parametrize(
    "controls",
    [
        {},
        {"f0_hz": np.ones(9, np.float32)},
        {"f0_hz": np.ones(9, np.float32), "loudness_db": np.ones(8, np.float32)},
        {"f0_hz": np.ones((9, 1), np.float32), "loudness_db": np.ones((9, 1), np.float32)},
        {"f0_hz": np.ones(0, np.float32), "loudness_db": np.ones(0, np.float32)},
        {"f0_hz": np.full(9, np.inf, np.float32), "loudness_db": np.ones(9, np.float32)},
        {"f0_hz": np.ones(151_000, np.float32), "loudness_db": np.ones(151_000, np.float32)},
    ],
)
def test_controls_that_are_none_are_one_line(path, controls):
    np.savez(path / CONTROLS_FILE, **controls)
    assert_found(path, CONTROLS_FILE)


def test_a_reverb_of_an_hour_is_one_line(path):
    write_audio(path / "reverb.wav", np.zeros(70_000, np.float32), 16_000)
    assert_found(path, "reverb.wav .* is longer than 4 s")


def test_pipes_and_links_to_nowhere_are_no_bundle(path):
    (path / CHECKSUMS_FILE).rename(path / "sums")
    os.mkfifo(path / CHECKSUMS_FILE)
    with pytest.raises(BundleError, match="is no model bundle"):
        load_bundle(path)
    (path / CHECKSUMS_FILE).unlink()
    (path / CHECKSUMS_FILE).symlink_to("sums")
    load_bundle(path)
    (path / "README.md").unlink()
    os.mkfifo(path / "README.md")
    with pytest.raises(BundleError, match=r"has no README\.md"):
        load_bundle(path)


def test_a_link_to_a_bundle_is_one(path, tmp_path):
    (tmp_path / "link").symlink_to(path)
    assert verify_bundle(tmp_path / "link").path == tmp_path / "link"


@pytest.mark.parametrize("number", [errno.EACCES, errno.ELOOP, errno.EIO])
def test_a_bundle_that_cannot_be_read_is_one_line(path, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    for name in ("stat", "open"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, refuse)
            with pytest.raises(BundleError, match=r"cannot read .*SHA256SUMS") as caught:
                load_bundle(path)
        assert_one_line_with_hint(caught.value)


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
