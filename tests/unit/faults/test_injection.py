"""Injection: what is hit, in which format, the same whatever else changes; gradients; everything as it was."""

import copy
import itertools
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[torch]")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402

from sparing.errors import ArgumentError, DtypeError, NonFiniteError  # noqa: E402
from sparing.faults import (  # noqa: E402
    BitBias,
    BitFlip,
    GaussianNoise,
    ReciprocalNormalNoise,
    StuckAt,
    fixed_point_,
    inject,
)
from sparing.quant import Int8Conv2d, Int8Linear  # noqa: E402

ALL = [
    BitBias(p_m=0.002),
    BitBias(p=0.3),
    BitFlip(p=0.05),
    BitFlip(p=0.05, where="features"),
    StuckAt(),
    StuckAt(form="bit"),
    StuckAt(rate=0.5, form="one_bit"),
    GaussianNoise(sigma=0.05),
    GaussianNoise(sigma=0.05, relative_to="value", where="features"),
    ReciprocalNormalNoise(sigma=0.3),
    BitBias(p=0.1) + StuckAt(rate=0.2) + BitFlip(p=0.01, where="features") + GaussianNoise(sigma=0.01),
]


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(before, model):
    after = model.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def hooks(model):
    return [
        (name, list(module._forward_hooks), list(module._forward_pre_hooks)) for name, module in model.named_modules()
    ]


def codes_of(weight, exponent):
    return (weight.double() / 2.0 ** (exponent - 7)).round().to(torch.int64)


def prepared(build, images, how):
    model = build()
    if how == "fixed":
        fixed_point_(model, images)
    elif how == "int8":
        model.conv1 = Int8Conv2d.from_conv2d(model.conv1)
        model.conv2 = Int8Conv2d.from_conv2d(model.conv2)
        model.fc = Int8Linear.from_linear(model.fc)
    return model


@pytest.mark.parametrize("how", ["float", "fixed", "int8"])
@pytest.mark.parametrize("fault", ALL, ids=str)
def test_faults_come_and_go(network, images, fault, how):
    model = prepared(network, images, how)
    with torch.no_grad():
        clean = model(images)
        before, known = state(model), hooks(model)
        with inject(model, fault, seed=1, example=images) as injection:
            faulty = model(images)
        assert not torch.equal(faulty, clean)
        assert sum(injection.hits.values()) > 0
        assert torch.isfinite(faulty).all()
        assert same(before, model)
        assert hooks(model) == known
        assert torch.equal(model(images), clean)
        with inject(model, fault, seed=1, example=images) as again:
            assert torch.equal(model(images), faulty)
        assert again.hits == injection.hits
        for other in ({"seed": 2}, {"seed": 1, "draw": 1}):
            with inject(model, fault, example=images, **other):
                assert not torch.equal(model(images), faulty)


@pytest.mark.parametrize("how", ["float", "fixed", "int8"])
def test_everything_comes_back_after_an_exception_in_nested_contexts(network, images, how):
    model = prepared(network, images, how).train()
    for module in (model.bn1, model.bn3):
        module.eval()
    before, known = state(model), hooks(model)
    for fault in ALL:
        with (
            pytest.raises(ZeroDivisionError),
            torch.no_grad(),
            inject(model, fault, example=images),
            inject(model, StuckAt(rate=0.5), draw=3),
            inject(model, ALL[-1], transient=True, example=images),
        ):
            model(images)
            model(images)
            raise ZeroDivisionError
        assert hooks(model) == known
        assert same(before, model)


def test_weights_are_hit_as_their_codes_say(network, images, inside):
    """Flipped bits are in the two's complement of the codes, unhit weights keep every bit they had."""
    model = nn.Sequential(nn.Linear(600, 500, bias=False))
    weight = model[0].weight
    clean = weight.detach().clone()
    exponent = int(np.ceil(np.log2(float(clean.abs().max()))))
    p = 0.01
    with inject(model, BitFlip(p=p), seed=5) as injection:
        hit = weight.detach() != clean
        assert int(hit.sum()) == injection.hits["0"]
        old, new = codes_of(clean[hit], exponent), codes_of(weight.detach()[hit], exponent)
        flipped = (old ^ new) & 0xFF
        assert torch.equal(weight.detach()[hit].double(), new.double() * 2.0 ** (exponent - 7))
    inside([(bit, int((flipped >> bit & 1).sum()), clean.numel(), p) for bit in range(8)])
    assert torch.equal(weight, clean)


