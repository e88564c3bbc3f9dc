"""The roofline table: its rows agree with the counter and with each other; the probe and the peak of memory."""

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, ConfigError  # noqa: E402
from sparing.var import deployment, memory  # noqa: E402
from sparing.var.config import RELEASED, linear_names  # noqa: E402
from sparing.var.cost import model_cost  # noqa: E402
from sparing.var.deployment import DeviceDescription, analyze_deployment, probe_device  # noqa: E402
from sparing.var.plan import CompressionPlan, SharingPlan  # noqa: E402

NAMES = [
    "none",
    "adaptive norms once an image",
    "output shared across guidance",
    "int8 linear layers",
    "int8 keys and values",
    "windows",
    "all",
]
ONCE, SHARED, LINEARS, CACHE = NAMES[1:5]


def device(**changes):
    fields = {
        "name": "a device",
        "flops": {"float32": 1e12, "bfloat16": 4e12, "int8": 8e12},
        "bandwidth": 1e11,
        "memory_bytes": 10**10,
        "overhead_s": 1e-6,
    }
    return DeviceDescription(**{**fields, **changes})


def plan_for(config, **parts):
    return CompressionPlan(model=config, weights="", **parts)


def narrow(config):
    """Windows of width 1 wherever there can be some."""

    def of(scale):
        return None if scale < 3 else ((1,) * config.num_heads,) * (scale - 1 if scale < 5 else scale - 2)

    layer = tuple(of(scale) for scale in range(len(config.patch_nums)))
    return plan_for(config, windows=(layer,) * config.depth)


def shared_plan(config):
    return plan_for(config, sharing=SharingPlan(variant="output", first_scale=(0,) * config.depth))


def analyzed(config, **arguments):
    given = {"plan": narrow(config), "device": device(), **arguments}
    rows = analyze_deployment(config, given.pop("device"), **given)
    return {row.technique: row for row in rows}


@pytest.fixture(params=["tiny", "tiny shared", "d16"])
def config(request, tiny):
    if request.param.startswith("tiny"):
        return tiny.transformer_config(shared_adaln=request.param.endswith("shared"))
    return RELEASED[request.param]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_multiply_adds_are_those_of_the_counter(config, batch_size):
    rows = analyzed(config, batch_size=batch_size)
    assert list(rows) == NAMES
    base = model_cost(config)
    # Without the first exact saving, the norms' linear layers run at every scale (one shared by all blocks never did).
    at_each = base.linear_macs["ada_lin"] - (2 * 6 * config.embed_dim**2 if config.shared_adaln else 0)
    again = (len(config.patch_nums) - 1) * at_each
    everywhere = model_cost(config, shared_plan(config))
    windows = model_cost(config, narrow(config))
    both = model_cost(config, narrow(config).model_copy(update={"sharing": shared_plan(config).sharing}))
    expected = {
        "none": base.macs + again,
        ONCE: base.macs,
        SHARED: everywhere.macs + again,
        LINEARS: base.macs + again,
        CACHE: base.macs + again,
        "windows": windows.macs + again,
        "all": both.macs,
    }
    assert {name: row.macs for name, row in rows.items()} == {n: batch_size * macs for n, macs in expected.items()}


def test_bytes_of_the_cache_are_those_of_the_counter(config):
    rows = analyzed(config, batch_size=2)
    integers = plan_for(config, precision={"kv_bits": 8})
    assert rows["none"].cache_bytes == 2 * model_cost(config).cache_bytes
    assert rows[SHARED].cache_bytes == model_cost(config).cache_bytes
    assert rows[CACHE].cache_bytes == 2 * model_cost(config, integers).cache_bytes
    assert rows["all"].cache_bytes == model_cost(config, integers).cache_bytes


def test_the_decoders_numbers_change_nothing(config):
    plan = narrow(config)
    precision = {"decoder_bits": 8}
    assert analyzed(config, plan=plan) == analyzed(
        config, plan=plan_for(config, windows=plan.windows, precision=precision)
    )


def test_weights_of_linear_layers(tiny):
    for changes in ({}, {"shared_adaln": True}):
        model = tiny.transformer(**changes)
        linears = {
            name: p.numel()
            for name, p in model.named_parameters()
            if name.endswith("weight") and "emb." not in name and "embed." not in name.replace("word_embed", "")
        }
        kept = {n for n in linears if n.startswith(("head_nm", "shared"))}
        rows = analyzed(model.config)
        assert rows["none"].weight_bytes == 2 * sum(linears.values())
        assert rows[LINEARS].weight_bytes == sum(size * (2 if n in kept else 1) for n, size in linears.items())
        assert len(linears) - len(kept) == len(linear_names(model.config))


def test_all_together_is_no_worse_than_each(config):
    rows = analyzed(config, batch_size=2)
    for row in rows.values():
        assert rows["all"].time_s <= row.time_s
        assert rows["all"].macs <= row.macs
        assert rows["all"].traffic_bytes <= row.traffic_bytes
        assert rows["all"].weight_bytes <= row.weight_bytes
        assert rows["all"].cache_bytes <= row.cache_bytes
        assert row.time_s <= rows["none"].time_s
        assert row.saved_s == rows["none"].time_s - row.time_s
    assert not rows["none"].pays
    assert rows["none"].saved_s == 0


