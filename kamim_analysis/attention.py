"""From attention over all tokens to attention over patches."""

import torch
from jaxtyping import Float
from torch import Tensor


def patch_attention(attention: Float[Tensor, "b h t t"], prefix_tokens: int) -> Float[Tensor, "b h n n"]:
    """Attention of patches to patches: prefix tokens dropped from queries and keys, rows renormalised, float32.

    [B, heads, T, T] -> [B, heads, N, N] with T = prefix + N. A row whose patches receive nothing becomes uniform, so
    that every row sums to one. (The cl-vs-mim code adds 1e-8 to every entry before it renormalises; the difference
    is below 1e-5 in NMI.)

    >>> patch_attention(torch.full((1, 1, 3, 3), 1 / 3), prefix_tokens=1)
    tensor([[[[0.5000, 0.5000],
              [0.5000, 0.5000]]]])
    """
    patches = attention[:, :, prefix_tokens:, prefix_tokens:].float()
    total = patches.sum(-1, keepdim=True)
    return torch.where(total == 0, 1 / patches.shape[-1], patches / total)
