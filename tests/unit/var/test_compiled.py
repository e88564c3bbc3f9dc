"""Fewer launches, the same images: recorded steps on memory that stays, and fused passes."""

import functools

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, ConfigError  # noqa: E402
from sparing.var import attention as attention_module  # noqa: E402
from sparing.var import compiled as compiled_module  # noqa: E402
from sparing.var.apply import apply_, remove_  # noqa: E402
from sparing.var.compiled import StepGraphs  # noqa: E402
from sparing.var.engine import Engine  # noqa: E402
from sparing.var.formats import int8_precision  # noqa: E402
from sparing.var.layer import Passes  # noqa: E402
from sparing.var.pipeline import weights_fingerprint  # noqa: E402
from sparing.var.plan import CompressionPlan, PrecisionPlan, SharingPlan  # noqa: E402
from sparing.var.sampling import SamplingSettings  # noqa: E402

# Of logits about 1 wide: sums in another order; in bfloat16 some values also tip to their neighbours.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.1}
GREEDY = SamplingSettings(1.5, 1, 1.0)
PLANS = [
    {},
    {"windows": True},
    {"sharing": SharingPlan(variant="output", first_scale=(1, 3))},
    {"sharing": SharingPlan(variant="map", first_scale=(3, None)), "windows": True},
    {"precision": PrecisionPlan(kv_bits=8, attention_bits=6)},
    {"precision": "int8"},
]


def plan_for(tiny, model, parts):
    parts = dict(parts)
    if parts.get("windows"):
        parts["windows"] = tiny.windows(model.config)
    if parts.get("precision") == "int8":
        parts["precision"] = int8_precision(model.config)
    return CompressionPlan(model=model.config, weights=weights_fingerprint(model), **parts)


class Recorder:
    """As a graph does: runs the same again on the same memory, and answers in the same memory."""

    def __init__(self):
        self.recorded, self.replayed = 0, 0

    def __call__(self, run, device):
        assert device.type == "cpu"
        self.recorded += 1
        out = run()

        def replay():
            self.replayed += 1
            return out.copy_(run())

        out.fill_(torch.nan)  # recording alone computes nothing
        return replay


def with_graphs(engine, record=None):
    record = record or Recorder()
    engine._graphs = StepGraphs(engine, layers=engine._through_layers, can_record=engine._can_record, record=record)
    return record


def taught(engine, inputs, labels, *, guided=True):
    return torch.cat(list(engine.teach(labels, inputs, guided=guided)), 1)


# --- recorded steps


@pytest.mark.parametrize("parts", PLANS, ids=str)
def test_recorded_steps_give_the_bits_of_plain_ones(tiny, parts):
    model = tiny.transformer()
    plan = plan_for(tiny, model, parts)
    plain, engine = Engine(model, plan=plan), Engine(model, plan=plan)
    taught(engine, tiny.inputs(model.config), torch.tensor([3, 0]))  # integer weights are packed at first use
    record = with_graphs(engine)
    for turn, (batch, guided) in enumerate([(2, True), (2, True), (3, False), (2, True), (3, False)]):
        inputs, labels = tiny.inputs(model.config, batch=batch, seed=turn), (torch.arange(batch) + turn) % 6
        found = taught(engine, inputs, labels, guided=guided)
        assert torch.equal(found, taught(plain, inputs, labels, guided=guided)), turn
    assert record.recorded == 2 * 6
    assert record.replayed == 5 * 6


def test_recorded_drawing(tiny):
    model, quantizer = tiny.transformer(seed=5), tiny.tokenizer().quantize
    plain, engine = Engine(model), Engine(model)
    with_graphs(engine)
    for labels in ([3, 0], [1, 2], [3, 0]):
        ours, theirs = (e.generate(torch.tensor(labels), quantizer, GREEDY)[0] for e in (engine, plain))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_what_a_step_answers_stays(tiny):
    model = tiny.transformer()
    engine = Engine(model)
    with_graphs(engine)
    first = engine.step(engine.begin(torch.tensor([3])))
    before = first.clone()
    engine.step(engine.begin(torch.tensor([4])))
    assert torch.equal(first, before)


