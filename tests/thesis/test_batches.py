"""Batches: each clip in its turn, and every crop of one moment."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from thesis.batches import Batches
from thesis.config import TrainConfig

RATES = {"sample_rate": 400, "hop_size": 4}


@given(
    n_clips=st.integers(1, 9),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 99),
    epochs=st.integers(1, 4),
)
def test_an_epoch_sees_each_clip_once(ramps, n_clips, batch_size, seed, epochs):
    batches = Batches(ramps(n_clips), TrainConfig(batch_size=batch_size, seed=seed), **RATES)
    seen = []
    for step in range(-(-n_clips * epochs // batch_size)):
        batch = batches[step]
        assert batch.rows.shape == (batch_size,)
        np.testing.assert_array_equal(batch.f0_hz[:, 0] // 1000, batch.rows)
        seen.extend(batch.rows.tolist())
    for start in range(0, n_clips * epochs, n_clips):
        assert Counter(seen[start : start + n_clips]) == Counter(range(n_clips))


def test_epochs_are_ordered_differently(ramps):
    batches = Batches(ramps(20), TrainConfig(batch_size=20), **RATES)
    first, second = batches[0].rows, batches[1].rows
    assert sorted(first) == sorted(second)
    assert first.tolist() != second.tolist()


@given(step=st.integers(0, 1000), crop_frames=st.integers(1, 60))
def test_a_crop_holds_the_same_moment_of_everything(ramps, step, crop_frames):
    config = TrainConfig(batch_size=3, crop_seconds=crop_frames / 100)
    batches = Batches(ramps(5), config, **RATES)
    batch = batches[step]
    n_frames = min(crop_frames, 40)
    assert batch.f0_hz.shape == (3, n_frames)
    assert batches.cropped == (n_frames < 40)
    np.testing.assert_array_equal(np.diff(batch.f0_hz, axis=1), 1)
    np.testing.assert_array_equal(batch.loudness_db, batch.f0_hz)
    np.testing.assert_array_equal(batch.audio, np.repeat(batch.f0_hz, 4, axis=1))


def test_crops_begin_anywhere_from_the_first_frame_to_the_last_possible(ramps):
    batches = Batches(ramps(1), TrainConfig(batch_size=50, crop_seconds=0.35), **RATES)
    starts = np.concatenate([batches[step].f0_hz[:, 0] for step in range(4)])
    assert set(starts) == set(range(6))


@given(
    n_frames=st.integers(1, 40),
    multiple=st.integers(1, 5),
    crop_seconds=st.sampled_from([0.0, 0.001]) | st.floats(0.01, 0.5),
    step=st.integers(0, 9),
)
def test_a_crop_of_clips_with_fewer_frames_starts_at_one_of_them(
    ramps, n_frames, multiple, crop_seconds, step
):
    config, hop_size = TrainConfig(batch_size=3, crop_seconds=crop_seconds), 4 * multiple
    clips = ramps(2, n_frames).subsampled(multiple)
    batches = Batches(clips, config, sample_rate=400, hop_size=hop_size)
    batch = batches[step]
    assert batch.audio.shape == (3, batches.n_samples)
    assert batch.f0_hz.shape == (3, -(-batches.n_samples // hop_size))
    # Audio and pitch count the frames of the dataset, so each says where it is from.
    np.testing.assert_array_equal(batch.audio[:, ::hop_size], batch.f0_hz)
    assert (batch.f0_hz % 1000 % multiple == 0).all()
    if not crop_seconds:
        assert batches.n_samples == 4 * n_frames
        assert not batches.cropped
