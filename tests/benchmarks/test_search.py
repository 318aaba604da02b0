"""The replay of recorded curves: what is counted, and that nothing is known before its time."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import _curves
from benchmarks import search as bench
from sweeps.evaluate import rung_steps
from sweeps.pareto import hypervolume, non_dominated
from sweeps.trial import Candidate, Measurement, Provenance, Reason, Trial
from tests.sweeps.test_stopping import RUNGS, STEPS, curves

FULL, BOUND, DEFER = bench.REFERENCE, bench._bound("tpe", 0.8), bench.BEST


@pytest.fixture(scope="module")
def table():
    return _curves.read()


def test_the_recorded_table_is_of_whole_trials_of_the_space_they_were_drawn_from(table):
    run = FULL.run()
    assert len({trial.id for trial in table}) == len(table) >= 48
    recorded = rung_steps(run.sweep.rungs, 300, every=10)
    for trial in table:
        assert run.space.candidate(full_values(run.space, trial)) == trial.candidate
        assert set(trial.curve) <= set(recorded)
        assert trial.provenance.train_steps == 300
        assert trial.measurement.rtf_ratio_low <= trial.measurement.rtf_ratio


def full_values(space, trial):
    """Axes that do nothing have some value all the same."""
    some = {axis.name: axis.domain.ends[0] for axis in space.axes}
    return some | dict(trial.candidate.values)


def test_rules_are_asked_at_rungs_that_were_recorded(table):
    asked = {rung for strategy in bench.STRATEGIES for rung in strategy.rungs}
    assert all(asked <= set(trial.curve) for trial in table)


def test_a_table_survives_its_file(table, tmp_path):
    _curves.write(table, tmp_path / "table.parquet")
    assert _curves.read(tmp_path / "table.parquet") == table


def test_without_a_rule_every_trial_is_trained_to_its_end(table):
    result = bench.replay(table, FULL, FULL.run(), seed=0)
    assert {trial.id for trial in result.finished} == {trial.id for trial in table}
    assert (result.stopped, result.validations) == ([], 0)
    assert result.steps == result.spent[-1] == 300 * len(table)
    # Two at a time: when the first one ends the other has come as far.
    assert result.spent[:3] == [600, 600, 1200]


def test_a_rule_saves_the_steps_that_stopped_trials_had_left(table):
    result = bench.replay(table, BOUND, BOUND.run(), seed=0)
    assert len(result.finished) + len(result.stopped) == len(table)
    assert result.stopped
    of_stopped = [trial.provenance.train_steps for trial in result.stopped]
    assert set(of_stopped) <= set(BOUND.rungs)
    assert result.steps == 300 * len(result.finished) + sum(of_stopped)
    assert result.spent == sorted(result.spent)
    assert result.spent[-1] <= result.steps
    for trial in result.stopped:
        assert max(trial.curve) == trial.provenance.train_steps
        assert trial.measurement.val_loss is None


def test_a_trial_that_waits_is_paid_for_once(table):
    result = bench.replay(table, DEFER, DEFER.run(), seed=0)
    assert len(result.finished) + len(result.stopped) == len(table)
    assert result.resumed > 0
    assert result.spent == sorted(result.spent)
    of_stopped = sum(trial.provenance.train_steps for trial in result.stopped)
    assert result.steps == 300 * len(result.finished) + of_stopped
    # Nothing is left to wait when the last one has finished.
    assert result.spent[-1] <= result.steps


@pytest.mark.parametrize("strategy", [FULL, BOUND, DEFER], ids=lambda strategy: strategy.name)
def test_the_same_seed_replays_the_same_and_another_one_otherwise(table, strategy):
    run = strategy.run()
    one, again, other = (bench.replay(table[:20], strategy, run, seed) for seed in (1, 1, 2))
    assert [t.id for t in one.finished] == [t.id for t in again.finished]
    assert [t.id for t in one.finished] != [t.id for t in other.finished]


def test_no_trial_is_judged_by_one_that_has_not_finished(table):
    """The second of two equally dear ones comes to its rungs before the first one's end."""
    first, second = (twin(table[0], number, loss) for number, loss in ((2, 5.0), (3, 9.0)))
    strategy = replace(BOUND, options=("sweep.confidence=0.5",), sampler="random")
    result = bench.replay([first, second], strategy, strategy.run(), seed=0)
    assert result.stopped == []


