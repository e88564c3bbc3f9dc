"""Pictures of campaigns: what was measured is what is drawn."""

import builtins
import sys

import pytest

pytest.importorskip("torch", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, MissingExtraError
from sparing.faults.campaign_result import CampaignConfig, CampaignResult, PointResult
from sparing.faults.pictures import draw_sweeps, draw_vulnerability, save_sweeps_figure, save_vulnerability_figure


def result(kind="rates", points=((0.02, 38), (0.1, 20)), labels=None):
    counts = [[(right, 40 - right, 9), (right - 2, 40 - right, 9), (right + 1, 41 - right, 9)] for _, right in points]
    measured = [
        PointResult.from_counts(label or f"{rate:g}", rate, draws, num_images=40, confidence=0.95)
        for (rate, _), draws, label in zip(points, counts, labels or [None] * len(points), strict=True)
    ]
    none = [PointResult.without_faults("0", 0.975)] if kind == "rates" else []
    return CampaignResult(
        kind=kind,
        fault={"kind": "stuck-at", "form": "bit"},
        config=CampaignConfig(),
        identity={},
        num_images=40,
        clean_accuracy=0.975,
        points=tuple(none + measured),
    )


class TestDrawing:
    @pytest.fixture(autouse=True)
    def _matplotlib(self):
        pytest.importorskip("matplotlib", reason="needs sparing[plot]")

    def test_sweeps(self):
        found = result()
        accuracy, changed = draw_sweeps({"one": found, "two": result(points=((0.1, 30),))}).axes
        mean, quantile, other, _ = accuracy.lines
        assert mean.get_xdata().tolist() == [0, 0.02, 0.1]
        assert mean.get_ydata().tolist() == [100 * point.mean for point in found.points]
        assert quantile.get_ydata().tolist() == [100 * point.quantile_05 for point in found.points]
        assert other.get_xdata().tolist() == [0, 0.1]
        assert [text.get_text() for text in accuracy.get_legend().get_texts()] == [
            "one",
            "5 % of draws are below",
            "two",
        ]
        assert changed.lines[0].get_ydata().tolist() == [100 * point.sdc for point in found.points]
        band = accuracy.collections[0].get_paths()[0].vertices[:, 1]
        assert band.max() == pytest.approx(100 * max(point.high for point in found.points))
        assert band.min() == pytest.approx(100 * found.points[2].low)
        assert accuracy.get_xscale() == "linear"
        assert draw_sweeps({"a": result(points=((1e-5, 38), (1e-2, 9)))}).axes[0].get_xscale() == "symlog"

    def test_bars(self):
        found = result("sites", labels=["stem", "head"])
        lost, changed = draw_vulnerability(found).axes
        assert [text.get_text() for text in lost.get_yticklabels()] == ["stem", "head"]
        assert [bar.get_width() for bar in lost.patches] == [100 * (0.975 - point.mean) for point in found.points]
        assert [bar.get_width() for bar in changed.patches] == [100 * point.sdc for point in found.points]
        assert lost.yaxis_inverted()

    def test_files(self, tmp_path):
        save_sweeps_figure(tmp_path / "a.png", {"a": result()})
        save_vulnerability_figure(tmp_path / "b.png", result("bits"))
        for name in "ab":
            assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        with pytest.raises(ArgumentError, match=r"path: expected the ending .png, got 'a.svg'"):
            save_sweeps_figure(tmp_path / "a.svg", {"a": result()})

    def test_the_other_kind(self):
        with pytest.raises(ArgumentError, match="expected one or more of sweeps"):
            draw_sweeps({"a": result("sites")})
        with pytest.raises(ArgumentError, match="expected one or more of sweeps"):
            draw_sweeps({})
        with pytest.raises(ArgumentError, match="use draw_sweeps"):
            draw_vulnerability(result())


def test_no_matplotlib(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"sparing\[plot\]"):
        save_sweeps_figure(tmp_path / "a.png", {"a": result()})