@pytest.mark.parametrize("p_m", [1e-5, 1e-3, 0.05])
def test_features_are_hit_as_often_as_products_say(p_m, inside):
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, bias=False, groups=2)).eval()
    fixed_point_(model, torch.randn(2, 4, 8, 8))
    x = torch.zeros(20, 4, 64, 64)
    with torch.no_grad(), inject(model, BitBias(p_m=p_m), seed=3) as injection:
        codes = model(x) / model[0].fixed_point.step
    p, num = 1 - (1 - p_m) ** 18, codes.numel()
    assert int((codes != 0).sum()) == injection.hits["0"]
    counts = [("all", injection.hits["0"], num, p)]
    sizes = [*(2**alpha for alpha in range(7)), 127, *(-(2**alpha) for alpha in range(8))]  # 128 saturates
    counts += [(size, int((codes == size).sum()), num, p / 16) for size in sizes]
    inside(counts)
    assert sum(count for _, count, _, _ in counts[1:]) == injection.hits["0"]


def test_a_fault_saturates_at_the_ends_of_the_format():
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False)).eval()
    nn.init.ones_(model[0].weight)
    x = torch.full((1, 1, 100, 100), 1.0)
    x[..., 50:] = -1.0
    with torch.no_grad(), inject(model, BitBias(p=1.0), example=x):
        y = model(x) * 128
    assert set(y[..., :50].unique().tolist()) == {0.0, 64.0, 96.0, 112.0, 120.0, 124.0, 126.0, 127.0}
    assert set(y[..., 50:].unique().tolist()) == {-128.0, 0.0, *(-128.0 + 2**alpha for alpha in range(7))}


@pytest.mark.parametrize("how", ["float", "fixed"])
@pytest.mark.parametrize("fault", ALL, ids=str)
def test_memory_format_does_not_matter(network, images, fault, how):
    """Flat positions are logical; convolutions sum up in another order, which rounding hides or a tolerance covers."""
    model = prepared(network, images, how)
    found = []
    for memory in (torch.contiguous_format, torch.channels_last):
        model.to(memory_format=memory)
        with torch.no_grad(), inject(model, fault, seed=1, example=images) as injection:
            weight = model.conv1.weight.detach().clone()
            found.append((weight, model(images.contiguous(memory_format=memory)), injection.hits))
        assert model.conv1.weight.is_contiguous(memory_format=memory)
    assert found[0][2] == found[1][2]
    assert torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], atol=0.02)


def test_a_layer_has_its_faults_whatever_the_others():
    def faulty(names, **how):
        torch.manual_seed(0)
        layers = {name: nn.Conv2d(2, 2, 3, padding=1) for name in sorted(names)}
        model = nn.Sequential()
        for name in names:
            model.add_module(name, layers[name])
        seen = []
        model.get_submodule("b").register_forward_hook(
            lambda _, given, out: seen.append((given[0].clone(), out.clone()))
        )
        fault = StuckAt(rate=0.3) + BitBias(p=0.3)
        with torch.no_grad(), inject(model, fault, seed=4, example=torch.randn(2, 2, 6, 6), **how):
            model(torch.zeros(2, 2, 6, 6))
            return model.get_submodule("b").weight.clone()

    weights = [faulty(names) for names in itertools.permutations("abc")]
    weights += [faulty("abc", include=["b"]), faulty("abc", exclude=["a"])]
    assert all(torch.equal(weights[0], weight) for weight in weights)


