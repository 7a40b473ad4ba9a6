"""KAMIM's Table 5: the linear probe with and without LayerNorm."""

from ._grid import Grid, Line
from ._kamim import RECIPE, TEXT, linear_probing

TITLE = "Top-1 accuracy on ImageNet-1k of the linear probe without and with LayerNorm, ViT-B"
SOURCE = "KAMIM, arXiv 2407.13873, table 5 (appendix A)"
ORDER = 5
GRID = Grid(
    stub=(("LayerNorm", "norm"),),
    columns=(linear_probing("SimMIM"), linear_probing("KAMIM")),
    lines=(
        Line(labels=("w/o LayerNorm",), fits={"norm": "none"}, values="16.12 33.97"),
        Line(
            labels=("w/ LayerNorm",),
            fits={"norm": ("final", "trained")},
            values="20.51 37.72",
            expects={"norm": ("final", "trained")},
        ),
    ),
    expects={**RECIPE, "encoder": "ViT-B", "data": "ImageNet-1k", "pretraining_data": "ImageNet-1k"},
    others={},
    notes=(
        TEXT,
        "The paper does not say whether its LayerNorm is the encoder's own final one or trained with the probe: either "
        "stands here, and its note says which.",
    ),
)
