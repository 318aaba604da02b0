"""Stopping rules: what the bound promises, on curves of which the truth is known."""

import dataclasses
import itertools
import math
import statistics

import numpy as np
import pytest

from sweeps.config import Limits, SweepConfig
from sweeps.ledger import Ledger, SweepFacts
from sweeps.objectives import objective
from sweeps.pareto import hypervolume, non_dominated
from sweeps.stopping import (
    HEADROOM,
    Extrapolation,
    Verdict,
    Waiting,
    most_promising,
    stopping_rule,
)
from sweeps.trial import Candidate, Measurement, Provenance, Reason, Trial

RUNGS = (30, 60, 120, 240)
STEPS = 300


def rule_of(stopping, objectives=("val_loss", "rtf_ratio"), **options):
    return stopping_rule(
        SweepConfig(objectives, "random", 0, Limits(), stopping=stopping, **options)
    )


def trial(number, curve, *, loss=None, rtf=1.0, margin=0.0, sweep="s", steps=STEPS):
    """A completed trial; without a final loss, one that has come to the last rung of its curve."""
    measured = Measurement(
        val_loss=loss, rtf_ratio=rtf, rtf_ratio_low=rtf - margin, rtf_ratio_high=rtf + margin
    )
    return Trial(
        sweep,
        Candidate.of({"channels": number}),
        measured,
        None if loss else Reason.PRUNED,
        provenance=Provenance(train_steps=steps if loss else max(curve)),
        curve=curve,
    )


def finished(count, *, loss=6.0, **options):
    """Trials that come down from 9 or so, to 6 as a rule."""
    return [trial(100 + i, {30: 9.0 + i / 100}, loss=loss, **options) for i in range(count)]


def optimistic_bound(step, loss, curves, finals, *, risk):
    return Extrapolation(curves, finals, risk=risk).bound(step, loss)


def taught(rule, trials):
    for one in trials:
        rule.learn(one)
    return rule


# --- The bound


def slow_bound(rung, loss, losses, finals, risk):
    """The definition of the bound, one trial and one rung at a time."""
    n, rungs = len(losses), range(len(losses[0]))

    def way(y):
        return math.log(max(y, min(finals)) / min(finals) * (1 + HEADROOM))

    def share(y, final):
        return math.log(y / final) / way(y)

    shares = [[share(losses[i][s], finals[i]) for s in rungs] for i in range(n)]
    scores = []
    for i in range(n):
        over = []
        for s in rungs:
            others = [shares[j][s] for j in range(n) if j != i]
            spread = statistics.stdev(shares[j][s] for j in range(n))
            over.append((shares[i][s] - statistics.mean(others)) / spread)
        scores.append(max(over))
    z = sorted(scores, reverse=True)[math.floor(risk * (n + 1)) - 1]
    column = [shares[i][rung] for i in range(n)]
    furthest = statistics.mean(column) + z * statistics.stdev(column)
    return loss * math.exp(-max(furthest, 0.0) * way(loss))


@pytest.mark.parametrize("risk", [0.1, 0.25, 0.5])
def test_the_bound_is_that_of_its_definition(risk):
    rng = np.random.default_rng(0)
    for _ in range(20):
        _, losses = curves(rng, 12)
        *others, mine = losses
        named = [dict(zip(RUNGS, other, strict=False)) for other in others]
        finals = [other[-1] for other in others]
        for rung, step in enumerate(RUNGS):
            bound = optimistic_bound(step, mine[rung], named, finals, risk=risk)
            slow = slow_bound(rung, mine[rung], [o[:-1] for o in others], finals, risk)
            assert bound == pytest.approx(slow)
            assert bound <= mine[rung] * (1 + 1e-12)


def test_there_is_no_bound_before_enough_have_finished():
    named = [{30: 9.0 + i} for i in range(9)]
    finals = [6.0] * 9
    assert optimistic_bound(30, 9.0, named[:8], finals[:8], risk=0.1) == -math.inf
    assert 0 < optimistic_bound(30, 9.0, named, finals, risk=0.1) < 9.0
    assert optimistic_bound(60, 9.0, named, finals, risk=0.1) == -math.inf


def test_a_rung_that_a_trial_has_missed_costs_the_others_nothing():
    rng = np.random.default_rng(0)
    _, losses = curves(rng, 20)
    named = [dict(zip(RUNGS, curve, strict=False)) for curve in losses]
    finals = [curve[-1] for curve in losses]
    whole = optimistic_bound(60, 9.0, named, finals, risk=0.2)
    del named[3][30]
    assert optimistic_bound(60, 9.0, named, finals, risk=0.2) == pytest.approx(whole, rel=0.05)