def test_a_batch_that_lost_its_memory_is_refused(tiny):
    model, labels = tiny.transformer(), torch.tensor([3, 0])
    engine = Engine(model)
    early = engine.begin(labels)
    with_graphs(engine)
    first = engine.begin(labels)
    engine.step(first)
    other_size = engine.begin(labels[:1])
    second = engine.begin(labels)
    with pytest.raises(ArgumentError, match="another batch of this size was begun"):
        engine.step(first, torch.zeros(4, 4, 32))
    engine.uncompile_()
    with pytest.raises(ArgumentError, match="another batch of this size was begun"):
        engine.step(first, torch.zeros(4, 4, 32))
    expected = engine.step(engine.begin(labels))
    for state in (second, early):
        assert torch.equal(engine.step(state), expected)
    assert torch.equal(engine.step(other_size), engine.step(engine.begin(labels[:1])))


def test_weights_that_moved_are_recorded_anew(tiny):
    model, labels = tiny.transformer(), torch.tensor([3, 0])
    inputs, engine = tiny.inputs(model.config), Engine(model)
    record = with_graphs(engine)
    first = taught(engine, inputs, labels)
    state = engine.begin(labels)
    weight = engine.layers[1].fc2.weight
    weight.data = 2 * weight.data
    found = taught(engine, inputs, labels)
    assert record.recorded == 12
    assert (found - first).abs().max() > 0.01
    engine.uncompile_()
    assert torch.equal(found, taught(engine, inputs, labels))
    assert state.held is not None


def test_only_the_last_sizes_are_kept(tiny):
    model = tiny.transformer()
    engine = Engine(model)
    with_graphs(engine)
    for batch in (1, 2, 3, 2, 4):
        engine.step(engine.begin(torch.zeros(batch, dtype=torch.int64)))
    assert list(engine._graphs._batches) == [(2, True), (4, True)]


def test_an_observer_sees_recorded_layers_too(tiny):
    model, labels = tiny.transformer(), torch.tensor([3, 0])
    inputs, engine, seen = tiny.inputs(model.config), Engine(model), []
    with_graphs(engine)
    expected = taught(engine, inputs, labels)
    engine.watch(lambda layer, scale, tensors: seen.append((layer, scale, *tensors)))
    torch.testing.assert_close(taught(engine, inputs, labels), expected, rtol=0, atol=1e-5)
    assert len(seen) == 2 * 2 * 6


def test_tiled_windows_are_not_recorded(tiny, monkeypatch):
    monkeypatch.setattr(attention_module, "_TILED_QUERIES", 36)
    monkeypatch.setattr(attention_module, "_TILED_SHARE", 1.0)
    model, labels = tiny.transformer(), torch.tensor([3, 0])
    inputs, plan = tiny.inputs(model.config), plan_for(tiny, model, {"windows": True})
    engine = Engine(model, plan=plan)
    record = with_graphs(engine)
    for _ in range(2):
        assert torch.equal(taught(engine, inputs, labels), taught(Engine(model, plan=plan), inputs, labels))
    assert record.recorded == 4


def test_a_scale_that_cannot_be_recorded(tiny):
    def refuse(run, device):
        raise RuntimeError("operation not permitted when stream is capturing\nat line 3")

    engine = Engine(tiny.transformer())
    with_graphs(engine, refuse)
    with pytest.raises(ConfigError, match=r"graphs: scale 0 cannot be recorded \(operation .* capturing\); take"):
        engine.step(engine.begin(torch.tensor([3])))


# --- fused passes


@functools.cache
def traced_passes():
    return Passes(*(torch.compile(f, backend="eager", dynamic=True, fullgraph=True) for f in Passes()))


@pytest.fixture
def traced(monkeypatch):
    """What would be compiled is traced, and run by PyTorch: quick, and the same bits."""
    monkeypatch.setattr(compiled_module, "_fused", traced_passes)


def is_fused(pipe):
    return {layer.passes != Passes() for layer in pipe.engine.layers} == {True}


@pytest.mark.parametrize("parts", [PLANS[0], PLANS[3], PLANS[5]], ids=str)
def test_fused_passes_are_traced_whole(tiny, traced, parts):
    model, labels = tiny.transformer(), torch.tensor([3, 0])
    inputs, plan = tiny.inputs(model.config), plan_for(tiny, model, parts)
    engine = Engine(model, plan=plan)
    kinds = [(2, True), (1, False)]

    def run():
        return [taught(engine, inputs[:batch], labels[:batch], guided=guided) for batch, guided in kinds]

    expected = run()
    engine.compile_()
    assert {layer.passes for layer in engine.layers} == {compiled_module._fused()}
    assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
    engine.uncompile_()
    assert {layer.passes for layer in engine.layers} == {Passes()}


