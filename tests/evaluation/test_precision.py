import pytest
import torch

from gantx.evaluation.precision import full_precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _settings_come_back():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def settings():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("before", [("high", True), ("highest", False), ("highest", True)])
def test_shortened_float32_is_off_inside_and_restored_after_an_error(before):
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    with full_precision(CPU):
        assert settings() == ("highest", False)
    assert settings() == before
    with pytest.raises(ValueError, match="inside"), full_precision(CPU):
        raise ValueError("inside")
    assert settings() == before


def test_autocast_around_it_has_no_effect():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with full_precision(CPU):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
    assert (x @ x).dtype == torch.float32
