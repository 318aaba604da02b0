"""Rates and decoders other than the usual: a model is trained, exported, promoted and played."""

import numpy as np
import pytest
import soundfile

from sweeps.config import load_run
from sweeps.evaluate import ARTIFACTS, Task, evaluate
from sweeps.ledger import Ledger, SweepFacts
from sweeps.promote import promote
from sweeps.trial import Status
from thesis import reference
from thesis.bundle import Controls, read_audio, render, verify_bundle
from thesis.measure import measure_rtf
from thesis.prepare import prepare_demo
from thesis.render import render_recording
from thesis.runtimes.onnx_runtime import Session

RUN = """
train.steps = 3
train.batch_size = 2
train.crop_seconds = 0.2
measure.seconds = 0.02
measure.min_calls = 10
measure.max_calls = 20
Synth.n_harmonics = 8
Synth.n_noise_bands = 9
Synth.reverb_seconds = 0.05
Synth.reverb_decay_seconds = 0.02
search_space.synthesis = {'Synth.hop_multiple': (1, 2)}
"""
CONVOLUTIONS = """
DilatedConvStack.layers_per_stack = 1
search_space.axes = {'DilatedConvStack.channels': (4, 8)}
"""
RECURRENT = """
model.decoder = @RnnFc()
RnnFc.rnn_channels = 5
RnnFc.layers_per_stack = 1
search_space.axes = {'RnnFc.channels': (4, 8)}
"""


@pytest.mark.parametrize(
    ("decoder", "sample_rate", "frame_rate", "hop_size", "hop_multiple"),
    [
        pytest.param(CONVOLUTIONS, 8000, 100, 80, 1, id="8 kHz"),
        pytest.param(RECURRENT, 8000, 100, 80, 1, id="8 kHz, recurrent"),
        pytest.param(
            CONVOLUTIONS, 44_100, 300, 294, 2, id="44.1 kHz, odd hop, every second frame of 75"
        ),
    ],
)
def test_a_model_goes_all_the_way(
    tmp_path, decoder, sample_rate, frame_rate, hop_size, hop_multiple
):
    dataset = prepare_demo(
        tmp_path / "data",
        n_train=2,
        n_validation=1,
        clip_seconds=0.25,
        sample_rate=sample_rate,
        frame_rate=frame_rate,
    )
    (tmp_path / "run.gin").write_text(RUN + decoder)
    run = load_run(tmp_path / "run.gin")
    candidate = run.space.candidate({"channels": 4, "hop_multiple": hop_multiple})
    task = Task("rates", candidate, run.text_for(candidate), str(dataset.path))
    trial = evaluate(task, workdir=tmp_path / "work", measure=measure_rtf)
    assert trial.status is Status.COMPLETED, trial.detail

    # What is stored sounds as the record says: over the whole clip, its reverb as it is heard.
    session = Session(tmp_path / "work" / ARTIFACTS / "decoder.onnx")
    assert (session.sample_rate, session.hop_size) == (sample_rate, hop_size)
    response = read_audio(tmp_path / "work" / ARTIFACTS / "reverb.wav")
    envelope = reference.reverb_envelope(session.synth, sample_rate)
    assert (abs(response) < 0.1 * envelope).all()
    clips = dataset.clips("validation")
    controls = Controls(clips.f0_hz[0, ::hop_multiple], clips.loudness_db[0, ::hop_multiple])
    rendering = render(session, response, controls)
    assert 0 <= rendering.size - clips.audio.shape[1] < hop_size
    loss = reference.spectral_loss(clips.audio[0], rendering[: clips.audio.shape[1]])
    assert trial.measurement.val_loss == pytest.approx(loss, rel=1e-3)

    facts = SweepFacts(
        name="rates",
        gin_config=run.text,
        dataset_fingerprint=dataset.facts.fingerprint,
        objectives=run.sweep.objectives,
        dataset_path=str(dataset.path),
    )
    ledger = Ledger.create(str(tmp_path / "runs"), "rates", facts)
    ledger.append(trial)
    ledger.put_artifacts(trial.id, tmp_path / "work" / ARTIFACTS)
    bundle = promote(str(tmp_path / "runs"), trial.id, tmp_path / "bundle", allow_missed_pitch=True)
    np.testing.assert_array_equal(bundle.controls().f0_hz, controls.f0_hz)
    np.testing.assert_array_equal(read_audio(bundle.path / "rendering.wav"), rendering)
    verify_bundle(bundle.path)

    soundfile.write(tmp_path / "in.wav", clips.audio[0], sample_rate)
    assert render_recording(bundle, tmp_path / "in.wav", tmp_path / "out.wav") == 0.25
