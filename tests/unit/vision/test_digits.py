"""The digits of scikit-learn as images."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs sparing[vision]")

from sparing.errors import ArgumentError
from sparing.vision import load_digits


def test_every_third_is_for_tests():
    sklearn = pytest.importorskip("sklearn.datasets", reason="scikit-learn brings the digits")
    train, test = load_digits(16)
    assert (len(train), len(test)) == (1198, 599)
    assert train.images.shape[1:] == (3, 16, 16)
    found = sklearn.load_digits()
    np.testing.assert_array_equal(test.labels, found.target[::3])
    np.testing.assert_array_equal(train.labels[:4], found.target[[1, 2, 4, 5]])
    np.testing.assert_array_equal(test.images[1, 2, ::2, 1::2], np.minimum(found.images[3] * 16, 255))


@pytest.mark.parametrize("size", [0, -8, 12])
def test_other_sizes(size):
    with pytest.raises(ArgumentError, match=f"expected a multiple of 8 for digits, got {size}"):
        load_digits(size)
