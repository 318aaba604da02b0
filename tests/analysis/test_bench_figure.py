"""The picture of a bench: every row is in it, at its size of blocks and its speed."""

import pytest

from analysis import bench_figure
from analysis.bench_figure import draw_bench


def rows(artifact, speeds, bundle="bundles/tiny", runtime="onnx_runtime", quantisation="float"):
    model = {
        "artifact": artifact,
        "bundle": bundle,
        "runtime": runtime,
        "quantisation": quantisation,
    }
    return [{**model, "block_samples": n, "x_real_time": speed} for n, speed in speeds.items()]


SPEEDS = {64: 30.0, 1024: 200.0, 64_000: 500.0}
FAST = {64: 90.0, 1024: 900.0, 64_000: 9000.0}


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """A function: draws rows to a file and returns the panels that were drawn, by artefact."""

    def draw(records):
        figures = []

        class Kept(bench_figure.Figure):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                figures.append(self)

        monkeypatch.setattr(bench_figure, "Figure", Kept)
        draw_bench(records, tmp_path / "bench.png", title="A machine")
        return {axes.get_title(loc="left"): axes for axes in figures[0].axes}

    return draw


def lines(axes):
    """Label -> points of the lines that are models, not limits."""
    models = [line for line in axes.lines if line.get_marker() != "None"]
    return {m.get_label(): dict(zip(*m.get_data(), strict=True)) for m in models}


def test_a_png_of_a_readable_size_is_written(draw, tmp_path):
    draw(rows("decoder", SPEEDS))
    content = (tmp_path / "bench.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert min(width, height) >= 600


def test_each_artefact_has_a_panel_and_each_model_a_line_from_small_to_large_blocks(draw):
    panels = draw(
        [
            *reversed(rows("decoder", SPEEDS)),
            *rows("decoder", FAST, quantisation="minmax-qdq"),
            *rows("synth_stream", FAST, runtime="c"),
        ]
    )
    assert panels.keys() == {"decoder", "synth_stream"}
    found = lines(panels["decoder"])
    assert found == {"onnx_runtime": SPEEDS, "onnx_runtime, minmax-qdq": FAST}
    assert [*found["onnx_runtime"]] == sorted(SPEEDS)
    assert lines(panels["synth_stream"]) == {"c": FAST}


def test_a_model_has_one_colour_in_all_panels(draw):
    panels = draw([*rows("decoder", FAST, runtime="tvm"), *rows("decoder", SPEEDS),
                   *rows("synth_stream", SPEEDS)])  # fmt: skip
    colours = [
        line.get_color()
        for axes in panels.values()
        for line in axes.lines
        if line.get_label() == "onnx_runtime"
    ]
    assert len(colours) == 2
    assert len({*colours}) == 1


def test_quantisations_of_a_runtime_have_its_colour_and_markers_of_their_own(draw):
    forms = ("float", "dynamic", "minmax")
    axes = draw([row for form in forms for row in rows("decoder", SPEEDS, quantisation=form)])
    models = [line for line in axes["decoder"].lines if line.get_marker() != "None"]
    assert len({line.get_color() for line in models}) == 1
    assert len({line.get_marker() for line in models}) == 3


def test_several_bundles_are_told_apart_by_name_and_by_stroke(draw):
    axes = draw([*rows("decoder", SPEEDS), *rows("decoder", FAST, bundle="bundles/full")])[
        "decoder"
    ]
    assert lines(axes).keys() == {"tiny: onnx_runtime", "full: onnx_runtime"}
    strokes = [line.get_linestyle() for line in axes.lines if line.get_marker() != "None"]
    assert len({*strokes}) == 2


def test_axes_are_logarithmic_and_name_the_deadline(draw):
    axes = draw(rows("decoder", SPEEDS))["decoder"]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_xlabel() == "samples a block"
    assert axes.get_ylabel() == "x real time, higher is better"
    assert {text.get_text() for text in axes.texts} == {"deadline, 1x", "100x"}
    limits = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "None"]
    assert sorted(limits) == [1.0, 100.0]
