"""Released layouts, written down in layouts.py from the published table: loaded strictly, refused where damaged."""

import os
import pickle

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from safetensors.torch import save_file  # noqa: E402

from sparing.errors import ConfigError, DtypeError, FormatError, NonFiniteError  # noqa: E402
from sparing.var.checkpoints import (  # noqa: E402
    load_state_,
    read_state,
    tokenizer_config,
    tokenizer_from,
    transformer_from,
    var_config,
)
from sparing.var.config import RELEASED, TokenizerConfig  # noqa: E402
from sparing.var.transformer import VARTransformer  # noqa: E402
from sparing.var.vqvae import VQVAE  # noqa: E402

NAMES = ["d16", "d20", "d24", "d30", "d36-s"]


def shapes_of(model):
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_released_transformers_have_the_published_names_and_shapes(layouts, name):
    expected = layouts.transformer(name)
    assert layouts.count(expected) == pytest.approx(layouts.TRANSFORMERS[name][1], abs=0.05)
    with torch.device("meta"):
        model = VARTransformer(RELEASED[name])
    del expected["attn_bias_for_masking"]
    assert shapes_of(model) == expected
    assert model.num_parameters / 1e6 == pytest.approx(layouts.TRANSFORMERS[name][1], abs=0.05)


def test_the_released_tokenizer_has_the_published_names_and_shapes(layouts):
    expected = layouts.tokenizer()
    assert layouts.count(expected) == pytest.approx(layouts.TOKENIZER_MILLIONS, abs=0.05)
    with torch.device("meta"):
        model = VQVAE()
    assert shapes_of(model) == expected
    assert model.num_parameters / 1e6 == pytest.approx(layouts.TOKENIZER_MILLIONS, abs=0.05)


