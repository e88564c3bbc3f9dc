import pytest

torch = pytest.importorskip("torch")

from pydantic import ValidationError  # noqa: E402

from sparing.errors import ConfigError  # noqa: E402
from sparing.quant import QuantSpec, make_spec  # noqa: E402


def test_codes_by_hand():
    symmetric = QuantSpec(bits=4)
    assert (symmetric.code_min, symmetric.code_max, symmetric.code_dtype) == (-7, 7, torch.int8)
    asymmetric = QuantSpec(bits=8, symmetric=False)
    assert (asymmetric.code_min, asymmetric.code_max, asymmetric.code_dtype) == (0, 255, torch.uint8)
    halves = QuantSpec(bits=4, format="dual_range")
    assert (halves.code_min, halves.code_max) == (-8, 7)
    eighth = QuantSpec(bits=4, format="dual_sqrt")
    assert (eighth.code_min, eighth.code_max) == (-2, 13)
    assert QuantSpec(bits=8, format="dual_sqrt").code_dtype == torch.int16
    assert QuantSpec(bits=16, symmetric=False).code_dtype == torch.int32
    assert QuantSpec(bits=2, format="dual_sqrt").code_min == -1
    chosen = QuantSpec(bits=4, format="dual_range", negative_codes=3)
    assert (chosen.code_min, chosen.code_max) == (-3, 12)


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("form", ["dual_range", "dual_sqrt"])
def test_dual_formats_use_every_code(bits, form):
    spec = QuantSpec(bits=bits, format=form)
    assert spec.code_max - spec.code_min + 1 == 2**bits
    assert spec.code_max >= 1


def test_json_round_trip():
    spec = QuantSpec(bits=6, granularity="group", group_size=64, range="mse", format="dual_sqrt")
    assert QuantSpec.model_validate_json(spec.model_dump_json()) == spec
    assert make_spec(spec.model_dump()) == spec
    with pytest.raises(ValidationError):
        spec.bits = 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 1}, "bits: .*greater than or equal to 2.* got 1"),
        ({"bits": 17}, "bits"),
        ({"granularity": "group"}, "group_size goes with"),
        ({"group_size": 8}, "group_size goes with"),
        ({"format": "dual_range", "symmetric": False}, "symmetric=False"),
        ({"negative_codes": 2}, "dual formats only"),
        ({"bits": 2, "format": "dual_range", "negative_codes": 3}, "at most 2"),
        ({"percentile": float("nan")}, "percentile"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        make_spec(fields)
