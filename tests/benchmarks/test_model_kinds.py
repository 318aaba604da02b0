import pytest

from benchmarks import _harness as harness
from benchmarks import model_kinds
from benchmarks.model_kinds import KINDS, SYNTH, Model, Row, behind_the_fastest, forms, stacked
from thesis.runtimes.contract import Quantisation

OUTPUTS = SYNTH.n_outputs


def row(kind, size, name, ratio, form="float"):
    return Row(kind, size, 10**6, name, form, 1e-3 * ratio, harness.Interval(ratio, ratio, ratio))


def macs(kind):
    return [model.macs for model in KINDS[kind]()]


def test_dense_layers_are_four_times_as_wide_between_two():
    expected = [2 * w + 2 * 4 * w * w + OUTPUTS * w for w in (256, 512, 1024)]
    assert macs("dense") == expected


def test_a_cnn_has_nine_taps_and_as_many_frames_as_its_image_has_positions():
    per_position = 2 * 64 + 9 * 64 * 64 + OUTPUTS * 64
    assert macs("cnn") == [width**2 * per_position for width in (8, 16, 32)]


def test_an_inverted_bottleneck_grows_as_the_thesis_has_it():
    first, *_, last = KINDS["inverted_bottleneck"]()
    assert (first.size, first.n_frames) == ("160 ch, 14 x 14", 14 * 14)
    c = 160
    assert first.macs == 14 * 14 * (2 * c + 2 * c * 6 * c + 9 * 6 * c + OUTPUTS * c)
    assert last.size == "284 ch, 33 x 33"  # 160 * 1.1 ** 6, a multiple of 4; 14 * 1.15 ** 6


@pytest.mark.parametrize(("kind", "channels"), [("dilated_cnn", 64), ("dilated_cnn_ib", 32)])
def test_dilated_stacks_are_those_of_the_decoders(kind, channels):
    configs = [model.config for model in KINDS[kind]()]
    assert [config.channels for config in configs] == [channels * i for i in (1, 2, 4)]
    assert {(c.layers_per_stack, c.stacks, c.kernel_size, c.dilation_base) for c in configs} == {
        (3, 1, 3, 2)
    }
    assert {config.block for config in configs} == {
        "plain" if kind == "dilated_cnn" else "inverted_bottleneck"
    }


def test_forms_are_floats_and_one_of_each_way_to_find_ranges(monkeypatch):
    found = model_kinds.runtime("onnx_runtime")
    several = tuple(
        Quantisation(ranges, form)
        for ranges in ("entropy", "minmax", "dynamic")
        for form in ("operators", "qdq")
    )
    monkeypatch.setattr(type(found), "quantisations", several)
    assert forms("onnx_runtime") == [None, Quantisation("dynamic"), Quantisation("minmax")]
    monkeypatch.setattr(type(found), "quantisations", ())
    assert forms("onnx_runtime") == [None]
    monkeypatch.setattr(type(found), "version", None)
    assert forms("onnx_runtime") == []


def test_a_model_is_measured_in_what_is_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(model_kinds, "NAMES", ("onnx_runtime",))
    model = Model("small", 5, stacked({"ch_out": 4, "kernel_size": 3, "activation": "relu6"}))
    rows = model_kinds.rows_of("cnn", model, tmp_path, 0.001)
    assert (rows[0].runtime, rows[0].form) == ("onnx_runtime", "float")
    assert rows[0].ratio.value == pytest.approx(1.0, rel=0.5)
    assert {r.form for r in rows} == {"float", "dynamic", "minmax"}
    assert all(r.seconds > 0 and r.macs == 5 * (3 * 2 * 4 + 4 * OUTPUTS) for r in rows)


def test_the_value_is_how_far_onnx_runtime_is_behind_the_fastest_on_floats():
    rows = [
        row("dense", "a", "onnx_runtime", 1.0),
        row("dense", "a", "litert", 0.25),
        row("dense", "a", "openvino", 0.5),
        row("cnn", "b", "onnx_runtime", 1.0),
        row("cnn", "b", "litert", 4.0),
        row("cnn", "b", "onnx_runtime", 0.1, "minmax"),
    ]
    assert behind_the_fastest(rows) == pytest.approx(2.0)  # the geometric mean of 4 and 1


def test_the_figure_is_a_png(tmp_path):
    rows = [row("dense", "a", "onnx_runtime", 1.0), row("cnn", "b", "tvm", 2.0)]
    model_kinds.draw(rows, tmp_path / "kinds.png")
    assert (tmp_path / "kinds.png").read_bytes().startswith(b"\x89PNG")