def test_a_trial_may_always_end_where_it_is():
    rising = [{30: 6.0}, {30: 6.5}, {30: 7.0}]
    assert optimistic_bound(30, 8.0, rising, [7.0, 7.0, 7.1], risk=0.9) == pytest.approx(8.0)


def curves(rng, count):
    """Power laws with an onset, as small decoders have: cheap ones begin late and end high."""
    size = rng.uniform(0.0, 1.0, count)
    end = np.exp(1.7 + 0.4 * (1 - size) + rng.gumbel(0.0, 0.06, count))
    onset = STEPS * np.clip(0.3 * (1 - size) + rng.exponential(0.1, count), 0.02, 0.6)
    steps = np.array([*RUNGS, STEPS])
    noise = rng.normal(0.0, 0.02, (count, len(steps)))
    past = 1 / (1 + (steps / onset[:, None]) ** 3)
    losses = end[:, None] * np.exp(past * np.log(30 / end)[:, None] + noise)
    return np.exp(size), losses


@pytest.mark.parametrize("confidence", [0.7, 0.9])
def test_of_exchangeable_trials_at_most_the_stated_share_ever_ends_below_its_bound(confidence):
    rng = np.random.default_rng(0)
    wrong, sweeps = 0, 300
    for _ in range(sweeps):
        _, losses = curves(rng, 30)
        *others, mine = losses
        named = [dict(zip(RUNGS, other, strict=False)) for other in others]
        finals = [other[-1] for other in others]
        wrong += any(
            mine[-1] < optimistic_bound(step, loss, named, finals, risk=1 - confidence)
            for step, loss in zip(RUNGS, mine, strict=False)
        )
    allowed = 1 - confidence
    # It is no bound that never commits itself either.
    assert 0.2 * allowed < wrong / sweeps < allowed + 2 * math.sqrt(allowed / sweeps)


def swept(rule, rtf, losses):
    """Runs trials one after another. Returns which were stopped and the steps that took."""
    stopped, spent = np.zeros(len(rtf), np.bool_), 0
    for i, (cost, curve) in enumerate(zip(rtf, losses, strict=True)):
        for rung, step in enumerate(RUNGS):
            reached = dict(zip(RUNGS[: rung + 1], curve, strict=False))
            if rule.verdict(trial(i, reached, rtf=cost), STEPS).stop:
                stopped[i], spent = True, spent + step
                rule.learn(trial(i, reached, rtf=cost))
                break
        else:
            whole = dict(zip(RUNGS, curve, strict=False))
            rule.learn(trial(i, whole, loss=curve[-1], rtf=cost))
            spent += STEPS
    return stopped, spent / (STEPS * len(rtf))


@pytest.mark.parametrize(("confidence", "steps_left"), [(0.7, 0.75), (0.9, 0.95)])
def test_members_of_the_front_are_removed_at_most_at_the_stated_rate(confidence, steps_left):
    rng = np.random.default_rng(1)
    removed, members, cost = 0, 0, []
    for _ in range(20):
        rtf, losses = curves(rng, 48)
        front = non_dominated(np.stack([losses[:, -1], rtf], axis=1))
        stopped, share = swept(rule_of("bound", confidence=confidence), rtf, losses)
        removed, members = removed + (stopped & front).sum(), members + front.sum()
        cost.append(share)
    assert removed / members <= 1 - confidence
    assert np.mean(cost) < steps_left


# --- What the bound is compared with


def test_a_trial_that_cannot_reach_a_cheaper_one_stops_and_the_record_says_why():
    rule = taught(rule_of("bound"), finished(9, loss=8.0))
    rule.learn(trial(7, {30: 6.0}, loss=5.0, rtf=0.5))
    why = rule.verdict(trial(1, {30: 9.0}), STEPS).stop
    assert "step 30 of 300; val_loss 9 then" in why
    assert f"{Candidate.of({'channels': 7}).id} has 5 at no higher cost" in why


def test_only_trials_that_are_surely_no_dearer_count():
    for rtf, margin, stops in [(0.9, 0.01, True), (0.9, 0.2, False), (1.1, 0.01, False)]:
        rule = taught(rule_of("bound"), finished(9, loss=8.0, rtf=9.0))
        rule.learn(trial(7, {30: 6.0}, loss=5.0, rtf=rtf, margin=margin))
        assert bool(rule.verdict(trial(1, {30: 9.0}, margin=0.01), STEPS).stop) is stops


def test_an_equal_graph_was_measured_once_and_costs_the_same():
    rule = taught(rule_of("bound"), finished(9, loss=8.0, rtf=9.0))
    rule.learn(trial(7, {30: 6.0}, loss=5.0, margin=0.01))
    assert rule.verdict(trial(1, {30: 9.0}, margin=0.01), STEPS).stop


