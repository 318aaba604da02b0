"""The picture of a front: every completed trial is in it, the front is its staircase."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from analysis import front_figure
from analysis.front_figure import draw_front
from sweeps.errors import MetricError
from sweeps.objectives import objective
from sweeps.pareto import knee, pareto_front
from sweeps.trial import Candidate, Measurement, Reason, Trial

POINTS = [(10.0, 0.5), (8.0, 1.0), (7.5, 4.0), (9.0, 3.0), (11.0, 0.9)]
ON_FRONT = POINTS[:3]


def trial(number, loss, ratio, reason=None):
    measurement = Measurement(val_loss=loss, rtf_ratio=ratio, rtf=ratio / 1e4, parameters=2446)
    return Trial("s", Candidate.of({"number": number}), measurement, reason)


TRIALS = [trial(i, *point) for i, point in enumerate(POINTS)]


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """A function: draws a front to a file and returns the axes that were drawn."""

    def draw(trials, names=("val_loss", "rtf_ratio"), **options):
        figures = []

        class Kept(front_figure.Figure):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                figures.append(self)

        monkeypatch.setattr(front_figure, "Figure", Kept)
        front = pareto_front(trials, [objective(name) for name in names])
        draw_front(front, trials, tmp_path / "front.png", title="A sweep", **options)
        return figures[0].axes[0]

    return draw


def points(axes, label):
    (collection,) = (c for c in axes.collections if c.get_label().startswith(label))
    return sorted(map(tuple, np.asarray(collection.get_offsets()).tolist()))


def flipped(pairs):
    return sorted((cost, loss) for loss, cost in pairs)


def test_a_png_of_a_readable_size_is_written(draw, tmp_path):
    draw(TRIALS)
    content = (tmp_path / "front.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert width >= 1000
    assert height >= 600


@pytest.mark.parametrize("names", [("val_loss",), ("val_loss", "rtf_ratio", "parameters")])
def test_a_figure_of_one_or_three_objectives_is_refused(draw, tmp_path, names):
    with pytest.raises(MetricError, match=f"two objectives, not {len(names)}"):
        draw(TRIALS, names=names)
    assert not (tmp_path / "front.png").exists()


def test_each_completed_trial_is_drawn_once(draw):
    failed = trial(9, 1.0, 0.1, Reason.DIVERGED)
    axes = draw([*TRIALS, failed])
    assert points(axes, "Pareto front") == flipped(ON_FRONT)
    assert points(axes, "dominated") == flipped(POINTS[3:])


def test_the_staircase_goes_through_the_front_from_cheap_to_dear(draw):
    (stairs,) = draw(TRIALS).lines
    assert stairs.get_drawstyle() == "steps-post"
    assert list(zip(*stairs.get_data(), strict=True)) == flipped(ON_FRONT)


def test_no_label_lies_on_another(draw):
    close = [trial(i, 8 - 0.02 * i, 1 + 0.02 * i) for i in range(5)]
    boxes = [text.get_window_extent() for text in draw([trial(9, 12.0, 0.5), *close]).texts]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_members_are_named_by_id_and_size(draw):
    texts = sorted(text.get_text() for text in draw(TRIALS).texts)
    assert [text[:6] for text in texts] == sorted(t.id[:6] for t in TRIALS[:3])
    assert all(text.endswith("2,446") for text in texts)


def test_members_are_named_with_the_pitch_that_they_miss(draw):
    measured = replace(TRIALS[0].measurement, f0_missed_share=0.104)
    texts = draw([replace(TRIALS[0], measurement=measured), *TRIALS[1:]]).texts
    assert sorted(text.get_text()[6:] for text in texts) == [
        *(", 2,446", ", 2,446", ", 2,446, 10.4%")
    ]


def test_the_knee_and_a_dominated_baseline_are_pointed_out(draw):
    front = pareto_front(TRIALS, [objective("val_loss"), objective("rtf_ratio")])
    chosen = knee(front)
    axes = draw(TRIALS, knee=chosen, baseline_id=TRIALS[3].id)
    assert points(axes, "knee") == flipped([POINTS[TRIALS.index(chosen)]])
    assert points(axes, "baseline") == flipped([POINTS[3]])
    assert len(axes.get_legend().get_texts()) == 4


def test_a_baseline_on_the_front_is_pointed_out(draw):
    axes = draw(TRIALS, baseline_id=TRIALS[1].id)
    assert points(axes, "baseline") == flipped([POINTS[1]])


def test_axes_say_what_they_show_and_which_way_is_better(draw):
    axes = draw(TRIALS)
    assert axes.get_xlabel() == "rtf_ratio [x reference], lower is better"
    assert axes.get_ylabel() == "val_loss, lower is better"
    assert axes.get_title(loc="left") == "A sweep"
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")


def test_a_cost_of_which_more_is_better_says_so(draw):
    axes = draw(TRIALS, ("val_loss", "x_real_time"))
    assert axes.get_xlabel() == "x_real_time [x real time], higher is better"
    (stairs,) = axes.lines
    speeds = stairs.get_xdata().tolist()
    assert speeds == sorted(speeds, reverse=True)


@pytest.mark.parametrize(
    "trials",
    [
        [],
        TRIALS[:1],
        [trial(0, 1.0, 0.1, Reason.DIVERGED)],
        [trial(0, 8.0, 1.0), trial(1, 8.0, 1.0)],
        [trial(0, float("nan"), 1.0), trial(1, 8.0, 1.0)],
        [Trial("s", Candidate.of({"number": 0})), trial(1, 8.0, 1.0)],
        [trial(0, 8.0, 0.0), trial(1, 7.0, 1.0)],
    ],
    ids=["none", "one", "failed-only", "equal", "nan", "unmeasured", "free"],
)
def test_any_front_can_be_drawn(draw, trials, tmp_path):
    draw(trials)
    assert (tmp_path / "front.png").stat().st_size > 5000
