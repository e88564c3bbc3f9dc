"""Figures are drawn from real reports and written as a whole, the same bytes each time."""

import builtins
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, MissingExtraError  # noqa: E402
from sparing.var.deployment import DeviceDescription, analyze_deployment  # noqa: E402
from sparing.var.pictures import draw_bars, draw_deployment, draw_front, draw_redundancy, save_figure  # noqa: E402
from sparing.var.redundancy import measure_redundancy  # noqa: E402

DEVICE = DeviceDescription(
    name="a device", flops={"float32": 1e12, "bfloat16": 4e12, "int8": 8e12}, bandwidth=1e11, memory_bytes=10**10
)
SERIES = {"ours": [(0.5, 2.0), (0.2, 1.0)], "published": [(0.85, 3.0)]}
LABELS = {"x": "removed, %", "y": "divergence, nats", "title": "A front"}


@pytest.fixture(scope="module")
def report(tiny):
    return measure_redundancy(tiny.pipeline(), num_images=2)


@pytest.fixture
def rows(tiny):
    return analyze_deployment(tiny.transformer_config(), DEVICE)


class TestDrawing:
    @pytest.fixture(autouse=True)
    def _matplotlib(self):
        pytest.importorskip("matplotlib", reason="needs sparing[plot]")

    def test_redundancy(self, report, tmp_path):
        figure = draw_redundancy(report)
        panels = [axes for axes in figure.axes if axes.get_title()]
        assert len(panels) == 8
        assert [image.get_array().shape for axes in panels[:4] for image in axes.get_images()] == [
            (2, 6),
            (6, 6),
            (2, 6),
            (2, 6),
        ]
        assert [axes.get_title().split(":")[0] for axes in panels[4:]] == [
            f"input of {kind}" for kind in ("qkv", "proj", "fc1", "fc2")
        ]
        assert "2 images" in figure.get_suptitle()
        save_figure(tmp_path / "a.png", figure)
        assert (tmp_path / "a.png").stat().st_size > 20_000

    def test_deployment(self, rows):
        figure = draw_deployment(rows, device="a device", measured_s={"none": 2.0, "of another table": 1.0})
        times, memory = figure.axes
        assert [text.get_text() for text in times.get_yticklabels()] == [row.technique for row in rows]
        assert [bar.get_width() for bar in times.patches] == [1e3 * row.time_s for row in rows] + [2000.0]
        assert [text.get_text() for text in times.get_legend().get_texts()] == ["modelled (roofline)", "measured"]
        assert len(memory.patches) == 2 * len(rows)
        bare = draw_deployment(rows, device="a device").axes[0]
        assert [text.get_text() for text in bare.get_legend().get_texts()] == ["modelled (roofline)"]

    def test_front(self):
        (axes,) = draw_front(SERIES, **LABELS, log_y=True).axes
        assert [line.get_xydata().tolist() for line in axes.lines] == [[[0.2, 1], [0.5, 2]], [[0.85, 3]]]
        assert len({line.get_marker() for line in axes.lines}) == 2
        assert axes.get_yscale() == "log"
        assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("removed, %", "divergence, nats", "A front")

    def test_fronts_with_nothing_or_zeros_or_much_in_them(self, tmp_path):
        save_figure(tmp_path / "a.png", draw_front({}, **LABELS))
        save_figure(tmp_path / "a.png", draw_front({"zero": [(0, 0), (1, 1)]}, **LABELS, log_y=True))
        many = {str(i): [(i, i)] for i in range(20)}
        assert len(draw_front(many, **LABELS).axes[0].lines) == 20

    def test_bars_from_the_top(self):
        (axes,) = draw_bars({"fc1": 0.1, "fc2": 0.4}, x="divergence, nats", title="4 bits").axes
        assert [patch.get_width() for patch in axes.patches] == [0.1, 0.4]
        assert [text.get_text() for text in axes.get_yticklabels()] == ["fc1", "fc2"]
        assert axes.yaxis_inverted()

    @pytest.mark.parametrize("suffix", [".png", ".svg", ".SVG", ""])
    def test_the_same_bytes_each_time(self, rows, tmp_path, suffix):
        makers = [
            lambda: draw_front(SERIES, **LABELS),
            lambda: draw_deployment(rows, device="a device"),
        ]
        for make in makers if suffix == ".svg" else makers[:1]:
            first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
            save_figure(first, make())
            save_figure(second, make())
            assert first.read_bytes() == second.read_bytes()
            is_svg = suffix.lower() == ".svg"
            assert first.read_bytes().startswith(b"<?xml" if is_svg else b"\x89PNG\r\n\x1a\n")
            assert (b"<dc:date>" in first.read_bytes()) is False

    def test_other_endings(self, tmp_path):
        figure = draw_front(SERIES, **LABELS)
        for name in ("a.jpg", "a.txt", "a.pdf"):
            with pytest.raises(ArgumentError, match=f"path: expected the ending .png or .svg, got '{name}'"):
                save_figure(tmp_path / name, figure)
        assert not list(tmp_path.iterdir())

    def test_a_failed_write_leaves_the_old_picture(self, tmp_path, monkeypatch):
        path, figure = tmp_path / "a.png", draw_front(SERIES, **LABELS)
        save_figure(path, figure)
        before = path.read_bytes()

        def fail(*_, **__):
            raise OSError("disk full")

        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            save_figure(path, draw_front({"other": [(1, 1)]}, **LABELS))
        monkeypatch.undo()
        monkeypatch.setattr(type(figure), "savefig", fail)
        with pytest.raises(OSError, match="disk full"):
            save_figure(path, figure)
        assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
        assert path.read_bytes() == before

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            save_figure(tmp_path / "none" / "a.png", draw_front(SERIES, **LABELS))


def test_without_matplotlib(monkeypatch, report, rows):
    original = builtins.__import__

    def missing(name, *args, **options):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return original(name, *args, **options)

    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    for draw in (
        lambda: draw_redundancy(report),
        lambda: draw_deployment(rows, device="a device"),
        lambda: draw_front(SERIES, **LABELS),
    ):
        with pytest.raises(MissingExtraError, match=r"the picture needs the package 'matplotlib'.*sparing\[plot\]"):
            draw()