def test_every_cost_must_be_no_higher_in_its_own_direction():
    objectives = ("val_loss", "x_real_time", "parameters")
    for rtf, parameters, stops in [(1.0, 50, True), (1.0, 200, False), (2.0, 50, False)]:
        rule = rule_of("bound", objectives)

        def of(number, curve, loss, rtf, parameters):
            one = trial(number, curve, loss=loss)
            measured = Measurement(val_loss=loss, rtf=rtf, parameters=parameters)
            return Trial("s", one.candidate, measured, one.reason, "", one.provenance, curve)

        for i in range(9):
            rule.learn(of(100 + i, {30: 9.0}, 8.0, 9.0, 900))
        rule.learn(of(7, {30: 6.0}, 5.0, rtf, parameters))
        assert bool(rule.verdict(of(1, {30: 9.0}, None, 1.5, 100), STEPS).stop) is stops


def test_another_sweep_tells_how_curves_go_on_and_does_not_compete():
    rule = taught(rule_of("bound"), finished(10, loss=6.0, sweep="other"))
    assert not rule.verdict(trial(1, {30: 9.0}), STEPS).stop
    rule.learn(trial(7, {30: 6.0}, loss=5.0))
    assert rule.verdict(trial(1, {30: 9.0}), STEPS).stop


def test_trials_of_another_length_tell_nothing_of_how_curves_go_on():
    rule = taught(rule_of("bound"), finished(20, steps=600))
    assert rule.verdict(trial(1, {30: 20.0}), STEPS) == Verdict()


@pytest.mark.parametrize("stopping", ["none", "bound", "defer", "asha"])
def test_a_rule_is_the_same_however_often_and_in_whatever_order_it_is_told(stopping):
    rng = np.random.default_rng(2)
    rtf, losses = curves(rng, 20)
    trials = [
        trial(i, dict(zip(RUNGS, curve, strict=False)), loss=curve[-1], rtf=cost)
        for i, (cost, curve) in enumerate(zip(rtf, losses, strict=True))
    ]
    once = taught(rule_of(stopping), trials)
    again = taught(rule_of(stopping), [*trials[::-1], *trials])
    rtf, losses = curves(rng, 40)
    reached = [
        trial(50 + i, {30: y[0]}, rtf=r) for i, (r, y) in enumerate(zip(rtf, losses, strict=True))
    ]
    verdicts = [(once.verdict(t, STEPS), again.verdict(t, STEPS)) for t in reached]
    assert all(bool(one.stop) == bool(other.stop) for one, other in verdicts)
    assert all(one.waits == other.waits for one, other in verdicts)
    assert all(one.gain == pytest.approx(other.gain) for one, other in verdicts)
    assert any(one.stop for one, _ in verdicts) is (stopping != "none")
    assert any(one.waits for one, _ in verdicts) is (stopping == "defer")
    assert any(one.gain > 0 for one, _ in verdicts) is (stopping == "defer")


def test_a_trial_waits_that_is_not_expected_to_reach_a_cheaper_one():
    ends = [5.4 + 0.15 * i for i in range(9)]  # of 9, in the mean at 6
    dear = [trial(100 + i, {30: 9.0}, loss=end, rtf=9.0) for i, end in enumerate(ends)]
    rule = taught(rule_of("defer"), dear)
    assert rule.verdict(trial(1, {30: 9.0}), STEPS) == Verdict()  # nothing is as cheap
    rule.learn(trial(7, {30: 7.0}, loss=5.9))
    verdicts = [rule.verdict(trial(1, {30: loss}), STEPS) for loss in (8.0, 9.2, 9.6)]
    assert not any(verdict.stop for verdict in verdicts)
    assert [verdict.waits for verdict in verdicts] == [False, True, True]
    assert verdicts[1].gain > verdicts[2].gain > 0 == verdicts[0].gain
    plain = taught(rule_of("bound"), [*dear, trial(7, {30: 7.0}, loss=5.9)])
    assert plain.verdict(trial(1, {30: 9.2}), STEPS) == Verdict()


def test_what_is_expected_is_the_mean_share_of_the_way():
    curves, finals = [{30: 9.0}, {30: 10.0}, {30: 12.0}], [6.0, 7.0, 6.5]
    floor = math.log(6.0 / (1 + HEADROOM))
    shares = [
        math.log(curve[30] / final) / (math.log(curve[30]) - floor)
        for curve, final in zip(curves, finals, strict=True)
    ]
    extrapolation = Extrapolation(curves, finals, risk=0.1)
    way = math.log(8.0) - floor
    assert extrapolation.expected(30, 8.0) == pytest.approx(
        8.0 * math.exp(-statistics.mean(shares) * way)
    )
    assert extrapolation.expected(60, 8.0) is None
    assert Extrapolation(curves[:2], finals[:2], risk=0.1).expected(30, 8.0) is None


