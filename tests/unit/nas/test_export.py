"""Exported networks: what another process opens without sparing computes the same."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[nas]")
pytest.importorskip("safetensors", reason="needs sparing[nas]")

from sparing.errors import ArgumentError, MissingExtraError  # noqa: E402
from sparing.faults import fixed_point_  # noqa: E402
from sparing.nas import CellNetwork, Genotype, SearchSpace, load_genotype  # noqa: E402
from sparing.nas.export import clean_copy, export_module, export_onnx  # noqa: E402

RUN = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("exported", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
torch.set_num_threads(1)
with torch.no_grad():
    torch.save(module.load()(torch.load(sys.argv[2])), sys.argv[3])
assert not any(name.split(".")[0] == "sparing" for name in sys.modules)
"""

EVERY = Genotype.build(
    "weight",
    [[(0, "none"), (1, "max3")], [(0, "avg3"), (2, "skip")], [(0, "sep3"), (1, "sep5")], [(0, "dil3"), (1, "dil5")]],
    [[(0, "none"), (1, "avg3")], [(0, "skip"), (2, "rcb5")], [(1, "conv1"), (0, "rcb3")], [(0, "sep5"), (1, "dil5")]],
)


def moved(genotype, **settings):
    """A network whose batch norms have statistics of their own."""
    model = CellNetwork(genotype, channels=4, num_cells=3, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model(torch.randn(8, 3, 16, 16, generator=generator))
    return model.eval()


def opened(path, x, tmp_path):
    torch.save(x, tmp_path / "x.pt")
    command = [sys.executable, "-I", "-c", RUN, str(path), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    subprocess.run(command, check=True, timeout=120)
    return torch.load(tmp_path / "y.pt")


@pytest.mark.parametrize("size", [16, 13])
def test_a_process_without_sparing_gets_the_same_logits(size, tmp_path):
    model = moved(EVERY, num_classes=7, dropout=0.2)
    x = torch.randn(3, 3, size, size)
    weights = export_module(tmp_path / "net.py", model)
    assert weights == tmp_path / "net.safetensors"
    with torch.no_grad():
        torch.testing.assert_close(opened(tmp_path / "net.py", x, tmp_path), model(x))


def test_fixed_point_weights_are_written_as_they_round(tmp_path):
    model = moved(load_genotype("w-ftt-net"))
    before = clean_copy(model).state_dict()
    fixed_point_(model, torch.randn(4, 3, 16, 16))
    weights = {name: m.weight.clone() for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)}
    found = clean_copy(model)
    assert not [name for name in found.state_dict() if "fixed_point" in name or "parametrizations" in name]
    assert not [m for m in found.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert all(torch.equal(found.state_dict()[f"{name}.weight"], weight) for name, weight in weights.items())
    assert any(not torch.equal(before[f"{name}.weight"], weight) for name, weight in weights.items())
    export_module(tmp_path / "net.py", model)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(opened(tmp_path / "net.py", x, tmp_path), found(x))


def test_onnx_gives_the_same_logits_for_any_batch(tmp_path):
    pytest.importorskip("onnxscript", reason="needs sparing[onnx]")
    runtime = pytest.importorskip("onnxruntime", reason="runs what was exported")
    model = moved(EVERY)
    export_onnx(tmp_path / "net.onnx", model, image_size=16)
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 5):
        x = torch.randn(count, 3, 16, 16)
        found = session.run(["logits"], {"images": x.numpy()})[0]
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch):
    model = moved(SearchSpace("feature").random(0))
    with pytest.raises(ArgumentError, match=r"ending \.py"):
        export_module(tmp_path / "net.txt", model)
    with pytest.raises(ArgumentError, match="expected a CellNetwork, got Linear"):
        export_module(tmp_path / "net.py", torch.nn.Linear(3, 3))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"sparing\[onnx\]"):
        export_onnx(tmp_path / "net.onnx", model)
    assert list(tmp_path.iterdir()) == []