@pytest.mark.parametrize("fault", [ALL[0], ALL[3], ALL[8]], ids=str)
def test_features_are_drawn_by_layer_and_call(network, images, fault):
    model = prepared(network, images, "fixed")
    seen = {}

    def run(times=1, **how):
        outputs = []
        with torch.no_grad(), inject(model, fault, seed=2, **how) as injection:
            for _ in range(times):
                seen["conv3"] = None
                outputs.append(model(images))
        return outputs, injection.hits

    (first, second), hits = run(2)
    assert not torch.equal(first, second)
    assert sum(hits.values()) > 0
    (again, *_), _ = run(1)
    assert torch.equal(first, again)
    # Another size of batch on the way: the second call still draws what a second call draws.
    with torch.no_grad(), inject(model, fault, seed=2):
        model(images[:5])
        assert torch.equal(model(images), second)
    # A layer alone has the hits it has among others.
    _, only = run(1, include=["conv3"])
    _, all_hits = run(1)
    assert only["conv3"] == all_hits["conv3"]
    assert list(only) == ["conv3"]


def test_the_same_draw_hits_the_same_at_any_batch_order_of_layers(network, images):
    """What is drawn ahead of a pass and what is drawn in a layer's own call are the same."""
    model = prepared(network, images, "fixed")
    with torch.no_grad(), inject(model, BitBias(p=0.2), seed=2):
        expected = model.bn1(model.conv1(images))
    with torch.no_grad(), inject(model, BitBias(p=0.2), seed=2):
        seen = []
        handle = model.relu1.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
        model(images)
        handle.remove()
    assert torch.equal(expected, seen[0])


def test_gradients_are_those_of_the_faulty_network(network, images):
    """Of weights: those of a network that has the faulty weights; of features: as if the change were a constant."""
    model = network().train()
    with inject(model, StuckAt(rate=0.3, form="bit"), seed=6):
        broken = copy.deepcopy(model)
        model(images).square().sum().backward()
    broken(images).square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), broken.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), broken.buffers(), strict=True))


def test_gradients_pass_through_faulty_features(network, images):
    model = network().train()
    plain, changes = copy.deepcopy(model), {}
    known = {}
    for name in ("bn1", "conv2", "bn3"):
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: known.__setitem__(name, out.detach().clone())
        )
    with inject(model, BitBias(p=0.2), seed=6, example=images):
        for name in ("bn1", "conv2", "bn3"):
            model.get_submodule(name).register_forward_hook(
                lambda _, __, out, name=name: changes.__setitem__(name, out.detach() - known[name])
            )
        model(images).square().sum().backward()
    for name, change in changes.items():
        plain.get_submodule(name).register_forward_hook(lambda _, __, out, change=change: out + change)
    plain(images).square().sum().backward()
    assert all(change.abs().max() > 0 for change in changes.values())
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4), name


def test_backward_behind_the_context_is_refused(network, images):
    model = network().train()
    with inject(model, StuckAt(rate=0.3)):
        loss = model(images).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kernel", ["auto", "plain"])
def test_codes_of_int8_layers(images, kernel, inside):
    dense = nn.Conv2d(3, 64, 3)
    with torch.no_grad():
        dense.weight[:32, 0] = 0  # the sign of a zero flips to -128
    conv = Int8Conv2d.from_conv2d(dense, kernel=kernel)
    model = nn.Sequential(conv).eval()
    conv.pack_()
    was_packed = conv.weight_codes is None
    codes, p = conv.plain_codes().clone(), 0.02
    with inject(model, BitFlip(p=p), seed=5):
        faulty = conv.plain_codes().clone()
        y = model(images)
        assert torch.equal(conv.plain_codes(), faulty)
    assert torch.equal(conv.plain_codes(), codes)
    assert (conv.weight_codes is None) == was_packed
    flipped = (codes ^ faulty).to(torch.int64) & 0xFF
    inside([(bit, int((flipped >> bit & 1).sum()), codes.numel(), p) for bit in range(8)])
    assert int(faulty.min()) == -128
    # Integer products of the faulty codes, -128 among them.
    weight = faulty.double() * conv.weight_scale.double()[:, None, None, None]
    exact = nn.functional.conv2d(images.double(), weight, conv.bias.double())
    assert float((y - exact).abs().max()) < 0.02 * float(exact.abs().max())


