"""Formats of linear layers: the right module for each, and engines that compute what explicit rounding computes."""

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from torch import nn  # noqa: E402

from sparing.errors import ArgumentError, ConfigError  # noqa: E402
from sparing.quant import FakeQuantLinear, Int8Linear  # noqa: E402
from sparing.runs.documents import validated  # noqa: E402
from sparing.var.apply import apply_, remove_  # noqa: E402
from sparing.var.config import LINEAR_KINDS, linear_names  # noqa: E402
from sparing.var.engine import Engine  # noqa: E402
from sparing.var.formats import attention_rounding, make_linear, precision_plan  # noqa: E402
from sparing.var.pipeline import weights_fingerprint  # noqa: E402
from sparing.var.plan import CompressionPlan, LinearFormat, PrecisionPlan  # noqa: E402

REAL = LinearFormat(weight_bits=8, activation_bits=8, real=True)
W4A6 = LinearFormat(weight_bits=4, activation_bits=6)


def plan_for(model, **precision):
    return CompressionPlan(model=model.config, weights=weights_fingerprint(model), precision=PrecisionPlan(**precision))


def taught(model, tiny, plan=None):
    engine = Engine(model, plan=plan)
    return torch.cat(list(engine.teach(torch.tensor([3, 0]), tiny.inputs(model.config))), 1)


def rounded(x, bits):
    """Each row by its largest magnitude, to whole steps (ties to even)."""
    top = 2 ** (bits - 1) - 1
    step = x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / top
    return (x / step).round().clamp(-top, top) * step


# --- names and plans


def test_names_of_linear_layers(tiny):
    config = tiny.transformer_config()
    block = ["ada_lin", "qkv", "proj", "fc1", "fc2"]
    expected = ["word_embed", *(f"blocks.{i}.{kind}" for i in range(2) for kind in block), "head"]
    assert linear_names(config) == expected
    assert linear_names(config, ("head", "fc1")) == ["blocks.0.fc1", "blocks.1.fc1", "head"]
    assert linear_names(config, ()) == []
    assert linear_names(config, iter(LINEAR_KINDS)) == expected
    shared = linear_names(tiny.transformer_config(shared_adaln=True))
    assert shared == [name for name in expected if "ada_lin" not in name]


@pytest.mark.parametrize("kinds", [("qkv", "conv"), "fc2"])
def test_unknown_kinds(tiny, kinds):
    with pytest.raises(ArgumentError, match=r"kinds: expected some of .*word_embed.*, got"):
        linear_names(tiny.transformer_config(), kinds)
    with pytest.raises(ArgumentError, match="kinds: expected some of"):
        precision_plan(tiny.transformer_config(), kinds=kinds)


def test_fc2_is_left_unless_it_has_a_format(tiny):
    config = tiny.transformer_config()
    plan = precision_plan(config, weight_bits=4, activation_bits=6)
    assert set(plan.linears) == {name for name in linear_names(config) if not name.endswith("fc2")}
    assert set(plan.linears.values()) == {W4A6}
    assert plan.kv_bits is plan.attention_bits is plan.decoder_bits is None
    dual = LinearFormat(weight_bits=4, activation_bits=4, input_format="dual_sqrt")
    plan = precision_plan(config, weight_bits=4, activation_bits=6, fc2=dual, kv_bits=8, attention_bits=6)
    assert set(plan.linears) == set(linear_names(config))
    assert plan.linears["blocks.1.fc2"] == dual
    assert plan.linears["blocks.1.fc1"] == W4A6
    assert (plan.kv_bits, plan.attention_bits) == (8, 6)
    assert "blocks.0.fc2" not in precision_plan(config, fc2=dual, kinds=("fc1", "head")).linears
    with pytest.raises(ConfigError, match="needs activation_bits"):
        validated(LinearFormat, {"weight_bits": 4, "input_format": "dual_sqrt"})


def test_kinds_from_an_iterator(tiny):
    config = tiny.transformer_config()
    assert precision_plan(config, fc2=REAL, kinds=iter(("fc1", "fc2"))) == precision_plan(
        config, fc2=REAL, kinds=("fc1", "fc2")
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"weight_bits": 1}, "weight_bits"),
        ({"activation_bits": 9}, "activation_bits"),
        ({"weight_bits": 4, "real": True}, "integer products need 8-bit"),
        ({"kv_bits": 4}, "kv_bits"),
        ({"attention_bits": 1}, "attention_bits"),
        ({"decoder_bits": 4}, "decoder_bits"),
    ],
)
def test_bits_out_of_range(tiny, fields, words):
    with pytest.raises(ConfigError, match=words):
        precision_plan(tiny.transformer_config(), **fields)


# --- single layers


