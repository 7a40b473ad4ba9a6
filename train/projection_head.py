"""The head of DINO and iBOT: from a token to scores of prototypes."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.parametrizations import weight_norm


class ProjectionHead(nn.Module):
    """An MLP of three layers, its output scaled to unit length, and a linear layer whose rows are the prototypes.

    The last layer is weight-normalised (a row is its magnitude times a unit vector), so that with magnitudes of 1,
    which they start from, a score is the cosine between embedded token and prototype. `norm_last_layer` keeps them 1.
    Source: DINO (arXiv 2104.14294, appendix C); iBOT (arXiv 2111.07832, section 3.2) shares one head between cls and
    patches.
    """

    def __init__(self, width: int, *, hidden: int, bottleneck: int, outputs: int, norm_last_layer: bool) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = weight_norm(nn.Linear(bottleneck, outputs, bias=False))
        magnitude = self.last_layer.get_parameter("parametrizations.weight.original0")
        nn.init.ones_(magnitude)
        magnitude.requires_grad_(not norm_last_layer)

    def embed(self, tokens: Float[Tensor, "*b d"]) -> Float[Tensor, "*b bottleneck"]:
        """Unit vectors of tokens, in float32."""
        return normalize(self.mlp(tokens).float(), dim=-1)

    def score(self, embedded: Float[Tensor, "*b bottleneck"]) -> Float[Tensor, "*b outputs"]:
        """Scores of the prototypes, linear in the unit vectors.

        In float32 also where all else is in bf16: the teacher divides by 0.04, which makes an eighth of bf16's rounding
        of a cosine near 1.
        """
        with torch.autocast(embedded.device.type, enabled=False):
            scores: Tensor = self.last_layer(embedded)
            return scores

    def forward(self, tokens: Float[Tensor, "*b d"]) -> Float[Tensor, "*b outputs"]:
        """Scores of tokens."""
        return self.score(self.embed(tokens))