class _Repeat(nn.Module):
    """A weight whose rows come from a smaller tensor, several from each."""

    def forward(self, stored):
        return stored.repeat(4, 1)


@pytest.mark.parametrize("is_fixed", [False, True])
def test_one_stuck_cell_hits_every_use(is_fixed):
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(8, 12))
    model[2].weight = nn.Parameter(torch.randn(3, 8))
    parametrize.register_parametrization(model[2], "weight", _Repeat(), unsafe=True)
    if is_fixed:
        fixed_point_(model, torch.randn(4, 2, 2, 2))
    clean = model[2].weight.detach().clone()
    with inject(model, StuckAt(rate=0.1, share_high=1.0), seed=3, include=["2"]) as injection:
        changed = model[2].weight.detach() != clean
        assert torch.equal(changed, changed[:3].repeat(4, 1))
        assert 0 < int(changed[:3].sum()) <= injection.hits["2"] < 24
    assert torch.equal(model[2].weight, clean)


def test_a_shared_weight_is_stored_once():
    model = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50))
    model[1].weight = model[0].weight
    clean = model[0].weight.detach().clone()
    with inject(model, BitFlip(p=0.01), seed=1) as injection:
        assert int((model[0].weight != clean).sum()) == injection.hits["0"]
        assert list(injection.hits) == ["0"]
    assert torch.equal(model[0].weight, clean)


def test_a_second_fault_of_a_sum_keeps_what_the_first_left():
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    clean = torch.tensor([[127.0, -127.0], [64.0, 0.0]]) / 128
    model[0].weight = nn.Parameter(clean.clone())
    every = BitFlip(p=1)  # all bits: code c becomes -1 - c
    with inject(model, every):
        assert (model[0].weight * 128).tolist() == [[-128, 126], [-65, -1]]
    for _ in range(2):
        with inject(model, every + every):
            assert torch.equal(model[0].weight, clean)
    with inject(model, every + every, transient=True):
        for _ in range(2):
            model(torch.ones(1, 2))
            assert torch.equal(model[0].weight, clean)
    assert torch.equal(model[0].weight, clean)


def test_parameters_of_the_same_numbers_are_stored_once():
    model = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50), nn.Linear(50, 50))
    model[1].weight = nn.Parameter(model[0].weight.detach())
    model[2].weight = nn.Parameter(model[0].weight.detach().T)  # these numbers, but each in another place
    clean = model[0].weight.detach().clone()
    with inject(model, BitFlip(p=0.01), seed=1, include=["0", "1"]) as injection:
        assert int((model[0].weight != clean).sum()) == injection.hits["0"]
        assert list(injection.hits) == ["0"]
    assert torch.equal(model[0].weight, clean)


def test_cached_parametrizations_are_refused(network, images):
    model = network()
    fixed_point_(model, images)
    with parametrize.cached(), pytest.raises(ArgumentError, match=r"cached\(\) is in force"), inject(model, StuckAt()):
        pass
    with inject(model, StuckAt(rate=0.1)), parametrize.cached():
        faulty = model.conv2.weight.clone()
    assert not torch.equal(faulty, model.conv2.weight)


@pytest.mark.parametrize("fault", [BitFlip(p=0.02), GaussianNoise(sigma=0.05), StuckAt(rate=0.08)], ids=str)
@pytest.mark.parametrize("include", [["1"], ["2"], None])
def test_layers_that_share_a_weight_are_faulty_alike(fault, include):
    model = nn.Sequential(nn.Conv2d(3, 8, 8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)).eval()
    model[2].weight = model[1].weight
    fixed_point_(model, torch.ones(1, 3, 8, 8))
    clean = model[1].weight.clone()
    with inject(model, fault, include=include):
        assert torch.equal(model[1].weight, model[2].weight)
        assert not torch.equal(model[1].weight, clean)
    for layer in model[1:]:
        assert torch.equal(layer.weight, clean)
        rounding = layer.parametrizations.weight[0]
        assert (rounding.held, rounding.passes) == (None, False)