def test_a_gain_is_the_mean_volume_that_the_possible_ends_add():
    rule = rule_of("defer", confidence=0.99)
    curve = [(10.0, 6.0), (9.0, 6.5), (11.0, 5.5)]
    for number, (at, end) in enumerate(curve):
        rule.learn(trial(100 + number, {30: at}, loss=end, rtf=1.0 + number))
    found = rule.verdict(trial(1, {30: 10.5}, rtf=1.5), STEPS)
    assert found.waits

    floor = math.log(5.5 / (1 + HEADROOM))
    shares = [math.log(at / end) / (math.log(at) - floor) for at, end in curve]
    ends = [10.5 * math.exp(-share * (math.log(10.5) - floor)) for share in shares]
    worst_loss, worst_cost = 1.1 * max(6.5, *ends), math.log10(1.1 * 3.0)
    points = [(1.0, 6.0), (2.0, 6.5), (3.0, 5.5)]

    def volume(points):
        axes = [(math.log10(cost), loss / worst_loss) for cost, loss in points]
        return hypervolume(axes, (worst_cost, 1.0))

    gains = [volume([*points, (1.5, end)]) - volume(points) for end in ends]
    assert found.gain == pytest.approx(statistics.mean(gains))
    assert min(gains) == 0.0 < max(gains)


def test_costs_of_zero_tell_nothing_of_a_gain():
    rule = taught(rule_of("defer", confidence=0.99), finished(5, rtf=0.0))
    assert rule.verdict(trial(1, {30: 12.0}, rtf=0.0), STEPS) == Verdict(waits=True)


def test_of_many_trials_the_quantiles_tell_where_others_may_end():
    rng = np.random.default_rng(0)
    _, losses = curves(rng, 400)
    named = [dict(zip(RUNGS, curve, strict=False)) for curve in losses]
    finals = [curve[-1] for curve in losses]
    few = Extrapolation(named[:10], finals[:10], risk=0.1).finals(60, 9.0)
    many = Extrapolation(named, finals, risk=0.1).finals(60, 9.0)
    assert (len(few), len(many)) == (10, 16)
    each = [Extrapolation(named, finals, risk=0.1)._after(s, 9.0) for s in shares_of(named, finals)]
    assert np.mean(many) == pytest.approx(np.mean(each), rel=0.01)


def shares_of(named, finals):
    floor = math.log(min(finals) / (1 + HEADROOM))
    return [
        math.log(curve[60] / final) / (math.log(max(curve[60], min(finals))) - floor)
        for curve, final in zip(named, finals, strict=True)
    ]


class Told:
    """A rule that says of each trial what it is told to; `asked` are those it was asked about."""

    def __init__(self, gains):
        self.gains = gains
        self.asked = []

    def verdict(self, reached, steps):
        self.asked.append(reached.candidate["channels"])
        return Verdict(waits=True, gain=self.gains[self.asked[-1]])


def test_the_most_promising_goes_on_first_and_few_are_judged_again():
    def wait(gains):
        return {
            number: Waiting(30, Verdict(waits=True, gain=gain), STEPS, trial(number, {30: 9.0}))
            for number, gain in gains.items()
        }

    rule = Told({1: 0.1, 2: 0.25, 3: 0.35, 4: 0.0})
    assert most_promising(wait({1: 0.1, 2: 0.3, 3: 0.4, 4: 0.2}), rule) == 3
    assert rule.asked == [3]
    rule = Told({1: 0.1, 2: 0.25, 3: 0.05, 4: 0.0})
    waiting = wait({1: 0.1, 2: 0.3, 3: 0.4, 4: 0.2})
    assert most_promising(waiting, rule) == 2
    assert rule.asked == [3, 2]
    assert waiting[3].verdict.gain == 0.05
    assert most_promising({}, rule) is None
    left = {5: Waiting(30, Verdict(waits=True, gain=0.5)), 1: waiting[1]}  # of an earlier launch
    assert most_promising(left, rule) == 5