def test_time_where_only_one_thing_limits(tiny):
    config = tiny.transformer_config()
    slow = device(flops=dict.fromkeys(("float32", "bfloat16", "int8"), 1e6), bandwidth=1e30, overhead_s=0)
    row = analyzed(config, device=slow)["none"]
    assert row.time_s == pytest.approx(2 * row.macs / 1e6, rel=1e-9)
    narrow_bus = device(flops=dict.fromkeys(("float32", "bfloat16", "int8"), 1e30), bandwidth=1e3, overhead_s=0)
    row = analyzed(config, device=narrow_bus)["none"]
    assert row.time_s == pytest.approx(row.traffic_bytes / 1e3, rel=1e-9)
    idle = device(flops=dict.fromkeys(("float32", "bfloat16", "int8"), 1e30), bandwidth=1e30, overhead_s=1)
    # 2 layers of qkv, attention, proj, fc1, fc2, ada at 6 scales; head, its norm at 6; word_embed at 5.
    row = analyzed(config, device=idle)["none"]
    assert round(row.time_s) == 2 * 6 * 6 + 6 + 6 + 5
    once = analyzed(config, device=idle)[ONCE]
    assert round(once.time_s) == round(row.time_s) - 2 * 5 - 5


def test_what_fits(tiny):
    config = tiny.transformer_config()
    row = analyzed(config)["none"]
    size = row.weight_bytes + row.cache_bytes
    assert analyzed(config, device=device(memory_bytes=size))["none"].fits
    less = analyzed(config, device=device(memory_bytes=size - 1))
    assert not less["none"].fits
    assert less["all"].fits
    assert less[CACHE].fits
    assert not less["windows"].fits


def test_what_pays():
    config = RELEASED["d16"]
    rows = analyzed(config, batch_size=8)
    assert rows[SHARED].pays
    assert rows[LINEARS].pays
    assert rows["all"].pays
    # Narrow windows cannot pay where attention is bound by reading keys and values, which they do not spare.
    slow_memory = analyzed(config, device=device(bandwidth=1e8))
    assert not slow_memory["windows"].pays
    # Integers that are no faster still pay in memory.
    no_faster = device(flops={"float32": 1e12, "bfloat16": 4e12, "int8": 4e12}, bandwidth=1e30)
    row = analyzed(config, device=no_faster)[LINEARS]
    assert row.saved_s == pytest.approx(0, abs=1e-9)
    assert row.pays


def test_precision_of_the_start(tiny):
    config = tiny.transformer_config()
    half, full = analyzed(config), analyzed(config, precision="float32")
    assert full["none"].weight_bytes == 2 * half["none"].weight_bytes
    assert full["none"].cache_bytes == 2 * half["none"].cache_bytes
    assert full["none"].macs == half["none"].macs
    assert full["none"].time_s > half["none"].time_s
    assert full["all"].cache_bytes == half["all"].cache_bytes


def test_without_windows_there_is_no_row_for_them(tiny):
    config = tiny.transformer_config()
    for plan in (None, shared_plan(config)):
        assert list(analyzed(config, plan=plan)) == [name for name in NAMES if name != "windows"]


def test_misuse(tiny):
    config = tiny.transformer_config()
    with pytest.raises(ArgumentError, match="batch_size: expected at least 1, got 0"):
        analyzed(config, batch_size=0)
    with pytest.raises(ArgumentError, match="flops of 'a device' has no number for bfloat16, int8"):
        analyzed(config, device=device(flops={"float32": 1.0}))
    with pytest.raises(ConfigError, match="plan: made for a model with other settings"):
        analyzed(config, plan=narrow(tiny.transformer_config(depth=3)))


# --- the probe


def test_the_probe(monkeypatch):
    monkeypatch.setattr(deployment, "_PROBE_SIZE", 32)
    monkeypatch.setattr(deployment, "_PROBE_BYTES", 1 << 12)
    found = probe_device("cpu")
    assert set(found.flops) == {"float32", "bfloat16", "int8"}
    assert min(found.flops.values()) > 0
    assert found.bandwidth > 0
    assert found.overhead_s > 0
    assert found.memory_bytes > 2**20
    assert found.measured
    assert found.name.startswith("CPU")
    assert probe_device(name="mine").name == "mine"
    assert not device().measured
    rows = analyze_deployment(RELEASED["d16"], found)
    assert all(row.time_s > 0 for row in rows)


# --- the peak of memory


def test_the_peak_counts_what_was_freed_again():
    with memory.PeakMemory(torch.device("cpu")) as before:
        pass
    if before.peak_bytes is None:
        pytest.skip("this system does not say")
    with memory.PeakMemory(torch.device("cpu")) as during:
        torch.ones(1 << 24).sum()
    with memory.PeakMemory(torch.device("cpu")) as after:
        pass
    assert during.peak_bytes - before.peak_bytes > 0.9 * (1 << 26)
    assert after.peak_bytes < during.peak_bytes


def test_a_peak_that_cannot_be_set_back_is_not_known(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "missing" / "clear_refs")
    with memory.PeakMemory(torch.device("cpu")) as peak:
        pass
    assert peak.peak_bytes is None
