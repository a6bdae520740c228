"""Attention written out is what the fused kernels compute, whatever is added to the logits."""

import itertools

import pytest
import torch
from helpers.computed_types import ComputedTypes

from gantx.models.layers import attention as module
from gantx.models.layers.attention import attention, is_written_out, twice_differentiable, with_biases

B, H, M, N, D, E = 2, 3, 5, 7, 4, 6


def operands(dtype=torch.float64):
    torch.manual_seed(0)
    shapes = ((B, H, M, D), (B, H, N, D), (B, H, N, E))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def options(masked=False, biased=False, key_biased=False, dtype=torch.float64):
    """Of `attention`, none of them learned but the bias of the keys."""
    torch.manual_seed(1)
    found = {"scale": 0.7}
    if masked:
        found["mask"] = torch.ones(M, N, dtype=torch.bool).tril(1)
    if biased:
        found["bias"] = torch.randn(H, M, N, dtype=dtype)
    if key_biased:
        found["key_bias"] = torch.randn(B, H, N, dtype=dtype, requires_grad=True)
        found["query_bias"] = torch.randn(B, H, M, dtype=dtype)
    return found


def formula(q, k, v, scale, mask=None, bias=None, key_bias=None, query_bias=None):
    logits = torch.einsum("bhmd,bhnd->bhmn", q, k)
    if key_bias is not None:
        logits = logits + key_bias[:, :, None]
    logits = scale * logits
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return torch.einsum("bhmn,bhne->bhme", logits.softmax(3), v)


CASES = [
    case
    for case in itertools.product([False, True], repeat=3)
    if not (case[0] and case[1])  # a mask and a bias exclude each other
]


@pytest.mark.parametrize("case", CASES)
def test_written_out_equals_fused_equals_the_formula(case):
    given, added = operands(), options(*case)
    inputs = [*given, *([added["key_bias"]] if "key_bias" in added else [])]
    results = [attention(*given, **added)]
    with twice_differentiable():
        results.append(attention(*given, **added))
    results.append(formula(*given, **added))
    towards = torch.randn(B, H, M, E, dtype=torch.float64)
    *found, exact = [(each, *torch.autograd.grad((each * towards).sum(), inputs)) for each in results]
    for each in found:
        torch.testing.assert_close(each, exact, rtol=0, atol=1e-12)


def test_scale_is_by_the_channels_of_queries_unless_given():
    q, k, v = operands()
    exact = formula(q, k, v, D**-0.5)
    torch.testing.assert_close(attention(q, k, v), exact)
    with twice_differentiable():
        torch.testing.assert_close(attention(q, k, v), exact)
        key_bias = torch.randn(B, H, N, dtype=torch.float64)
        biased = attention(q, k, v, key_bias=key_bias)  # longer keys have no other scale
        torch.testing.assert_close(biased, formula(q, k, v, D**-0.5, key_bias=key_bias))


def test_a_bias_may_be_learned():
    given, added = operands(), options(biased=True)
    added["bias"].requires_grad_()
    inputs = [*given, added["bias"]]
    found = torch.autograd.grad(attention(*given, **added).sin().sum(), inputs)
    torch.testing.assert_close(found, torch.autograd.grad(formula(*given, **added).sin().sum(), inputs))


# --- second derivatives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_second_derivatives_are_those_of_the_formula(case):
    given, added = operands(), options(*case)

    def of(function):
        def loss(q, k, v):
            return function(q, k, v, **added).sin().sum()

        with twice_differentiable():
            first = torch.func.grad(loss, argnums=(0, 1, 2))(*given)
        return torch.autograd.grad(sum(each.square().sum() for each in first), given)

    torch.testing.assert_close(of(attention), of(formula), rtol=1e-9, atol=1e-10)


def test_the_context_ends_with_its_block():
    q, k, _ = operands()
    assert not is_written_out(q, k)
    with twice_differentiable():
        with twice_differentiable():
            assert is_written_out(q, k)
        assert is_written_out(q, k)
    assert not is_written_out(q, k)

    def fail():
        with twice_differentiable():
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not is_written_out(q, k)


def test_compiles_whole_with_its_second_derivative():
    given, added = operands(torch.float32), options(key_biased=True, dtype=torch.float32)

    def penalty(q, k, v):
        with twice_differentiable():
            slope = torch.func.grad(lambda x: attention(x, k, v, **added).square().sum())(q)
        return slope.square().sum() + attention(q, k, v, **added).sum()

    compiled = torch.compile(penalty, backend="aot_eager", fullgraph=True)
    expected, found = penalty(*given), compiled(*given)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(each, given) for each in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