@pytest.mark.parametrize("name", ["d16", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_released_transformers_load_strictly(layouts, name):
    state = layouts.weights(layouts.transformer(name))
    model = transformer_from(state)
    assert model.config == RELEASED[name]
    assert not model.training
    assert all(torch.equal(t, state[key]) for key, t in model.state_dict().items())
    assert model.head.weight.data_ptr() == state["head.weight"].data_ptr(), "copied"


def test_the_released_tokenizer_loads_strictly(layouts):
    state = layouts.weights(layouts.tokenizer())
    model = tokenizer_from(state)
    assert model.config == TokenizerConfig()
    assert all(torch.equal(t, state[key]) for key, t in model.state_dict().items())


def test_the_released_tokenizer_serves_512(layouts):
    state = layouts.weights(layouts.tokenizer())
    model = tokenizer_from(state, patch_nums=layouts.SCHEDULE_512)
    assert model.config.image_size == 512
    fourteen = tokenizer_from(state, patch_nums=(1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64))
    assert fourteen.quantize.ema_vocab_hit_SV.shape == (14, 4096)


# --- small models, for everything that can be wrong


@pytest.fixture
def state(tiny):
    model = tiny.transformer(patch_nums=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    levels = model.lvl_1L[0]
    mask = torch.where(levels[:, None] >= levels[None], 0.0, -torch.inf)[None, None]
    return {**model.state_dict(), "attn_bias_for_masking": mask}


@pytest.mark.parametrize("changes", [{}, {"shared_adaln": True}, {"mlp_ratio": 2.5, "depth": 3}, {"num_classes": 1}])
def test_settings_are_read_off_the_tensors(tiny, changes):
    model = tiny.transformer(**changes)
    found = var_config(model.state_dict(), model.config.patch_nums)
    assert found.model_copy(update={"class_dropout": model.config.class_dropout}) == model.config


def test_settings_without_normalisation_need_heads_of_64(tiny):
    model = tiny.transformer(l2_norm=False, embed_dim=128)
    assert var_config(model.state_dict(), model.config.patch_nums) == model.config


@pytest.mark.parametrize("changes", [{}, {"ch_mult": (1, 1, 2), "num_res_blocks": 2}, {"use_attention": False}])
def test_tokenizer_settings_are_read_off_the_tensors(tiny, changes):
    model = tiny.tokenizer(**changes)
    assert tokenizer_config(model.state_dict(), model.config.patch_nums, num_groups=4) == model.config


def test_numbers_do_not_change(tiny, state):
    model = transformer_from(state)
    original = tiny.transformer(patch_nums=model.config.patch_nums)
    inputs = tiny.inputs(model.config, batch=1)
    with torch.inference_mode():
        assert torch.equal(model(torch.tensor([1]), inputs), original(torch.tensor([1]), inputs))


def test_another_dtype(state):
    model = transformer_from(state, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.lvl_1L.dtype == torch.int64


@pytest.mark.parametrize(
    "key", ["head.weight", "pos_1LC", "lvl_embed.weight", "word_embed.weight", "blocks.0.ffn.fc1.weight"]
)
def test_a_missing_key_that_settings_are_read_from(state, key):
    del state[key]
    with pytest.raises(FormatError, match=f"not a VAR transformer in the released layout: '{key}' is missing"):
        transformer_from(state)


@pytest.mark.parametrize(
    "key", ["lvl_1L", "blocks.1.attn.q_bias", "head_nm.ada_lin.1.bias", "blocks.0.attn.zero_k_bias"]
)
def test_a_missing_key(state, key):
    del state[key]
    with pytest.raises(FormatError, match=f"state: {key} is missing in a VARTransformer"):
        transformer_from(state)


def test_many_missing_keys_are_counted(state):
    short = {key: t for key, t in state.items() if ".1.attn." not in key and ".1.ffn." not in key}
    with pytest.raises(FormatError, match=r"blocks\.1\.attn\.mat_qkv\.weight, .* and 5 more is missing"):
        transformer_from(short)


def test_an_unknown_key(state):
    with pytest.raises(FormatError, match=r"state: blocks.1.attn.extra is unknown in a VARTransformer"):
        transformer_from({**state, "blocks.1.attn.extra": torch.zeros(3)})


def test_another_shape(state):
    with pytest.raises(FormatError, match=r"blocks.1.attn.q_bias: expected shape \(32,\), got \(33,\)"):
        transformer_from({**state, "blocks.1.attn.q_bias": torch.zeros(33)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(state, value):
    state["blocks.1.ffn.fc2.bias"] = state["blocks.1.ffn.fc2.bias"].clone()
    state["blocks.1.ffn.fc2.bias"][7] = value
    with pytest.raises(NonFiniteError, match=r"blocks.1.ffn.fc2.bias: NaN or infinity"):
        transformer_from(state)


def test_integers_where_numbers_are_expected(state):
    with pytest.raises(DtypeError, match=r"head.bias: expected torch.float32, got torch.int64"):
        transformer_from({**state, "head.bias": torch.zeros(24, dtype=torch.int64)})


def test_floats_of_8_bits(state):
    state["head.weight"] = state["head.weight"].to(torch.float8_e4m3fn)
    with pytest.raises(DtypeError, match=r"head\.weight: expected float16"):
        transformer_from(state)


@pytest.mark.parametrize(
    ("name", "shape"), [("head.weight", (5,)), ("blocks.0.attn.scale_mul_1H11", (4,)), ("pos_1LC", (1,))]
)
def test_transformers_of_odd_shapes(state, name, shape):
    state[name] = torch.zeros(shape)
    with pytest.raises(FormatError, match="not a VAR transformer in the released layout: tensors of odd shapes"):
        transformer_from(state)


@pytest.mark.parametrize(
    ("name", "shape"), [("quantize.embedding.weight", (5,)), ("encoder.conv_in.weight", (0, 3, 3, 3))]
)
def test_tokenizers_of_odd_shapes(tiny, name, shape):
    state = dict(tiny.tokenizer().state_dict())
    state[name] = torch.zeros(shape)
    with pytest.raises(FormatError, match="not a VQVAE in the released layout: tensors of odd shapes"):
        tokenizer_from(state)


def test_masks_and_hits_of_odd_shapes(tiny, state):
    with pytest.raises(FormatError, match="attn_bias_for_masking"):
        transformer_from({**state, "attn_bias_for_masking": torch.zeros(1, 0, 680, 680)})
    tokenizer = tiny.tokenizer()
    odd = {**tokenizer.state_dict(), "quantize.ema_vocab_hit_SV": torch.tensor(0.0)}
    assert tokenizer_from(odd, config=tokenizer.config).config == tokenizer.config


def test_the_levels_contradict_the_schedule(state):
    levels = state["lvl_1L"].clone()
    levels[0, 5] = 1
    with pytest.raises(FormatError, match="lvl_1L: does not belong to patch_nums"):
        transformer_from({**state, "lvl_1L": levels})


def test_the_mask_contradicts_the_schedule(state):
    mask = state["attn_bias_for_masking"].clone()
    mask[0, 0, 3, 5] = 0
    for wrong in (mask, mask[:, :, 1:], torch.zeros(680), torch.zeros(())):
        with pytest.raises(FormatError, match="attn_bias_for_masking: does not belong to patch_nums"):
            transformer_from({**state, "attn_bias_for_masking": wrong})


def test_another_schedule_of_as_many_tokens_and_scales(tiny):
    state = tiny.transformer(patch_nums=(1, 8)).state_dict()
    assert transformer_from(state, patch_nums=(1, 8)).config.num_tokens == 65
    with pytest.raises(FormatError, match=r"pos_start: expected shape \(1, 16, 32\)"):
        transformer_from(state, patch_nums=(4, 7))
    # 2² + 9² + 10² = 4² + 5² + 12²: only the levels tell them apart.
    state = tiny.transformer(patch_nums=(1, 2, 9, 10)).state_dict()
    with pytest.raises(FormatError, match="lvl_1L: does not belong to patch_nums"):
        transformer_from(state, patch_nums=(1, 4, 5, 12))


def test_no_released_schedule_fits(tiny):
    model = tiny.transformer()
    with pytest.raises(ConfigError, match="no released schedule has 6 scales and 130 tokens; give patch_nums"):
        transformer_from(model.state_dict())
    assert transformer_from(model.state_dict(), patch_nums=tiny.SIX).config == model.config


def test_a_refused_load_leaves_the_model_as_it_was(tiny, state):
    model = tiny.transformer(seed=4)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    other = dict(tiny.transformer(seed=5).state_dict())
    other["head.bias"] = torch.full((24,), float("nan"))
    with pytest.raises(NonFiniteError):
        load_state_(model, other)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_transformer_is_no_tokenizer(tiny, state):
    with pytest.raises(FormatError, match=r"not a VQVAE in the released layout: 'encoder.conv_in.weight' is missing"):
        tokenizer_from(state)
    with pytest.raises(FormatError, match="not a VAR transformer in the released layout"):
        transformer_from(tiny.tokenizer().state_dict())
    with pytest.raises(FormatError, match="not a VAR transformer"):
        transformer_from({})


def test_a_tokenizer_with_other_groups_of_norms_is_refused_or_right(tiny):
    with pytest.raises(ConfigError, match="ch: expected a multiple of num_groups = 32, got 8"):
        tokenizer_from(tiny.tokenizer().state_dict(), patch_nums=tiny.SIX)


# --- files


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_files(tiny, tmp_path, suffix):
    state = tiny.transformer().state_dict()
    file = tmp_path / f"model{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    found = read_state(file)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], t) for name, t in state.items())


def test_old_pth_files(tiny, tmp_path):
    state = tiny.transformer().state_dict()
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    found = read_state(tmp_path / "old.pth")
    assert all(torch.equal(found[name], t) for name, t in state.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files(tiny, tmp_path, suffix):
    file = tmp_path / f"model{suffix}"
    state = tiny.transformer(depth=1).state_dict()
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    data = file.read_bytes()
    for length in (0, 1, 7, 8, 100, len(data) // 3, len(data) // 2, len(data) - 100, len(data) - 1):
        file.write_bytes(data[:length])
        with pytest.raises(FormatError, match=f"model{suffix}: not a readable file of tensors"):
            read_state(file)


@pytest.mark.parametrize("new", [True, False])
def test_altered_pickles_are_read_or_refused(tmp_path, new):
    file = tmp_path / "model.pth"
    torch.save({"a": torch.arange(12.0).view(3, 4), "b": torch.ones(2)}, file, _use_new_zipfile_serialization=new)
    data = file.read_bytes()
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(300):
        place, value = (int(torch.randint(high, (), generator=generator)) for high in (len(data), 256))
        file.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
        try:
            read_state(file)
        except FormatError:
            refused += 1
    assert refused


class _Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_pickle_that_would_run_code_does_not(tmp_path, wrapped):
    target, file = tmp_path / "ran", tmp_path / "model.pth"
    if wrapped:
        torch.save({"a": torch.ones(2), "b": _Runs(str(target))}, file)
    else:
        file.write_bytes(pickle.dumps(_Runs(str(target))))
    with pytest.raises(FormatError, match=r"model.pth: not a readable file of tensors"):
        read_state(file)
    assert not target.exists()


@pytest.mark.parametrize(
    "content", [[torch.ones(2)], {"trainer": {"a": torch.ones(2)}}, {"epoch": 3}, {1: torch.ones(2)}, 5]
)
def test_pickles_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(FormatError, match="expected a flat mapping from names to tensors"):
        read_state(tmp_path / "model.pth")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model.pth: no such file"):
        read_state(tmp_path / "model.pth")
