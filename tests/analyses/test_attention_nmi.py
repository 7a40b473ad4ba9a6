"""NMI of attention against p(q) A log(A / p(k)) summed in float64, with and without the reference's 1e-8."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from kamim_analysis.analyses.attention_nmi import attention_nmi


def nmi_by_loop(attention: np.ndarray, *, added: float = 0.0) -> np.ndarray:
    """I = sum of p(q) A log(A / p(k)), NMI = I / sqrt(H(q) H(k)); `added` is put on every entry, rows renormalised."""
    attention = attention.astype(np.float64) + added
    attention = attention / attention.sum(-1, keepdims=True)
    batch, heads, queries, keys = attention.shape
    result = np.zeros((batch, heads))
    for b, h in np.ndindex(batch, heads):
        p_k = [sum(attention[b, h, q, k] for q in range(queries)) / queries for k in range(keys)]
        information = 0.0
        for q, k in np.ndindex(queries, keys):
            a = attention[b, h, q, k]
            if a > 0:
                information += a / queries * math.log(a / p_k[k])
        entropy = -sum(p * math.log(p) for p in p_k if p > 0)
        result[b, h] = information / math.sqrt(math.log(queries) * entropy) if entropy > 0 else 0.0
    return result


def random_attention(sharpness: float, tokens: int = 16, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(2, 3, tokens, tokens, generator=draw)).softmax(-1)


@pytest.mark.parametrize("sharpness", [0.05, 1.0, 5.0, 30.0])
def test_nmi_by_loop(sharpness):
    attention = random_attention(sharpness)
    np.testing.assert_allclose(attention_nmi(attention).numpy(), nmi_by_loop(attention.numpy()), rtol=1e-3, atol=3e-7)


def test_near_uniform_attention_keeps_three_digits():
    attention = random_attention(0.1, tokens=64)  # NMI of a few thousandths, as in KAMIM's figure 7
    expected = nmi_by_loop(attention.numpy())
    assert 1e-4 < expected.max() < 6e-3
    np.testing.assert_allclose(attention_nmi(attention).numpy(), expected, rtol=1e-3)


@pytest.mark.parametrize("sharpness", [0.05, 1.0, 5.0, 30.0])
def test_the_reference_s_1e_8_makes_no_difference_above_1e_5(sharpness):
    attention = random_attention(sharpness)
    np.testing.assert_allclose(
        attention_nmi(attention).numpy(), nmi_by_loop(attention.numpy(), added=1e-8), rtol=0, atol=1e-5
    )


def test_exact_zeros_contribute_nothing():
    attention = random_attention(2.0)
    attention = torch.where(attention > attention.median(), attention, 0.0)
    attention = attention / attention.sum(-1, keepdim=True)
    np.testing.assert_allclose(attention_nmi(attention).numpy(), nmi_by_loop(attention.numpy()), rtol=1e-5)


@pytest.mark.parametrize("tokens", [2, 9, 196])
def test_closed_forms(tokens):
    permutation = torch.eye(tokens)[torch.randperm(tokens)]
    one_key = torch.zeros(tokens, tokens)
    one_key[:, 0] = 1
    alike = torch.rand(tokens).softmax(-1).expand(tokens, tokens)
    uniform = torch.full((tokens, tokens), 1 / tokens)
    attention = torch.stack([torch.eye(tokens), permutation, one_key, alike, uniform])[None]
    expected = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(attention_nmi(attention), expected, rtol=0, atol=2e-6)


def test_uniform_attention_within_blocks():
    # k equal blocks: I = log k, H(q) = H(k) = log N
    attention = torch.block_diag(*[torch.full((4, 4), 0.25)] * 3)[None, None]
    torch.testing.assert_close(attention_nmi(attention), torch.tensor([[math.log(3) / math.log(12)]]))


def test_hard_attention_is_scikit_learn_s_nmi_of_two_labellings():
    keys = np.random.default_rng(0).integers(0, 5, 24)
    attention = torch.eye(24)[keys][None, None]
    expected = normalized_mutual_info_score(np.arange(24), keys, average_method="geometric")
    np.testing.assert_allclose(float(attention_nmi(attention)), expected, rtol=1e-5)


def test_order_of_queries_and_keys_does_not_matter():
    attention = random_attention(2.0)
    shuffled = attention[:, :, torch.randperm(16)][..., torch.randperm(16)]
    torch.testing.assert_close(attention_nmi(shuffled), attention_nmi(attention), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sharpness", [1e-4, 1.0, 100.0])
def test_nmi_lies_between_zero_and_one(sharpness):
    nmi = attention_nmi(random_attention(sharpness, tokens=100))
    assert bool(((nmi >= 0) & (nmi <= 1 + 1e-6)).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_attention_is_reduced_in_full_precision(dtype):
    attention = random_attention(2.0).to(dtype)
    nmi = attention_nmi(attention)
    assert nmi.dtype == torch.float32
    # rows of half-precision attention miss a sum of one by up to 2^-8; the formula itself must lose no more
    np.testing.assert_allclose(nmi.numpy(), nmi_by_loop(attention.float().numpy()), rtol=2e-2, atol=1e-3)


def test_missing_numbers_stay_missing():
    attention = random_attention(1.0)
    attention[0, 0, 3, 5] = torch.nan
    nmi = attention_nmi(attention)
    assert bool(nmi[0, 0].isnan())
    assert int(nmi.isnan().sum()) == 1


def test_a_single_patch_has_none():
    assert bool(attention_nmi(torch.ones(1, 1, 1, 1)).isnan())
