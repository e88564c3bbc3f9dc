"""Evaluation mode comes and goes."""

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[torch]")

from sparing.runs.modes import evaluating  # noqa: E402


def test_each_module_gets_its_own_mode_back_also_after_errors():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.BatchNorm1d(2)))
    model[1].eval()
    before = [module.training for module in model.modules()]
    assert before == [True, True, False, False]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ZeroDivisionError), evaluating(model):
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == before
