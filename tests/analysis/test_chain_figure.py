"""The figure of the whole chain: every target and stage is in it."""

import pytest
from matplotlib.axes import Axes

from analysis.chain_figure import draw_chain

STAGES = {"decoder": 2e-6, "harmonics": 6e-6, "noise": 7e-6, "reverb": 9e-6}


def test_every_target_has_its_line_and_its_bar(tmp_path, monkeypatch):
    lines, bars = [], []
    plot, barh = Axes.plot, Axes.barh
    monkeypatch.setattr(Axes, "plot", lambda self, *a, **k: lines.append(a) or plot(self, *a, **k))
    monkeypatch.setattr(Axes, "barh", lambda self, *a, **k: bars.append(a) or barh(self, *a, **k))
    speeds = {"C": {64: 2000.0, 1024: 2500.0}, "ONNX Runtime": {64: 20.0, 1024: 200.0}}
    path = tmp_path / "new" / "chain.png"
    draw_chain(speeds, {"C": STAGES, "ONNX Runtime": STAGES}, path, block=1024)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [[*ys] for _, ys, *_ in lines] == [[2000.0, 2500.0], [20.0, 200.0]]
    shares = [share for _, share, *_ in bars]
    assert len(shares) == 8
    assert sum(shares[:4]) == pytest.approx(1)
    assert shares[0] == pytest.approx(2 / 24)
