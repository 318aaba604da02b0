"""Training: resumable without a trace, repeatable, and each clip in its turn."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thesis import reference
from thesis import train as stage
from thesis.batches import Batches
from thesis.config import TrainConfig
from thesis.controls import absolute_levels, decoder_inputs, white_noise
from thesis.losses import magnitude_bytes, training_loss
from thesis.train import DivergedError, learning_rate, train, validate


@pytest.fixture
def clips(dataset):
    return dataset.clips("train")


@pytest.fixture
def every_step(monkeypatch):
    """Reports the loss of each step."""
    monkeypatch.setattr(stage, "REPORT_EVERY", 1)


def losses(running):
    return [report.loss for report in running]


# --- The run ---


def test_the_loss_falls(make_model, clips, small):
    reports = list(train(make_model(), clips, replace(small.train, steps=40)))
    assert [report.step for report in reports] == [10, 20, 30, 40]
    assert reports[-1].loss < 0.9 * reports[0].loss


def test_reports_are_means_and_the_last_step_reports(make_model, clips, small, monkeypatch):
    config = replace(small.train, steps=7)
    monkeypatch.setattr(stage, "REPORT_EVERY", 1)
    each = losses(train(make_model(), clips, config))
    monkeypatch.setattr(stage, "REPORT_EVERY", 3)
    reports = list(train(make_model(), clips, config))
    assert [report.step for report in reports] == [3, 6, 7]
    means = [np.mean(each[:3]), np.mean(each[3:6]), np.mean(each[4:])]
    np.testing.assert_allclose([report.loss for report in reports], means, rtol=1e-6)


@pytest.mark.parametrize("interrupted_at", [4, 5])
def test_a_resumed_run_continues_as_if_it_had_never_stopped(
    make_model, clips, small, every_step, tmp_path, interrupted_at
):
    whole = make_model()
    expected = losses(train(whole, clips, small.train))
    assert len(set(expected)) == 6

    running = train(make_model(), clips, small.train, checkpoints=tmp_path)
    for _ in range(interrupted_at):
        next(running)
    running.close()

    # Other weights, to show that none survives.
    resumed = make_model(seed=9)
    reports = list(train(resumed, clips, small.train, checkpoints=tmp_path))
    assert [report.step for report in reports] == [5, 6]
    np.testing.assert_allclose(losses(reports), expected[4:], rtol=1e-6)
    for name, weight in whole.decoder.named_weights().items():
        np.testing.assert_allclose(resumed.decoder.weights[name], weight, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(resumed.impulse_response, whole.impulse_response, atol=1e-9)


def test_a_resumed_run_keeps_the_running_moments_and_how_many_batches_they_hold(
    make_model, clips, small, every_step, tmp_path
):
    whole = make_model(norm="batch")
    list(train(whole, clips, small.train))
    running = train(make_model(norm="batch"), clips, small.train, checkpoints=tmp_path)
    for _ in range(4):
        next(running)
    running.close()
    resumed = make_model(seed=9, norm="batch")
    list(train(resumed, clips, small.train, checkpoints=tmp_path))
    expected = whole.decoder.named_weights()
    assert expected["input/mean"].any()
    assert whole.decoder._updates == small.train.steps  # each batch once
    for name, weight in resumed.decoder.named_weights().items():
        np.testing.assert_allclose(weight, expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("norm", ["none", "frame", "batch", "time"])
def test_with_every_norm_the_loss_falls(make_model, clips, small, norm):
    reports = list(train(make_model(norm=norm), clips, replace(small.train, steps=30)))
    assert reports[-1].loss < 0.95 * reports[0].loss


def test_reports_do_not_tell_where_a_run_was_interrupted(
    make_model, clips, small, monkeypatch, tmp_path
):
    monkeypatch.setattr(stage, "REPORT_EVERY", 3)
    expected = list(train(make_model(), clips, small.train))
    running = train(make_model(), clips, small.train, checkpoints=tmp_path)
    assert next(running) == expected[0]
    running.close()  # after step 3; the checkpoint is that of step 2
    resumed = list(train(make_model(), clips, small.train, checkpoints=tmp_path))
    assert [report.step for report in resumed] == [3, 6]
    np.testing.assert_allclose(losses(resumed), losses(expected), rtol=1e-6)


def test_a_checkpoint_is_saved_where_one_is_asked_for(
    make_model, clips, small, every_step, tmp_path
):
    running = train(make_model(), clips, small.train, checkpoints=tmp_path, save_at=(3,))
    while next(running).step < 3:
        pass
    resumed = train(make_model(seed=9), clips, small.train, checkpoints=tmp_path)
    assert next(resumed).step == 4  # others are saved at 2, 4 and 6


def test_a_run_that_was_complete_reports_and_is_not_trained_further(
    make_model, clips, small, tmp_path
):
    model = make_model()
    reports = list(train(model, clips, small.train, checkpoints=tmp_path))
    again = make_model(seed=9)
    assert list(train(again, clips, small.train, checkpoints=tmp_path)) == reports
    for name, weight in model.decoder.named_weights().items():
        np.testing.assert_array_equal(again.decoder.weights[name], weight)


def test_only_the_newest_checkpoint_is_kept(make_model, clips, small, tmp_path):
    list(train(make_model(), clips, small.train, checkpoints=tmp_path))
    names = {path.name.split(".")[0].rpartition("-step")[2] for path in tmp_path.iterdir()}
    assert names == {"checkpoint", "-3"}


@pytest.mark.parametrize("other", [{"channels": 5}, {"norm": "none"}, {"layers_per_stack": 1}])
def test_a_checkpoint_of_other_weights_is_not_mixed_with_these(
    make_model, clips, small, every_step, tmp_path, other
):
    list(train(make_model(seed=9, **other), clips, small.train, checkpoints=tmp_path))
    expected = list(train(make_model(), clips, small.train))
    begun_anew = list(train(make_model(), clips, small.train, checkpoints=tmp_path))
    assert [report.step for report in begun_anew] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(losses(begun_anew), losses(expected), rtol=1e-6)


@pytest.mark.parametrize("named", ["{elsewhere}/precious", "../elsewhere/prec*"])
@pytest.mark.parametrize("ending", ["", r"\000", r".index\000"])
def test_a_stranger_s_list_of_checkpoints_has_nothing_read_or_deleted_elsewhere(
    make_model, clips, small, every_step, tmp_path, named, ending
):
    folder, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    for name in ("precious", "precious.index", "precious.data-00000-of-00001"):
        (elsewhere / name).write_text("precious")
    before = sorted(elsewhere.iterdir())
    name = named.format(elsewhere=elsewhere) + ending
    (folder / "checkpoint").write_text(
        f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n'
        "all_model_checkpoint_timestamps: 1.0\nlast_preserved_timestamp: 0.5\n"
    )
    reports = list(train(make_model(), clips, small.train, checkpoints=folder))
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert sorted(elsewhere.iterdir()) == before


@pytest.mark.parametrize("damage", ["steps", "index", "data"])
def test_a_checkpoint_that_cannot_be_of_this_run_is_not_gone_on_from(
    make_model, clips, small, every_step, tmp_path, damage
):
    longer = replace(small.train, steps=12)
    list(train(make_model(), clips, longer if damage == "steps" else small.train,
               checkpoints=tmp_path))  # fmt: skip
    for file in tmp_path.glob(f"*.{damage}*"):
        file.write_bytes(file.read_bytes()[:50])
    reports = list(train(make_model(), clips, small.train, checkpoints=tmp_path))
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]


def test_a_folder_of_checkpoints_that_is_gone_is_not_made_anew(
    make_model, clips, small, every_step, tmp_path
):
    folder = tmp_path / "sweep" / "checkpoints"
    folder.parent.mkdir()
    config = replace(small.train, checkpoint_every=1)
    running = train(make_model(), clips, config, checkpoints=folder)
    next(running)
    folder.parent.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        list(running)
    with pytest.raises(FileNotFoundError):
        list(train(make_model(), clips, config, checkpoints=folder))
    assert not folder.parent.exists()


def test_the_same_seed_gives_the_same_curve_and_another_seed_another(
    make_model, clips, small, every_step
):
    first = losses(train(make_model(), clips, small.train))
    assert losses(train(make_model(), clips, small.train)) == pytest.approx(first, rel=1e-6)
    other = losses(train(make_model(), clips, replace(small.train, seed=1)))
    assert other != pytest.approx(first, rel=1e-3)


def test_the_second_model_does_not_trace_the_loss_again(make_model, clips, small):
    config = replace(small.train, steps=1)
    model = make_model()
    list(train(model, clips, config))
    loss = stage._loss_and_slopes(model.synthesizer, training_loss(()))
    traced = loss.experimental_get_tracing_count()
    other = make_model(channels=7, layers_per_stack=1, block="inverted_bottleneck", norm="none")
    list(train(other, clips, config))
    assert loss.experimental_get_tracing_count() == traced == 1


def test_models_that_differ_in_their_reverbs_envelope_share_a_trace(small, rates):
    from thesis.build import build

    first, second = (
        build(replace(small, synth=replace(small.synth, reverb_decay_seconds=seconds)), **rates)
        for seconds in (0.0, 0.02)
    )
    assert first.synthesizer == second.synthesizer
    assert stage._loss_and_slopes(first.synthesizer, training_loss(())) is (
        stage._loss_and_slopes(second.synthesizer, training_loss(()))
    )


def test_a_model_without_reverb_is_trained(dataset, small, rates):
    from thesis.build import build

    config = replace(small, synth=replace(small.synth, reverb_seconds=0.0))
    model = build(config, **rates)
    before = model.decoder.named_weights()
    list(train(model, dataset.clips("train"), replace(small.train, steps=1)))
    assert model.impulse_response.shape == (0,)
    assert (before["output/bias"] != model.decoder.named_weights()["output/bias"]).any()


def test_decoder_and_reverb_are_both_trained(make_model, clips, small):
    model = make_model()
    before, reverb = model.decoder.named_weights(), model.impulse_response.numpy()
    list(train(model, clips, replace(small.train, steps=1)))
    after = model.decoder.named_weights()
    assert all((before[name] != after[name]).any() for name in before)
    assert (reverb != model.impulse_response.numpy()).any()


def test_the_reverb_is_heard_and_trained_through_its_envelope(dataset, small, rates):
    from thesis._ddsp import tf
    from thesis.build import build

    synth = replace(small.synth, reverb_decay_seconds=0.02)
    model = build(replace(small, synth=synth), **rates)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(model.impulse_response)
    envelope = reference.reverb_envelope(synth, rates["sample_rate"])
    np.testing.assert_allclose(tape.gradient(total, model.reverb), envelope, rtol=1e-6)

    list(train(model, dataset.clips("train"), replace(small.train, steps=3)))
    taps = model.reverb.numpy()
    assert abs(taps[600:]).max() > 1e-4  # Adam has moved the tail as far as the rest
    np.testing.assert_allclose(model.impulse_response, taps * envelope, rtol=1e-5, atol=1e-12)
    assert abs(model.impulse_response.numpy()[600:]).max() < 1e-6


# --- Pruning ---


@pytest.mark.parametrize(("steps", "warmup"), [(400, 20), (50, 5), (7, 0)])
def test_a_cosine_rises_in_a_few_steps_and_falls_to_zero_over_the_others(steps, warmup):
    rate = learning_rate(TrainConfig(steps=steps, learning_rate=8e-3))
    rates = np.array([float(rate(step)) for step in range(steps + 1)])
    fell = (1 + np.cos(np.pi * np.arange(steps + 1 - warmup) / (steps - warmup))) / 2
    np.testing.assert_allclose(rates[warmup:], 8e-3 * fell, atol=1e-6)
    assert (rates[:-1] > 0).all()
    assert (np.diff(rates[: warmup + 1]) > 0).all()


def test_an_exponential_schedule_is_that_of_ddsp():
    config = TrainConfig(
        schedule="exponential", learning_rate=1e-3, decay_steps=100, decay_rate=0.5
    )
    rate = learning_rate(config)
    np.testing.assert_allclose([rate(0), rate(100), rate(250)], 1e-3 * 0.5 ** np.array([0, 1, 2.5]))


def test_a_sparse_model_has_so_many_weights_of_zero_and_its_loss_falls(make_model, clips, small):
    model = make_model()
    before = {name: np.abs(weight) for name, weight in model.decoder.named_weights().items()}
    config = replace(small.train, steps=40, sparsity=0.6)
    reports = list(train(model, clips, config))
    assert reports[-1].loss < 0.9 * reports[0].loss
    for name, weight in model.decoder.named_weights().items():
        if name.endswith("kernel"):
            gone = weight == 0
            assert gone.sum() == int(0.6 * weight.size)
            # Those that were small go first.
            assert before[name][gone].mean() < before[name][~gone].mean()
        else:
            assert (weight != 0).any()


def test_the_pruned_share_rises_and_stays_for_the_last_quarter():
    config = TrainConfig(steps=400, sparsity=0.8)
    shares = [stage.pruned_share(config, step) for step in range(401)]
    assert shares[0] == 0.0
    assert (np.diff(shares[:301]) > 0).all()
    assert shares[100] > 0.5 * 0.8
    assert shares[300:] == [0.8] * 101
    assert stage.pruned_share(TrainConfig(steps=400), 400) == 0.0


def test_a_resumed_pruning_continues_as_if_it_had_never_stopped(
    make_model, clips, small, every_step, tmp_path
):
    config = replace(small.train, sparsity=0.5)
    whole = make_model()
    expected = losses(train(whole, clips, config))
    running = train(make_model(), clips, config, checkpoints=tmp_path)
    for _ in range(4):
        next(running)
    running.close()
    resumed = make_model(seed=9)
    reports = list(train(resumed, clips, config, checkpoints=tmp_path))
    np.testing.assert_allclose(losses(reports), expected[4:], rtol=1e-6)
    for name, weight in whole.decoder.named_weights().items():
        np.testing.assert_array_equal(resumed.decoder.weights[name] == 0, weight == 0)


# --- Divergence ---


def test_a_loss_that_becomes_nan_says_when_and_what_it_was(make_model, clips, small, every_step):
    model = make_model()
    running = train(model, clips, small.train)
    last = [next(running), next(running)][-1]
    model.decoder.weights["output/bias"].assign_add(np.full(18, np.nan))
    with pytest.raises(DivergedError, match=r"^step 3; last finite loss [\d.]+ before$") as caught:
        next(running)
    assert (caught.value.step, caught.value.last_finite) == (3, last.loss)


def test_a_loss_that_never_was_finite_says_so(make_model, clips, small):
    broken = replace(clips, audio=np.full_like(clips.audio, np.nan))
    with pytest.raises(DivergedError, match=r"^step 1; no finite loss before$"):
        next(train(make_model(), broken, small.train))


def test_a_gradient_that_is_not_finite_does_not_reach_the_weights(
    make_model, clips, small, monkeypatch
):
    def broken(outputs, inputs, response, *_):
        return 1.0, outputs * np.nan, response

    monkeypatch.setattr(stage, "_loss_and_slopes", lambda *_: broken)
    model = make_model()
    with pytest.raises(DivergedError, match="step 1"):
        next(train(model, clips, replace(small.train, steps=1)))
    assert all(np.isfinite(weight).all() for weight in model.decoder.named_weights().values())


def test_a_loss_that_explodes_ends_the_training(make_model, clips, small, every_step):
    model = make_model()
    running = train(model, clips, small.train)
    first = next(running)
    # A response this loud does what a learning rate far too high does in some steps.
    model.reverb.assign(np.full(model.reverb.shape, 1e3, np.float32))
    with pytest.raises(DivergedError, match=r"^step 2; loss .* over 10 times the first") as caught:
        next(running)
    assert caught.value.last_finite > 10 * first.loss


def test_a_run_that_has_exploded_explodes_again_when_it_is_resumed(
    make_model, clips, small, every_step, tmp_path, monkeypatch
):
    # The loss of the last step, from which a checkpoint would be kept, is the one that explodes.
    monkeypatch.setattr(stage, "EXPLODED", 0.1)
    config = replace(small.train, steps=1, checkpoint_every=1)
    for _ in range(2):
        with pytest.raises(DivergedError, match=r"^step 1; loss"):
            list(train(make_model(), clips, config, checkpoints=tmp_path))


# --- What is kept, what is written ---


@pytest.mark.parametrize("megabytes", [0, 1, 1024])
def test_a_step_is_the_same_whatever_is_kept(make_model, clips, small, every_step, megabytes):
    config = replace(small.train, crop_seconds=0.0)
    expected = losses(train(make_model(), clips, config))
    config = replace(config, cache_megabytes=megabytes)
    assert losses(train(make_model(), clips, config)) == pytest.approx(expected, rel=1e-6)


@given(n_clips=st.integers(1, 9), budget=st.integers(0, 10_000_000))
def test_what_is_kept_fits_the_budget(ramps, small, n_clips, budget):
    from thesis.synthesis import Synthesizer

    clips = ramps(n_clips, n_frames=100)
    synthesizer = Synthesizer(small.synth, 400, 4)
    kept = stage._KeptClips(clips, synthesizer, training_loss(()), budget=budget)
    kept._sine_bank = lambda f0: np.zeros((1, 100, 4, small.synth.n_harmonics), np.float32)
    kept._of_target = lambda audio: [np.zeros(magnitude_bytes(400) // 4, np.float32)]
    batch = Batches(clips, TrainConfig(batch_size=2 * n_clips), sample_rate=400, hop_size=4)[0]
    assert len(kept.of(batch)) == 2 * n_clips
    banks, targets = kept._banks._values.values(), kept._targets._values.values()
    size = sum(bank.nbytes for bank in banks) + sum(target[0].nbytes for target in targets)
    one_more = magnitude_bytes(400) if len(targets) < n_clips else 1600 * small.synth.n_harmonics
    assert size <= budget
    assert size + one_more > budget or len(banks) == n_clips


def test_summaries_hold_what_was_reported(make_model, clips, small, every_step, tmp_path):
    from thesis._ddsp import tf

    reports = list(train(make_model(), clips, small.train, summaries=tmp_path))
    (file,) = tmp_path.iterdir()
    written = {}
    for event in tf.compat.v1.train.summary_iterator(str(file)):
        for value in event.summary.value:
            written[value.tag, event.step] = value.simple_value
    for report in reports:
        assert written["train/loss", report.step] == pytest.approx(report.loss)
        assert written["train/gradient_norm", report.step] > 0
        rate = float(learning_rate(small.train)(report.step))
        assert written["train/learning_rate", report.step] == pytest.approx(rate)


def test_steps_have_noise_of_their_own(make_model, clips, small, monkeypatch):
    seeds = []

    def seen(outputs, inputs, response, clips, seed, n_samples):
        seeds.append(seed.numpy().tolist())
        return 1.0, outputs, response

    monkeypatch.setattr(stage, "_loss_and_slopes", lambda *_: seen)
    list(train(make_model(), clips, replace(small.train, seed=5)))
    assert seeds == [[5, step] for step in range(small.train.steps)]


def test_frames_of_another_hop_than_the_models_are_refused(make_model, clips, small):
    model = make_model()
    for other in (clips.subsampled(2), replace(clips, f0_hz=np.repeat(clips.f0_hz, 2, axis=1))):
        with pytest.raises(ValueError, match=r"frames of 64 samples for a clip of 8000"):
            next(train(model, other, small.train))
        with pytest.raises(ValueError, match=r"Clips\.subsampled"):
            validate(model, other, model.decoder)


# --- Validation ---


def rendered_by_reference(model, clips, outputs_of, rates, seed):
    noise = white_noise(seed, *clips.audio.shape)
    for i in range(len(clips)):
        inputs = decoder_inputs(clips.f0_hz[i], clips.loudness_db[i])
        response = model.impulse_response.numpy()
        config = model.synthesizer.config
        outputs = absolute_levels(outputs_of(inputs[None])[0], inputs, config)
        yield reference.synthesize(
            outputs, clips.f0_hz[i], noise[i], response, config=config, **rates
        )


def test_validation_renders_whole_clips_with_the_decoder_that_is_judged(make_model, dataset, rates):
    model, clips = make_model(), dataset.clips("train")
    assert len(clips) == 3

    def judged(inputs):
        assert inputs.shape == (1, 125, 2)
        return 1.5 * model.decoder(inputs).numpy()

    found = validate(model, clips, judged, seed=7)
    expected = np.array([*rendered_by_reference(model, clips, judged, rates, seed=7)])
    np.testing.assert_allclose(found.renderings, expected, atol=1e-5)
    losses = [reference.spectral_loss(a, b) for a, b in zip(clips.audio, expected, strict=True)]
    np.testing.assert_allclose(found.losses, losses, rtol=1e-4)
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert validate(model, clips, judged, seed=7).loss == found.loss
