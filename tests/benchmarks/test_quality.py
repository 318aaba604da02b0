"""The losses that the thesis gives for what its models made of the violin clips."""

import numpy as np
import pytest

from benchmarks import quality


def test_every_loss_of_the_thesis_is_reproduced(violin):
    losses = quality.losses_of(quality.load_violin(violin))
    assert sum(loss.published.size for loss in losses.values()) == 75
    for loss in losses.values():
        np.testing.assert_allclose(loss.ours, loss.published, atol=1e-3)
        np.testing.assert_allclose(loss.float64, loss.published, atol=1e-3)
        assert loss.largest_difference < 1e-3


@pytest.mark.parametrize("named_by", ["option", "variable"])
def test_without_recordings_it_says_so_and_finds_nothing(tmp_path, monkeypatch, capsys, named_by):
    monkeypatch.setenv("SWEEPS_DATA", str(tmp_path if named_by == "variable" else tmp_path / "a"))
    quality.main(["--data", str(tmp_path)] if named_by == "option" else [])
    printed = capsys.readouterr()
    assert printed.err.startswith(f"skipped: no violin/ and cello/ in '{tmp_path}'")
    assert not printed.out
