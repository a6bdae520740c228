import pytest
import torch

from gantx.runtime.precision import full_precision

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
    with full_precision():
        assert settings() == ("highest", False)
    assert settings() == before
    with pytest.raises(ValueError, match="inside"), full_precision():
        raise ValueError("inside")
    assert settings() == before


def by_operation():
    backends = torch.backends
    operations = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.conv)
    return [operation.fp32_precision for operation in operations]


@pytest.fixture
def newer_settings():
    """PyTorch's settings of single operations, with which its older ones cannot be read."""
    before = by_operation()
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    yield
    backends = torch.backends
    for operation, value in zip(
        (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.conv),
        before,
        strict=True,
    ):
        operation.fp32_precision = value


def test_a_caller_may_use_the_newer_settings(newer_settings):
    before = by_operation()
    with pytest.raises(RuntimeError, match="mix"):
        torch.get_float32_matmul_precision()
    with full_precision():
        assert by_operation() == ["ieee"] * 4
    assert by_operation() == before


def test_one_newer_setting_leaves_the_older_ones_of_others_readable(newer_settings):
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = "tf32"
    with full_precision():
        assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cudnn.allow_tf32 is True


def test_autocast_around_it_has_no_effect():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with full_precision():
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
    assert (x @ x).dtype == torch.float32
