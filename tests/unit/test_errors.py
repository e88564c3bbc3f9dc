"""The error tree is the one drawn at the top of its module, and each error can cross a process boundary."""

import pickle
import re

import pydantic
import pytest

from sparing import errors

LEAVES = [getattr(errors, name) for name in errors.__all__ if name != "SparingError"]


@pytest.mark.parametrize("error", LEAVES, ids=lambda error: error.__name__)
def test_drawn_parents_are_the_real_ones(error):
    drawn = re.search(rf"── {error.__name__}\s+(?:\((\w+)\))?", errors.__doc__)
    assert drawn, f"{error.__name__} is missing in the drawing"
    parent = getattr(__builtins__, drawn[1], None) if drawn[1] and not isinstance(__builtins__, dict) else None
    parent = parent or (__builtins__[drawn[1]] if drawn[1] else errors.FormatError)
    assert issubclass(error, errors.SparingError)
    assert issubclass(error, parent)


def test_nothing_is_drawn_that_is_not_there():
    drawn = set(re.findall(r"── (\w+)", errors.__doc__))
    assert drawn | {"SparingError"} == set(errors.__all__)


@pytest.mark.parametrize("error", LEAVES, ids=lambda error: error.__name__)
def test_pickle_round_trip(error):
    if error is errors.MissingExtraError:
        original = error("torch", extra="text", purpose="the dense encoder")
    else:
        original = error("k: expected 1 or more, got 0")
    copy = pickle.loads(pickle.dumps(original))
    assert type(copy) is error
    assert str(copy) == str(original)


def test_what_pydantic_found_is_worded():
    class Settings(pydantic.BaseModel):
        bits: int

    not_an_integer = "bits: Input should be a valid integer, unable to parse string as an integer, got"
    for fields, words in (
        ({"bits": "x"}, f"{not_an_integer} 'x'"),
        ({"bits": "x" * 99}, f"{not_an_integer} '{79 * 'x'}…"),
        ([1], "Input should be a valid dictionary or instance of Settings, got [1]"),
    ):
        with pytest.raises(pydantic.ValidationError) as caught:
            Settings.model_validate(fields)
        assert str(errors.ConfigError.from_validation("config", caught.value)) == f"config: {words}"


def test_unknown_id_reads_as_a_sentence():
    assert str(errors.UnknownIdError("ids: 7 isn't in the index")) == "ids: 7 isn't in the index"


def test_missing_extra_names_the_command():
    error = errors.MissingExtraError("torch", extra="text", purpose="the dense encoder")
    assert "pip install 'sparing[text]'" in str(error)
    assert error.name == "torch"
    assert error.extra == "text"