def test_the_module_of_each_format():
    weight, bias = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.ones(6)

    def made(form, dtype=torch.float32):
        return make_linear(weight, bias, form, dtype=dtype)

    for form in (None, LinearFormat()):
        assert type(made(form)) is nn.Linear
        assert made(form).weight.data_ptr() == weight.data_ptr()
        assert made(form, torch.bfloat16).weight.dtype == torch.bfloat16
        assert not made(form).weight.requires_grad
    assert isinstance(made(REAL), Int8Linear)
    assert made(REAL, torch.bfloat16)(torch.ones(1, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    simulated = made(LinearFormat(weight_bits=5, activation_bits=6, input_format="dual_sqrt"))
    assert isinstance(simulated, FakeQuantLinear)
    assert (simulated.weight_spec.bits, simulated.weight_spec.granularity) == (5, "channel")
    assert (simulated.input_spec.bits, simulated.input_spec.granularity) == (6, "token")
    assert simulated.input_spec.format == "dual_sqrt"
    assert [made(LinearFormat(weight_bits=bits)).weight_spec.range for bits in (4, 5)] == ["mse", "minmax"]
    assert made(LinearFormat(weight_bits=4)).input_spec is None
    assert made(LinearFormat(activation_bits=4)).weight_spec is None
    assert make_linear(weight, None, REAL, dtype=torch.float32).bias is None


@pytest.mark.parametrize("bits", [5, 8])
def test_rounding_of_weights_by_output_and_inputs_by_token(bits):
    generator = torch.Generator().manual_seed(1)
    weight, bias, x = (torch.randn(*shape, generator=generator) for shape in ((6, 8), (6,), (2, 3, 8)))
    form = LinearFormat(weight_bits=bits, activation_bits=bits)
    found = make_linear(weight, bias, form, dtype=torch.float32)(x)
    torch.testing.assert_close(found, rounded(x, bits) @ rounded(weight, bits).T + bias)


# --- whole models


@pytest.mark.parametrize("changes", [{}, {"shared_adaln": True}], ids=str)
def test_simulated_weights_are_explicitly_rounded_weights(tiny, changes):
    model = tiny.transformer(**changes)
    forms = dict.fromkeys(linear_names(model.config), LinearFormat(weight_bits=6))
    found = taught(model, tiny, plan_for(model, linears=forms))
    exact = taught(model, tiny)
    with torch.no_grad():
        linears = [model.word_embed, model.head]
        for block in model.layers():
            linears += [block.attn.mat_qkv, block.attn.proj, block.ffn.fc1, block.ffn.fc2]
            linears += [] if changes else [block.ada_lin[1]]
        for linear in linears:
            linear.weight.copy_(rounded(linear.weight, 6))
    torch.testing.assert_close(found, taught(model, tiny), rtol=0, atol=2e-5)
    assert (found - exact).abs().max() > 0.01


@pytest.mark.parametrize("kind", LINEAR_KINDS)
def test_simulated_inputs_are_explicitly_rounded_inputs(tiny, kind):
    model = tiny.transformer()
    forms = dict.fromkeys(linear_names(model.config, (kind,)), LinearFormat(activation_bits=5))
    found = taught(model, tiny, plan_for(model, linears=forms))
    engine = Engine(model)
    modules = (
        [engine.get_submodule(kind)]
        if kind in ("word_embed", "head")
        else [layer.get_submodule("ada" if kind == "ada_lin" else kind) for layer in engine.layers]
    )
    for module in modules:
        module.register_forward_pre_hook(lambda _, args: (rounded(args[0], 5),))
    expected = torch.cat(list(engine.teach(torch.tensor([3, 0]), tiny.inputs(model.config))), 1)
    # Where a value lies at the middle of two steps, the last bit of the sums before it decides.
    assert (found - expected).abs().mean() < 1e-4
    assert (found - taught(model, tiny)).abs().mean() > 1e-3


def test_integer_products_are_near_simulated_ones(tiny):
    model = tiny.transformer()
    config = model.config
    plans = [
        CompressionPlan(model=config, weights="", precision=precision_plan(config, fc2=form, real=form.real))
        for form in (REAL, LinearFormat(weight_bits=8, activation_bits=8))
    ]
    real, simulated = (taught(model, tiny, plan) for plan in plans)
    exact = taught(model, tiny)
    assert (real - simulated).abs().max() < 0.02
    assert (real - simulated).abs().mean() < 0.2 * (simulated - exact).abs().mean()
    assert isinstance(Engine(model, plan=plans[0]).layers[1].fc2, Int8Linear)
    assert isinstance(Engine(model, plan=plans[0]).word_embed, Int8Linear)


def test_fewer_bits_do_more_damage(tiny):
    model = tiny.transformer()
    exact = taught(model, tiny)
    form = {bits: LinearFormat(weight_bits=bits, activation_bits=bits) for bits in (8, 6, 4)}
    errors = [
        (taught(model, tiny, plan_for(model, linears=dict.fromkeys(linear_names(model.config), f))) - exact)
        .abs()
        .mean()
        for f in form.values()
    ]
    assert 0 < errors[0] < errors[1] < errors[2]


# --- attention


def test_rounding_of_attention(tiny):
    model = tiny.transformer()
    assert attention_rounding(None) is None
    assert attention_rounding(plan_for(model)) is None
    x = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(attention_rounding(plan_for(model, attention_bits=4))(x), rounded(x, 4))


def test_attention_bits_by_the_formulas(plain, tiny):
    # The scales that go in by one step: one scale, so that the formulas' map is rounded by its own rows too.
    model = tiny.transformer(patch_nums=(3,), depth=1)
    config, state, labels = model.config, plain.arrays(model), [3, 0, 5, 5]

    def rows(x, bits=5):
        return rounded(torch.from_numpy(x), bits).numpy()

    x = plain.embed(state, labels, torch.zeros(4, 0, 8).double().numpy())
    gamma1, gamma2, scale1, scale2, shift1, shift2 = plain.np.moveaxis(plain.modulations(state, 0, labels), 2, 0)
    q, k, v = (rows(t) for t in plain.qkv(state, 0, plain.layer_norm(x) * (1 + scale1) + shift1, 2))
    out = rows(plain.attention_map(q, k, plain.visible((3,), 2))) @ v
    out = out.transpose(0, 2, 1, 3).reshape(x.shape)
    x = x + gamma1 * (out @ state["blocks.0.attn.proj.weight"].T + state["blocks.0.attn.proj.bias"])
    x = x + gamma2 * plain.feed_forward(state, 0, plain.layer_norm(x) * (1 + scale2) + shift2)
    engine = Engine(model, plan=plan_for(model, attention_bits=5))
    found = engine.step(engine.begin(torch.tensor([3, 0])))
    exact = Engine(model).step(Engine(model).begin(torch.tensor([3, 0])))
    torch.testing.assert_close(found.double(), torch.from_numpy(x), rtol=0, atol=2e-5)
    assert (found - exact).abs().mean() > 1e-3
    assert config.num_tokens == 9


# --- without the original weights


@pytest.fixture
def pipes(tiny):
    """The same plan with the original weights kept, and with them freed."""
    kept, freed = tiny.pipeline(), tiny.pipeline()
    precision = precision_plan(kept.transformer.config, fc2=REAL, real=True)
    plan = CompressionPlan(
        model=kept.transformer.config, weights=weights_fingerprint(kept.transformer), precision=precision
    )
    apply_(kept, plan)
    apply_(freed, plan, keep_original=False)
    return kept, freed


def test_the_same_images_from_less_memory(pipes):
    kept, freed = pipes
    first, second = (pipe([0, 3, 5], seed=5) for pipe in pipes)
    assert torch.equal(first.images, second.images)
    emptied = {name for name, p in freed.transformer.named_parameters() if not p.numel()}
    expected = {
        f"blocks.{i}.{name}.weight"
        for i in (0, 1)
        for name in ("attn.mat_qkv", "attn.proj", "ffn.fc1", "ffn.fc2", "ada_lin.1")
    }
    assert emptied == expected | {"head.weight"}
    gone = sum(p.nbytes for name, p in kept.transformer.named_parameters() if name in emptied)
    left = sum(p.untyped_storage().nbytes() for p in freed.transformer.parameters())
    assert left == sum(p.nbytes for p in kept.transformer.parameters()) - gone


def test_what_needs_the_original_weights_refuses(pipes, tmp_path):
    kept, freed = pipes
    before = freed([1], seed=0).images
    for call in (
        lambda: remove_(freed),
        lambda: freed.use(None),
        lambda: freed.use(freed.plan),
        lambda: freed.save_pretrained(tmp_path / "model"),
        lambda: freed.to(dtype=torch.bfloat16),
        freed.free_original_,
        lambda: apply_(freed, freed.plan),
    ):
        with pytest.raises(ConfigError):
            call()
    assert not (tmp_path / "model").exists()
    assert freed.plan == kept.plan
    assert torch.equal(freed([1], seed=0).images, before)


def test_a_plan_that_rounds_nothing_frees_nothing(tiny):
    pipe = tiny.pipeline()
    apply_(pipe, plan_for(pipe.transformer, kv_bits=8), keep_original=False)
    assert all(p.numel() for p in pipe.transformer.parameters())
    remove_(pipe)
    assert pipe.plan is None
