import dataclasses
import json
import time

import pytest

from sweeps import lease
from sweeps.lease import leased
from sweeps.ledger import Ledger, SweepFacts
from sweeps.objectives import objective
from sweeps.standing import Outcomes, Standing
from sweeps.status import StatusReader, watch
from sweeps.trial import Attempt, Candidate, Reason, Status, Trial
from tests.sweeps.fakes import run_of, trial_of

WIDTHS = {"DilatedConvStack.channels": (1, 2, 3, 4, 5, 6, 7, 8)}


def candidate(channels):
    return Candidate.of({"channels": channels})


def facts_of(run, asked=4):
    return SweepFacts(
        name="s",
        gin_config=run.text,
        dataset_fingerprint="f",
        objectives=run.sweep.objectives,
        trials_asked=asked,
    )


@pytest.fixture
def ledger(tmp_path):
    return Ledger.create(str(tmp_path), "s", facts_of(run_of(WIDTHS, "sweep.max_rtf_ratio = 1.0")))


def test_a_status_is_what_a_launch_would_say(ledger, tmp_path):
    objectives = (objective("val_loss"), objective("rtf_ratio", limit=1.0))
    standing = Standing(objectives, baseline=candidate(8).id)
    reader = StatusReader(tmp_path, "s")
    for trial in (
        trial_of("s", candidate(4), seconds=60.0),
        trial_of("s", candidate(8), seconds=20.0),
        Trial("s", candidate(1), reason=Reason.DIVERGED),
    ):
        ledger.append(trial)
        standing.add(Outcomes.of([trial], objectives))
        assert reader.read().standing.summary(9, [5.0]) == standing.summary(9, [5.0])
    assert "hypervolume 0.5 · best val_loss 1.25 at rtf_ratio <= 1" in standing.summary(9, [])


def test_a_record_holds_the_figures_by_stable_keys(ledger, tmp_path):
    ledger.append(trial_of("s", candidate(8), seconds=60.0))
    ledger.append(Trial("s", candidate(1), reason=Reason.DIVERGED))
    began_at = time.time() - 20.0
    ledger.mark_started(Attempt(candidate(2), host="node-7", began_at=began_at, deaths=1))
    with leased(ledger.location, "s"):
        record = StatusReader(tmp_path, "s").read().to_record()
    left = record.pop("seconds_left")
    assert left == pytest.approx(40.0 + 60.0, abs=5.0)
    assert record.pop("at") == pytest.approx(time.time(), abs=5.0)
    assert record.pop("launched_on")
    assert json.loads(json.dumps(record)) == {
        "sweep": "s",
        "finished": 2,
        "asked": 4,
        "completed": 1,
        "infeasible": 0,
        "pruned": 0,
        "failed": 1,
        "in_flight": 1,
        "deferred": 0,
        "front": 1,
        "hypervolume": 0.5,
        "hypervolume_reference": {"val_loss": 2.5, "rtf_ratio": 10.0},
        "best_val_loss": 1.25,
        "best_f0_missed_share": None,
        "damaged": [],
        "running": [
            {
                "candidate": {"channels": 2},
                "host": "node-7",
                "began_at": began_at,
                "deaths": 1,
                "losses": 0,
                "cause": "",
                "waits_at": 0,
                "gain": 0.0,
            }
        ],
    }


def test_what_was_started_does_not_run_when_no_launch_is_alive(ledger, tmp_path):
    ledger.append(trial_of("s", candidate(8), seconds=60.0))
    ledger.mark_started(Attempt(candidate(2), host="a", began_at=time.time()))
    status = StatusReader(tmp_path, "s").read()
    assert (len(status.started), status.running, status.seconds_left) == (1, (), None)
    assert status.summary().endswith("no launch is running")


def test_a_trial_that_waits_does_not_run(ledger, tmp_path):
    ledger.mark_started(Attempt(candidate(2), host="a", began_at=time.time()))
    ledger.mark_started(Attempt(candidate(3), host="a", waits_at=40, gain=0.1))
    with leased(ledger.location, "s"):
        status = StatusReader(tmp_path, "s").read()
    assert [attempt.candidate for attempt in status.running] == [candidate(2)]
    assert status.summary() == "1 running · 1 deferred"
    assert status.to_record()["deferred"] == 1


def test_a_status_tells_a_launch_that_begins_from_one_that_is_gone(ledger, tmp_path):
    with leased(ledger.location, "s"):
        assert StatusReader(tmp_path, "s").read().summary() == "no trial is running"
    assert StatusReader(tmp_path, "s").read().summary() == "no launch is running"


def test_a_launch_on_another_machine_is_alive_while_its_lease_changes(ledger, monkeypatch):
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.3)
    file = ledger.location.local_folder / "s" / "lease.json"
    with leased(ledger.location, "s"):
        held = json.loads(file.read_text())
    reader = StatusReader(ledger.location, "s")
    for renewals in range(4):
        file.write_text(json.dumps({**held, "machine": "other", "host": "o", "renewals": renewals}))
        assert reader.read().launched_on == "o"
        time.sleep(0.1)
    assert reader.read().launched_on == "o"
    time.sleep(0.3)
    assert reader.read().launched_on == ""


