"""Networks of a few layers, and intervals that hold all at once."""

import pytest


@pytest.fixture(scope="session")
def inside():
    """Refuses counts outside the intervals that hold all of them with 99 % (Bonferroni)."""
    from scipy.stats import binom

    def check(counts):
        """`counts`: (what, hits, trials, probability)."""
        level = 0.01 / len(counts) / 2
        wrong = [
            (what, int(hits), int(trials), p, hits / trials)
            for what, hits, trials, p in counts
            if min(binom.cdf(int(hits), trials, p), binom.sf(int(hits) - 1, trials, p)) < level
        ]
        assert not wrong

    return check


@pytest.fixture
def network():
    """A function of a seed: convolutions before and without batch normalization, in groups, and a classifier."""
    torch = pytest.importorskip("torch", reason="needs sparing[torch]")
    nn = torch.nn

    def build(seed=0):
        torch.manual_seed(seed)
        model = nn.Sequential()
        model.add_module("conv1", nn.Conv2d(3, 8, 3, padding=1, bias=False))
        model.add_module("bn1", nn.BatchNorm2d(8))
        model.add_module("relu1", nn.ReLU())
        model.add_module("conv2", nn.Conv2d(8, 12, 3, stride=2, groups=4))
        model.add_module("relu2", nn.ReLU(inplace=True))
        model.add_module("conv3", nn.Conv2d(12, 6, 1, bias=False))
        model.add_module("bn3", nn.BatchNorm2d(6))
        model.add_module("pool", nn.AdaptiveAvgPool2d(1))
        model.add_module("flat", nn.Flatten())
        model.add_module("fc", nn.Linear(6, 5))
        return model.eval()

    return build


@pytest.fixture
def images():
    """Twelve images 3 × 9 × 9."""
    torch = pytest.importorskip("torch", reason="needs sparing[torch]")
    return torch.randn(12, 3, 9, 9, generator=torch.Generator().manual_seed(1))