def test_weights_drawn_at_each_forward_pass(network, images):
    model = network()
    clean = state(model)
    seen = []
    with torch.no_grad(), inject(model, StuckAt(rate=0.1), seed=1, transient=True) as injection:
        # There at once, for what calls layers alone.
        opened = model.conv2.weight.clone()
        for _ in range(3):
            model(images)
            seen.append(model.conv2.weight.clone())
            total = injection.hits["conv2"]
    assert same(clean, model)
    assert torch.equal(opened, seen[0])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(seen, 2))
    with inject(model, StuckAt(rate=0.1), seed=1) as once:
        assert torch.equal(model.conv2.weight, seen[0])
    assert total > once.hits["conv2"]
    with (
        inject(model, StuckAt(), transient=True),
        pytest.raises(ArgumentError, match="open that context inside"),
        inject(model, BitFlip(p=0.1), include=["conv2"]),
    ):
        pass
    assert same(clean, model)


def test_noise_has_its_size_and_starts_from_codes(images):
    model = nn.Sequential(nn.Conv2d(3, 200, 5, bias=False))
    fixed_point_(model, images)
    clean = model[0].weight.detach().clone()
    full = 2.0 ** exponent_of_largest(clean)
    with inject(model, GaussianNoise(sigma=0.01), seed=2):
        off = (model[0].weight.detach() - clean) / full
        assert float(off.std()) == pytest.approx(0.01, rel=0.03)
        assert len(off.unique()) > 10_000  # not rounded
    with inject(model, ReciprocalNormalNoise(sigma=0.02), seed=2):
        ratio = clean / model[0].weight.detach()
        assert float(ratio[clean.abs() > full / 4].std()) == pytest.approx(0.02, rel=0.05)
    assert torch.equal(model[0].weight, clean)


def exponent_of_largest(x):
    return int(np.ceil(np.log2(float(x.abs().max()))))


def test_hooks_that_correct_faults_come_after_them(network, images):
    model, order = network(), []

    def note(name, after=False):
        def hook(*_):
            order.append((name, float(model.bn1.weight[0])))

        hook.after_faults = after
        return hook

    for name, after in (("before", False), ("correct", True), ("later", False)):
        model.bn1.register_forward_hook(note(name, after))
    known = hooks(model)
    seen = dict(model.bn1._forward_hooks)
    with torch.no_grad(), inject(model, BitBias(p=0.5), example=images):
        kinds = [type(hook).__name__ for hook in model.bn1._forward_hooks.values()]
        model(images)
    assert kinds == ["function", "_FeatureHook", "function", "function"]
    assert hooks(model) == known
    assert dict(model.bn1._forward_hooks) == seen


def test_training_statistics_go_on_as_usual(network, images):
    model = network().train()
    with inject(model, BitBias(p=0.1), example=images):
        model(images)
    assert int(model.bn1.num_batches_tracked) == 1
    assert not torch.equal(model.bn3.running_mean, torch.zeros(6))


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [
        ({"fault": BitBias(p=0.1)}, ArgumentError, "example: expected a batch"),
        ({"fault": BitBias(p=0.1), "include": ["fc"], "example": True}, ArgumentError, "hits features of convolutions"),
        ({"fault": StuckAt(), "include": ["conv9"]}, ArgumentError, "include: no layer is called 'conv9'"),
        ({"fault": StuckAt(), "exclude": ["bn1"]}, ArgumentError, "exclude: no layer"),
        ({"fault": StuckAt(), "seed": -1}, ArgumentError, "seed: expected"),
        ({"fault": StuckAt(), "seed": 1.5}, DtypeError, "seed: expected an integer, got 1.5"),
        ({"fault": StuckAt(), "draw": "2"}, DtypeError, "draw: expected an integer, got '2'"),
        ({"fault": StuckAt(), "draw": -1}, ArgumentError, "draw: expected"),
        ({"fault": "stuck-at"}, DtypeError, "fault: expected a fault model"),
    ],
)
def test_bad_arguments_change_nothing(network, images, how, error, match):
    model = network()
    before, known = state(model), hooks(model)
    fault = how.pop("fault")
    if how.pop("example", False):
        how["example"] = images
    with pytest.raises(error, match=match), inject(model, fault, **how):
        pass
    assert same(before, model)
    assert hooks(model) == known


