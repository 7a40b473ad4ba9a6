"""Vectors of length one, whatever their size: squares of 1e30 overflow float32, and those of 1e-30 vanish."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

# float32's exponents, so that the power of two below is itself a normal number
_MOST_EXPONENT = 126
# lengths whose squares float32 holds, as it does those of all parts that matter
_SHORT, _LONG = 2.0**-30, 2.0**60


def unit(vectors: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """Vectors over their length, [..., C], in float32 or float64; zeros stay zeros.

    Very short or long ones are brought near one by a power of two first, which changes no digit of them.

    >>> unit(torch.tensor([[3e30, 4e30], [3e-30, 4e-30], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    whole = at_least_float32(vectors)
    norm: Tensor = torch.linalg.vector_norm(whole, dim=-1, keepdim=True)
    if ((norm > _SHORT) & (norm < _LONG)).all():  # as good as always, and a twentieth of the time
        return whole / norm
    _, exponent = torch.frexp(whole.detach().abs().amax(-1, keepdim=True))
    return normalize(torch.ldexp(whole, -exponent.clamp(-_MOST_EXPONENT, _MOST_EXPONENT)), dim=-1)


def direction(vectors: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """As `unit`, but NaN for zeros, which have no direction: their cosine with anything is 0/0, and not 0.

    >>> direction(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
    tensor([[0., 1.],
            [nan, nan]])
    """
    units = unit(vectors)
    return units.masked_fill_(torch.linalg.vector_norm(units, dim=-1, keepdim=True) == 0, torch.nan)


def length(vectors: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
    """L2 norm over the last axis, float32: its squares are summed in double, where none overflows."""
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64)
    return norm.float()


def at_least_float32(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Half precision as float32, all else as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