def twin(trial, channels, loss):
    candidate = Candidate.of({**dict(trial.candidate.values), "channels": channels})
    return replace(
        trial, candidate=candidate, measurement=replace(trial.measurement, val_loss=loss)
    )


def test_a_summary_counts_the_members_of_the_front_that_were_stopped(table):
    points = bench.points_of(table)
    front = {t.id for t, inside in zip(table, non_dominated(points), strict=True) if inside}
    harsh = next(strategy for strategy in bench.STRATEGIES if strategy.stopping == "asha")
    (_, full), (_, halved) = bench.summaries(table, (FULL, harsh), seeds=2)
    assert (full.cost, full.removed, full.found) == (1.0, 0.0, pytest.approx(1.0))
    results = [bench.replay(table, harsh, harsh.run(), seed) for seed in range(2)]
    lost = sum(t.id in front for result in results for t in result.stopped)
    assert halved.removed == pytest.approx(lost / 2 / len(front))
    assert halved.cost < 0.5


def made_up(space, seed, count=40):
    """Trials on curves of which the truth is known."""
    rng = random.Random(seed)
    candidates = {candidate.id: candidate for candidate in map(space.sample, [rng] * 2 * count)}
    costs, losses = curves(np.random.default_rng(seed), count)
    return [
        Trial(
            "search",
            candidate,
            Measurement(val_loss=y[-1], rtf_ratio=c, rtf_ratio_low=c, rtf_ratio_high=c),
            provenance=Provenance(train_steps=STEPS),
            curve=dict(zip(RUNGS, y, strict=False)),
        )
        for candidate, c, y in zip(candidates.values(), costs, losses, strict=False)
    ]


def test_where_trials_wait_members_of_the_front_are_removed_at_most_at_the_stated_rate():
    waiting = bench.Strategy("random", "defer", ("sweep.confidence=0.8",), RUNGS)
    removed = []
    for seed in range(12):
        table = made_up(FULL.run().space, seed)
        assert len(table) == 40
        _, (_, summary) = bench.summaries(table, (FULL, waiting), seeds=3)
        removed.append(summary.removed)
        assert summary.cost < 0.9
    assert np.mean(removed) <= 0.2


def test_steps_are_counted_until_the_hypervolume_is_reached():
    def made(number, loss, cost):
        return Trial(
            "replay",
            Candidate.of({"channels": number}),
            Measurement(val_loss=loss, rtf_ratio=cost),
            provenance=Provenance(train_steps=300),
        )

    finished = [made(1, 3.0, 1.0), made(2, 2.0, math.e), made(3, 1.0, 1.0)]
    result = bench.Replay(spent=[300, 600, 900], finished=finished)
    volumes = bench.volumes(result, (4.0, 2.0))
    expected = [2.0, 3.0, hypervolume([[1.0, 0.0]], (4.0, 2.0))]
    np.testing.assert_allclose(volumes, expected)
    assert [bench.steps_to(result, volumes, v) for v in (2.0, 2.5, 6.0)] == [300, 600, 900]
    assert bench.steps_to(result, volumes, 6.1) == math.inf


def test_a_median_has_the_interval_of_its_ranks():
    interval = bench._median([float(i) for i in range(100)])
    assert interval.value == 49.5
    assert (interval.low, interval.high) == (40.0, 60.0)
    assert bench._median([1.0, math.inf, math.inf]).value == math.inf


def test_a_stopped_trial_has_a_reason(table):
    reached = bench._reached(table[0], 80, 1)
    assert reached.reason is Reason.PRUNED
    assert max(reached.curve) == 80