def test_trials_without_rungs_tell_nothing_of_how_curves_go_on():
    rng = np.random.default_rng(0)
    _, losses = curves(rng, 12)
    named = [dict(zip(RUNGS, curve, strict=False)) for curve in losses]
    finals = [curve[-1] for curve in losses]
    alone = Extrapolation(named, finals, risk=0.2)
    beside = Extrapolation([*named, {}, {}], [*finals, 3.0, 9.0], risk=0.2)
    assert beside.bound(60, 9.0) == alone.bound(60, 9.0)
    assert Extrapolation([{}], [3.0], risk=0.9).bound(60, 9.0) == -math.inf


# --- Successive halving


def test_of_the_trials_at_a_rung_one_in_so_many_goes_on():
    rule = rule_of("asha", reduction_factor=3)
    losses = [5.0, 6.0, 7.0, 4.0, 8.0, 9.0]
    verdicts = [rule.verdict(trial(i, {30: loss}), STEPS).stop for i, loss in enumerate(losses)]
    assert [bool(verdict) for verdict in verdicts] == [False, False, True, False, True, True]
    assert "rank 5 of 5 at this rung, where 1 go on" in verdicts[4]


def test_of_a_front_those_furthest_apart_go_on():
    rule = rule_of("asha", reduction_factor=2)
    points = [(9.0, 1.0), (1.0, 9.0), (8.9, 1.1), (5.0, 5.0)]
    stops = [rule.verdict(trial(i, {30: y}, rtf=r), STEPS).stop for i, (y, r) in enumerate(points)]
    # Two places: both ends of the front have them, whatever is between.
    assert [bool(stop) for stop in stops] == [False, True, True, True] or not stops[0]
    assert stops[2]


def test_what_dominates_ranks_before_what_it_dominates():
    rng = np.random.default_rng(3)
    points = rng.uniform(1.0, 2.0, (30, 2))
    rule = rule_of("asha", reduction_factor=2)
    verdicts = [
        bool(rule.verdict(trial(i, {30: y}, rtf=r), STEPS).stop) for i, (y, r) in enumerate(points)
    ]
    for i, j in itertools.combinations(range(30), 2):
        if (points[j] < points[i]).all() and verdicts[j]:
            # Asked again, now that all are known: who dominates a trial that goes on goes on too.
            again = [
                rule.verdict(trial(k, {30: points[k][0]}, rtf=points[k][1]), STEPS).stop
                for k in (i, j)
            ]
            assert again[0] or not again[1]


# --- What is infeasible for what it has learnt


def silent(number, curve, **options):
    """A trial that was trained to its end, and misses the pitch."""
    found = trial(number, curve, **options)
    measured = dataclasses.replace(found.measurement, f0_missed_share=1.0)
    return dataclasses.replace(found, measurement=measured, reason=Reason.MISSED_PITCH)


@pytest.mark.parametrize("stopping", ["bound", "defer"])
def test_a_trial_that_does_not_sing_does_not_raise_the_bar(stopping):
    """It costs nothing and has the best loss of all: no trial could reach it."""
    reached = trial(1, {30: 12.0})
    rule = taught(rule_of(stopping), finished(20, rtf=2.0))
    before = rule.verdict(reached, STEPS)
    rule.learn(silent(2, {30: 9.0}, loss=1.0, rtf=0.1))
    assert rule.verdict(reached, STEPS) == before == Verdict()
    rule.learn(trial(3, {30: 9.0}, loss=1.0, rtf=0.1))
    assert rule.verdict(reached, STEPS).stop


def test_a_trial_that_does_not_sing_holds_no_place_at_a_rung():
    rule = rule_of("asha", reduction_factor=2)
    for number, loss in enumerate([5.0, 9.0, 8.0]):
        rule.verdict(trial(number, {30: loss}), STEPS)
    assert not rule.verdict(trial(3, {30: 7.0}), STEPS).stop
    assert rule.verdict(trial(4, {30: 7.5}), STEPS).stop
    rule.learn(silent(0, {30: 5.0}, loss=4.0))
    assert not rule.verdict(trial(4, {30: 7.5}), STEPS).stop


# --- The record of a trial that was stopped


def test_a_stopped_trial_never_enters_the_front(tmp_path):
    facts = SweepFacts(
        name="s", gin_config="", dataset_fingerprint="", objectives=("val_loss", "rtf_ratio")
    )
    ledger = Ledger.create(tmp_path, "s", facts)
    ledger.append(trial(1, {30: 0.1}, rtf=0.01))
    ledger.append(trial(2, {30: 9.0}, loss=6.0))
    front = ledger.front([objective("val_loss"), objective("rtf_ratio")])
    assert [member.candidate["channels"] for member in front.members] == [2]
    assert [(e.status.value, e.why) for e in front.excluded] == [("pruned", "stopped early")]
    assert ledger.get(trial(1, {30: 0.1}).id).curve == {30: 0.1}
