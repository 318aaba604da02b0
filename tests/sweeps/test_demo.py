"""The demo's ends: a bundle of a model that sings, or one line."""

import pytest
from rich.console import Console

from sweeps import demo
from sweeps.errors import TrialError
from sweeps.launch import LaunchReport
from sweeps.ledger import Ledger, SweepFacts
from sweeps.trial import Candidate, Measurement, Trial
from tests.sweeps.fakes import make_dataset
from thesis.data import load_dataset


@pytest.fixture
def run_demo(tmp_path, monkeypatch):
    """A function: runs the demo with a sweep of two trials; returns the id that it promoted."""

    def run_demo(*missed):
        promoted = []

        def launch(name, run, *, storage, trials, **_):
            facts = SweepFacts(
                name=name,
                gin_config=run.text,
                dataset_fingerprint="f",
                objectives=run.sweep.objectives,
                limits={},
            )
            ledger = Ledger.create(storage, name, facts)
            for number, share in enumerate(missed):
                measured = Measurement(
                    val_loss=9.0 - number, rtf_ratio=1.0 + number, f0_missed_share=share
                )
                ledger.append(Trial(name, Candidate.of({"channels": 2 + number}), measured))
            return LaunchReport(name, storage, trials, len(missed))

        monkeypatch.setattr(demo, "prepare_demo", lambda path: load_dataset(make_dataset(path)))
        monkeypatch.setattr(demo, "launch", launch)
        monkeypatch.setattr(demo, "promote", lambda _, trial_id, out: promoted.append(trial_id))
        demo.run_demo(tmp_path / "demo", trials=len(missed), console=Console(quiet=True))
        return promoted[0]

    return run_demo


def test_the_demo_promotes_a_member_that_sings(run_demo, capsys):
    assert run_demo(0.1, 1.0) == Candidate.of({"channels": 2}).id
    out = capsys.readouterr().out
    assert "f0_missed" in out
    assert "100%" in out


def test_a_demo_of_which_no_trial_sings_promotes_none(run_demo, tmp_path):
    with pytest.raises(TrialError, match="no member of the front sings") as caught:
        run_demo(1.0, 0.9)
    assert caught.value.hint.endswith("--trials 4 tries more")
    assert (tmp_path / "demo" / "front.png").exists()
    assert not (tmp_path / "demo" / "bundles").exists()