# --- types --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("short", [module.SHORT, 0])
@pytest.mark.parametrize("case", CASES)
def test_bf16_multiplies_in_bf16_and_is_close_to_the_formula(case, short, monkeypatch):
    monkeypatch.setattr(module, "SHORT", short)
    q, k, v = (each.detach().bfloat16() for each in operands())
    v = v[..., :D]  # the fused kernel of a CPU takes no other
    given = [each.requires_grad_() for each in (q, k, v)]
    added = options(*case, dtype=torch.float32)
    exact = formula(*(each.float() for each in given), **added)
    with ComputedTypes() as watch:
        found = attention(*given, **added)
        found.sum().backward()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.03)
    assert not watch.mixed
    fused = [name for name, *_ in watch.products if "scaled_dot_product" in name]
    assert len(fused) == (0 if is_written_out(q, k, key_bias=added.get("key_bias")) else 2)
    products = [name for name, *_ in watch.other_than(torch.bfloat16)]
    assert all(
        "backward" in name for name in products
    )  # of fused attention, which takes a logsumexp in float32


def test_softmax_is_computed_in_float32():
    given = [each.detach().bfloat16() for each in operands()]
    q, k, v = given
    with twice_differentiable():
        found = attention(q, k, v, scale=1.0)
    logits = (q @ k.transpose(2, 3)).float()
    assert torch.equal(found, logits.softmax(3).bfloat16() @ v)


def test_large_biases_that_cancel_are_not_rounded_in_bf16():
    torch.manual_seed(0)
    q = k = (4 + 0.3 * torch.randn(1, 2, 65, 64)).bfloat16()
    v = torch.randn(1, 2, 65, 64).bfloat16()
    half_squares = k.float().square().sum(3) / 2  # near 500, where bf16 counts in twos
    biases = {"key_bias": -half_squares, "query_bias": -half_squares}
    exact = (-torch.cdist(q.double(), k.double()).square() / 8).softmax(3) @ v.double()
    with twice_differentiable():
        found = attention(q, k, v, scale=0.25, **biases)
        unhelped = attention(q, k, v, scale=0.25, key_bias=-half_squares)
    assert (found.double() - exact).abs().max() < 0.01 * exact.abs().max()
    assert (unhelped.double() - exact).abs().max() > 0.1 * exact.abs().max()


# --- where which is used ------------------------------------------------------------------------------------


def test_few_keys_in_bf16_are_written_out_on_a_cpu():
    q = torch.empty(1, 1, 4, 8, dtype=torch.bfloat16)

    def keys(count, device="cpu"):
        return torch.empty(1, 1, count, 8, dtype=torch.bfloat16, device=device)

    assert is_written_out(q, keys(module.SHORT))
    assert not is_written_out(q, keys(module.SHORT + 1))
    assert not is_written_out(q.float(), keys(4).float())
    assert not is_written_out(q.to("meta"), keys(4, "meta"))
    with twice_differentiable():
        assert is_written_out(q, keys(module.SHORT + 1))
        assert is_written_out(q.float(), keys(4).float())
        assert is_written_out(q.to("meta"), keys(4, "meta"))


def test_biases_of_keys_in_bf16_are_written_out_on_a_cpu():
    q, k = (torch.empty(1, 1, count, 8, dtype=torch.bfloat16) for count in (4, module.SHORT + 1))
    key_bias = torch.empty(1, 1, module.SHORT + 1)
    assert is_written_out(q, k, key_bias=key_bias)
    assert not is_written_out(q.float(), k.float(), key_bias=key_bias)
    assert not is_written_out(q.to("meta"), k.to("meta"), key_bias=key_bias.to("meta"))


def test_learned_biases_are_written_out_on_a_cpu():
    q, bias = torch.empty(1, 1, 4, 8), torch.empty(1, 4, 4)
    assert not is_written_out(q, q, bias)
    assert is_written_out(q, q, bias.requires_grad_())
    assert not is_written_out(q.to("meta"), q.to("meta"), bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("with_queries", [True, False])
def test_lengthened_products_contain_the_biases(dtype, with_queries):
    q, k, _ = (each.to(dtype) for each in operands())
    wide = torch.promote_types(dtype, torch.float32)
    key_bias = 300 + torch.randn(B, H, N, dtype=wide)
    query_bias = -300 + torch.randn(B, H, M, dtype=wide)
    longer_q, longer_k = with_biases(q, k, key_bias, query_bias if with_queries else None)
    assert longer_q.dtype == longer_k.dtype == dtype
    assert longer_q.shape[3] == longer_k.shape[3] == D + 8
    exact = q.double() @ k.double().transpose(2, 3) + key_bias.double()[:, :, None]
    if with_queries:
        exact = exact + query_bias.double()[..., None]
    found = longer_q.double() @ longer_k.double().transpose(2, 3)
    torch.testing.assert_close(found, exact, rtol=0, atol=300 * 2**-15)  # two columns of bf16 hold 16 bits


def test_the_bias_of_a_key_has_the_gradient_of_one_number():
    q, k, _ = (each.detach().bfloat16() for each in operands())
    key_bias = torch.randn(B, H, N, requires_grad=True)
    longer_q, longer_k = with_biases(q, k, key_bias, None)
    (longer_q @ longer_k.transpose(2, 3)).sum().backward()
    torch.testing.assert_close(key_bias.grad, torch.full((B, H, N), float(M)))
