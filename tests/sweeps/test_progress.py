import dataclasses
import io
import re

import pytest
from rich.console import Console

from sweeps.evaluate import Progress
from sweeps.objectives import objective
from sweeps.progress import (
    HEARTBEAT_SECONDS,
    REFRESH_SECONDS,
    SHOWN,
    Stopping,
    SweepBegan,
    SweepProgress,
    TrialAdvanced,
    TrialBegan,
    TrialDeferred,
    TrialEnded,
    TrialRetried,
    Waited,
    Warned,
)
from sweeps.standing import Outcomes, Standing
from sweeps.trial import Candidate, Reason, Trial
from tests.sweeps.fakes import trial_of

NARROW = Candidate.of({"channels": 4, "learning_rate": 0.00123456})
WIDE = Candidate.of({"channels": 8, "learning_rate": 0.01})
OBJECTIVES = (objective("val_loss"), objective("rtf_ratio"))


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def shown(clock, *events, terminal=False):
    """What a display shows of some events; a number lets so many seconds pass."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=140)
    with SweepProgress(console, clock=clock) as show:
        for event in events:
            if isinstance(event, float):
                clock.now += event
            else:
                show(event)
    return output.getvalue()


def began_with(trials, asked, objectives=OBJECTIVES):
    standing = Standing(objectives)
    standing.add(Outcomes.of(trials, objectives))
    return SweepBegan("s", asked, standing)


def test_every_finished_trial_is_a_line(clock):
    failed = Trial("s", WIDE, reason=Reason.DIVERGED, detail="NaN at step 7")
    began = began_with([], asked=3)
    lines = shown(clock, began, TrialEnded(trial_of("s", NARROW)), TrialEnded(failed)).splitlines()
    assert lines == [
        "s: 0/3 trials finished",
        f"[1/3] {NARROW.id[:6]}  completed  val_loss=2.5  rtf_ratio=0.5"
        "  (channels=4 learning_rate=0.00123)",
        f"[2/3] {WIDE.id[:6]}  failed: NaN at step 7  (channels=8 learning_rate=0.01)",
    ]


def test_a_finished_trial_says_how_much_of_the_pitch_it_misses(clock):
    ended = TrialEnded(trial_of("s", NARROW, f0_missed_share=0.104))
    shown_lines = shown(clock, began_with([], asked=3), ended).splitlines()
    assert "val_loss=2.5  rtf_ratio=0.5  f0_missed=10.4%  (" in shown_lines[1]


def test_a_continued_sweep_counts_what_it_holds(clock):
    assert "s: 1/3 trials" in shown(clock, began_with([trial_of("s", WIDE)], asked=3))


def test_a_heartbeat_comes_after_a_long_silence_only(clock):
    began = began_with([], asked=3)
    ended = TrialEnded(trial_of("s", NARROW, seconds=80.0))
    advanced = TrialAdvanced(WIDE, Progress("train", 120, 300, 7.125))
    gap = HEARTBEAT_SECONDS
    quiet = [began, ended, TrialBegan(WIDE), advanced, gap - 1, advanced, Waited()]
    assert len(shown(clock, *quiet).splitlines()) == 2
    beats = shown(clock, *quiet, 1.0, Waited(), Waited(), gap, Waited()).splitlines()[2:]
    assert len(beats) == 2
    assert beats[0] == (
        "[1/3] 1 running · front 1 · hypervolume 0.5 · best val_loss 2.5 · 2 min left"
        f" · {WIDE.id[:6]} train 120/300 · loss 7.125"
    )


def test_a_died_worker_and_an_interrupt_are_told_of(clock):
    text = shown(clock, TrialRetried(WIDE), Stopping(), HEARTBEAT_SECONDS, Stopping())
    assert f"{WIDE.id[:6]}  worker died, trying again" in text
    assert "stopping; what is not finished is kept" in text


def test_a_trial_that_waits_is_counted_and_does_not_run(clock):
    began = began_with([], 3)
    events = [began, TrialBegan(NARROW), TrialBegan(WIDE), TrialDeferred(WIDE), 30.0, Waited()]
    said = shown(clock, *events)
    assert "1 running · 1 deferred" in said
    assert WIDE.id[:6] not in said
    assert "deferred" not in shown(clock, *events[:-2], TrialBegan(WIDE), 30.0, Waited())
    ended = TrialEnded(trial_of("s", WIDE))
    assert "deferred" not in shown(clock, *events[:-2], ended, 30.0, Waited())


@pytest.mark.parametrize("terminal", [False, True])
def test_a_warning_is_one_line_whatever_its_length(clock, terminal):
    began = began_with([], asked=3)
    text = shown(clock, began, Warned("mind " * 50 + "[this]"), Waited(), terminal=terminal)
    assert "warning: " + "mind " * 50 + "[this]\n" in text


def test_a_terminal_shows_where_the_sweep_and_its_trials_are(clock):
    text = shown(
        clock,
        began_with([trial_of("s", NARROW)], asked=4),
        TrialBegan(WIDE),
        TrialAdvanced(WIDE, Progress("train", 120, 300, 7.125)),
        TrialEnded(Trial("s", Candidate.of({"channels": 1}), reason=Reason.CRASHED)),
        REFRESH_SECONDS,
        Waited(),
        terminal=True,
    )
    assert "2/4 · 1 running · front 1 · hypervolume 0.5 · best val_loss 2.5 · 1 failed" in text
    assert f"{WIDE.id[:6]}" in text
    assert "train 120/300 · loss 7.125" in text


def test_a_terminal_is_not_drawn_anew_for_each_of_many_events(clock):
    began = began_with([], asked=4)
    steps = [TrialAdvanced(WIDE, Progress("train", step, 300)) for step in range(300)]
    text = shown(clock, began, *steps[:200], REFRESH_SECONDS, *steps[200:], terminal=True)
    # One picture when its time has come, one at the end.
    assert re.findall(r"train (\d+)", text) == ["200", "299"]


@pytest.mark.parametrize("terminal", [False, True])
def test_of_hundreds_that_run_the_first_are_shown_and_the_others_counted(clock, terminal):
    running = [Candidate.of({"channels": 100 + i}) for i in range(300)]
    began = [began_with([], asked=4), *map(TrialBegan, running)]
    first = TrialEnded(Trial("s", running[0], reason=Reason.CRASHED))
    text = shown(clock, *began, HEARTBEAT_SECONDS, Waited(), terminal=terminal)
    assert [c.id[:6] in text for c in running] == [True] * SHOWN + [False] * (300 - SHOWN)
    assert f"{300 - SHOWN} more" in text
    text = shown(clock, *began, first, HEARTBEAT_SECONDS, Waited(), terminal=terminal)
    assert [c.id[:6] in text for c in running[1:]] == [True] * SHOWN + [False] * (299 - SHOWN)


def test_raw_costs_of_several_hosts_have_no_front(clock):
    trials = []
    for candidate, host in ((NARROW, "a"), (WIDE, "b")):
        trial = trial_of("s", candidate, rtf=1.0)
        provenance = dataclasses.replace(trial.provenance, host_fingerprint=host)
        trials.append(dataclasses.replace(trial, provenance=provenance))
    began = began_with(trials, asked=3, objectives=(objective("val_loss"), objective("rtf")))
    text = shown(clock, began, HEARTBEAT_SECONDS, Waited())
    assert "front" not in text
    assert "best val_loss 1.25" in text