def test_a_sweep_on_an_object_store_is_watched_until_it_is_complete(s3, tmp_path):
    ledger = Ledger.create(s3(tmp_path.name), "s", facts_of(run_of(WIDTHS), asked=2))
    ledger.append(trial_of("s", candidate(8), seconds=60.0))
    ledger.mark_started(Attempt(candidate(4), host="node-7", began_at=time.time()))

    def finish(seconds):
        ledger.append(trial_of("s", candidate(4), seconds=60.0))

    with leased(ledger.location, "s"):
        reader = StatusReader(s3(tmp_path.name), "s")
        seen = [  # a standing goes on being kept up to date
            (status.standing.finished, len(status.running))
            for status in watch(reader, 5.0, pause=finish)
        ]
    assert seen == [(1, 1), (2, 0)]


def test_a_watch_ends_when_the_sweep_holds_what_was_asked(ledger, tmp_path):
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        ledger.append(trial_of("s", candidate(len(pauses))))

    seen = [s.standing.finished for s in watch(StatusReader(tmp_path, "s"), 7.0, pause=pause)]
    assert seen == [0, 1, 2, 3, 4]
    assert pauses == [7.0] * 4


def test_a_watch_follows_a_launch_that_asks_for_more(ledger, tmp_path):
    for channels in (1, 2, 3):
        ledger.append(trial_of("s", candidate(channels)))

    def pause(_):
        if len(ledger.ids()) == 3:
            more = dataclasses.replace(ledger.facts, trials_asked=5)
            Ledger.create(str(tmp_path), "s", more)
        ledger.append(trial_of("s", candidate(len(ledger.ids()) + 1)))

    asked = [status.asked for status in watch(StatusReader(tmp_path, "s"), 7.0, pause=pause)]
    assert asked == [4, 5, 5]


def test_a_status_reads_no_configuration_where_the_facts_say_all(tmp_path, monkeypatch):
    def reading(*_):
        raise AssertionError("the configuration was read")

    run = run_of(WIDTHS, "sweep.max_rtf_ratio = 1.0")
    facts = dataclasses.replace(
        facts_of(run), limits={"rtf_ratio": 1.0}, baseline=candidate(8).id, gin_config="import os"
    )
    older = Ledger.create(str(tmp_path / "older"), "s", facts_of(run))
    ledger = Ledger.create(str(tmp_path / "newer"), "s", facts)
    for channels in (4, 8):
        for each in (older, ledger):
            each.append(trial_of("s", candidate(channels)))
    expected = StatusReader(tmp_path / "older", "s").read().standing
    monkeypatch.setattr("sweeps.config.parse_run", reading)
    standing = StatusReader(tmp_path / "newer", "s").read().standing
    assert standing.objectives == expected.objectives
    assert standing.objectives[1].limit == 1.0
    assert standing.reference == expected.reference
    assert standing.summary(9, []) == expected.summary(9, [])


def test_a_space_without_the_baseline_has_none_in_the_facts(tmp_path):
    facts = dataclasses.replace(facts_of(run_of(WIDTHS)), limits={}, baseline="")
    ledger = Ledger.create(str(tmp_path), "s", facts)
    ledger.append(trial_of("s", candidate(4)))
    assert StatusReader(tmp_path, "s").read().standing.reference is not None


@pytest.mark.parametrize(
    "text", ["import canary_module", "include 'canary.gin'", "train.steps = ("]
)
def test_the_configuration_of_an_older_release_is_data(tmp_path, monkeypatch, canary, text):
    (tmp_path / "canary.gin").write_text("import canary_module")
    monkeypatch.chdir(tmp_path)
    run = run_of(WIDTHS)
    facts = dataclasses.replace(facts_of(run), gin_config=f"{run.text}\n{text}")
    Ledger.create(str(tmp_path / "runs"), "s", facts).append(trial_of("s", candidate(4)))
    assert StatusReader(tmp_path / "runs", "s").read().standing.finished == 1
    assert not canary.exists()


def test_a_configuration_that_cannot_be_read_here_costs_the_reference_only(tmp_path):
    facts = dataclasses.replace(facts_of(run_of(WIDTHS)), gin_config="no_such.thing = 1")
    ledger = Ledger.create(str(tmp_path), "s", facts)
    for channels in (4, 8):
        ledger.append(trial_of("s", candidate(channels)))
    standing = StatusReader(tmp_path, "s").read().standing
    assert (standing.front_size, standing.best) == (2, 1.25)


def test_a_reader_begins_anew_when_failed_trials_are_forgotten(ledger, tmp_path):
    reader = StatusReader(tmp_path, "s")
    ledger.append(trial_of("s", candidate(4), seconds=60.0))
    ledger.append(Trial("s", candidate(1), reason=Reason.DIVERGED))
    assert (reader.read().standing.finished, reader.read().standing.counts[Status.FAILED]) == (2, 1)
    ledger.forget()
    assert (reader.read().standing.finished, reader.read().standing.counts[Status.FAILED]) == (1, 0)
    ledger.append(trial_of("s", candidate(1), seconds=60.0))
    assert reader.read().standing.finished == 2