def test_a_pipeline_stays_compiled(tiny, traced):
    pipe = tiny.pipeline(seed=5)
    before = pipe([0, 3], seed=1)
    pipe.compile_()
    assert is_fused(pipe)
    assert torch.equal(pipe([0, 3], seed=1).images, before.images)
    apply_(pipe, plan_for(tiny, pipe.transformer, {"windows": True}))
    assert is_fused(pipe)
    compressed = pipe([0, 3], seed=1).images
    pipe.uncompile_()
    assert not is_fused(pipe)
    assert torch.equal(pipe([0, 3], seed=1).images, compressed)
    pipe.compile_()
    remove_(pipe)
    assert is_fused(pipe)
    assert torch.equal(pipe([0, 3], seed=1).images, before.images)
    pipe.to(dtype=torch.bfloat16)
    assert is_fused(pipe)
    assert pipe.engine.dtype == torch.bfloat16
    pipe([0, 3])
    pipe.uncompile_()
    assert torch.equal(pipe.to(dtype=torch.float32)([0, 3]).images, pipe([0, 3]).images)
    assert not is_fused(pipe)


def test_refusals_change_nothing(tiny, monkeypatch):
    pipe = tiny.pipeline()
    with pytest.raises(ArgumentError, match="graphs: only on CUDA, but the model is on cpu"):
        pipe.compile_(graphs=True)

    def no_compiler(*arguments):
        raise RuntimeError("no C++ compiler\nlong story")

    monkeypatch.setattr(compiled_module, "_fused", lambda: Passes(no_compiler, no_compiler, no_compiler))
    with pytest.raises(ConfigError, match=r"fuse: PyTorch cannot compile for cpu here \(no C\+\+ compiler\); take"):
        pipe.compile_()
    assert not is_fused(pipe)
    assert pipe._compiled is None
    pipe.compile_(fuse=False)
    assert not is_fused(pipe)
    assert pipe.engine._graphs is None
    pipe._compiled = False, True
    with pytest.raises(ArgumentError, match="device: no CUDA graphs on 'cpu'"):
        pipe.to("cpu", dtype=torch.bfloat16)
    assert pipe.transformer.head.weight.dtype == torch.float32


@pytest.fixture
def fresh():
    """Without what other tests compiled: PyTorch keeps a few variants of a function."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"l2_norm": False}], ids=str)
def test_compiled_passes_are_near_plain_ones(tiny, fresh, dtype, changes):
    model = tiny.transformer(**changes)
    inputs, labels = tiny.inputs(model.config), torch.tensor([3, 0])
    engine = Engine(model, dtype=dtype)
    expected = taught(engine, inputs, labels)
    engine.compile_()
    found = taught(engine, inputs, labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype])
    assert (found - expected).abs().mean() < TOLERANCE[dtype] / 10
    engine.uncompile_()
    assert torch.equal(taught(engine, inputs, labels), expected)


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("parts", PLANS, ids=str)
def test_cuda_graphs(tiny, parts, dtype, fuse):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = tiny.transformer(embed_dim=128)
    plan = plan_for(tiny, model, parts)
    model.to("cuda", dtype=dtype)
    plain, engine = Engine(model, plan=plan), Engine(model, plan=plan)
    engine.compile_(fuse=fuse)
    assert engine._graphs is not None
    for turn, (batch, guided) in enumerate([(2, True), (2, True), (3, False), (2, True)]):
        inputs = tiny.inputs(model.config, batch=batch, seed=turn).cuda()
        labels = ((torch.arange(batch) + turn) % 6).cuda()
        found, expected = (taught(e, inputs, labels, guided=guided) for e in (engine, plain))
        if not fuse:
            assert torch.equal(found, expected), turn
        elif plan.precision is None:  # codes that tip over make steps of their own
            torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE.get(dtype, 0.02))
        else:
            assert (found - expected).abs().mean() < 0.05
    steps = [step for held in engine._graphs._batches.values() for step in held._steps.values()]
    assert len(steps) == 2 * 6
    assert all("_CudaRecorder" in step.__qualname__ for step in steps)