def test_bad_models_change_nothing(network, images):
    model = network()
    with torch.no_grad():
        model.fc.weight[0, 0] = float("nan")
    clean = model.conv1.weight.detach().clone()
    with pytest.raises(NonFiniteError, match="weight of fc"), inject(model, StuckAt()):
        pass
    assert torch.equal(model.conv1.weight, clean)
    with pytest.raises(ArgumentError, match="at least one convolution"), inject(nn.ReLU(), StuckAt()):
        pass
    lazy = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyConv2d(4, 3))
    with pytest.raises(ArgumentError, match="1 is lazy and has no weights yet"), inject(lazy, StuckAt()):
        pass


@pytest.mark.parametrize("fault", ALL, ids=str)
def test_bfloat16(network, images, fault):
    model = prepared(network, images, "fixed")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        clean = model(images)
        with inject(model, fault, seed=1) as injection:
            faulty = model(images)
        assert sum(injection.hits.values()) > 0
        assert not torch.equal(clean, faulty)
        assert torch.equal(clean, model(images))


@pytest.mark.gpu
@pytest.mark.parametrize("fault", ALL, ids=str)
def test_a_gpu_has_the_same_faults(network, images, fault):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = prepared(network, images, "fixed")
    with torch.no_grad():
        with inject(model, fault, seed=1) as here:
            weight, logits = model.conv1.weight.clone(), model(images)
        model.cuda()
        with inject(model, fault, seed=1) as there:
            assert torch.allclose(model.conv1.weight.cpu(), weight, rtol=1e-6)
            assert torch.allclose(model(images.cuda()).cpu(), logits, atol=0.05)
    assert here.hits == there.hits


def test_weights_that_autocast_keeps_in_another_type():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        clean = layer(x)
        with inject(layer, StuckAt(rate=0.5)):
            faulty = layer(x)
        assert not torch.equal(faulty, clean)
        assert torch.equal(layer(x), clean)


def test_weights_at_the_lower_end_that_are_not_hit():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        model[0].weight.clamp_(-0.125, 0.125)  # as weight clipping does: many are -2^S
    fixed_point_(model, x)
    stored = model[0].parametrizations.weight.original
    before, clean = stored.clone(), model(x)
    with inject(model, BitFlip(p=0)):
        assert torch.equal(model(x), clean)
    assert torch.equal(stored, before)


def test_checkpointed_features_are_refused_unless_they_stay_the_same():
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), torch.randn(2, 3, 8, 8)
    with inject(model, BitBias(p=0.3), example=x):
        loss = checkpoint(model, x.clone().requires_grad_(), use_reentrant=False).square().sum()
        with pytest.raises(ArgumentError, match="computed again in the backward pass"):
            loss.backward()
    with inject(model, BitBias(p=0.3), example=x, transient=False):
        checkpoint(model, x.clone().requires_grad_(), use_reentrant=False).square().sum().backward()


def test_another_thread_is_refused_while_faults_are_in(network, images):
    model = prepared(network, images, "fixed")
    before, said = state(model), []

    def work():
        try:
            with inject(model, StuckAt(rate=0.5), seed=1):
                pass
        except ArgumentError as error:
            said.append(str(error))

    with inject(model, StuckAt(rate=0.5)):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        with inject(model, StuckAt(rate=0.5), seed=2):
            pass
    assert len(said) == 1
    assert "is in a context of faults in another thread" in said[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(said) == 1
