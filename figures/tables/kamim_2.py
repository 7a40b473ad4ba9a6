"""KAMIM's Table 2: its two hyperparameters, size of the weight patch and temperature."""

from ._grid import Grid, Line
from ._kamim import RECIPE, TEXT, WEIGHTS, fine_tuning, linear_probing

TITLE = "Top-1 accuracy of KAMIM on ImageNet-1k by weight patch size w_ps and temperature T, ViT-B"
SOURCE = "KAMIM, arXiv 2407.13873, table 2"
ORDER = 2
_CODE = {"map_style": WEIGHTS["map_style"]}
# with another detector it is a line of table 4
_KAMIM = {"method": "KAMIM", "detector": WEIGHTS["detector"]}


def _kamim(weight_patch: str, temperature: str, values: str) -> Line:
    fits = {**_KAMIM, "weight_patch": weight_patch, "keypoint_temperature": temperature}
    return Line(labels=(weight_patch, temperature), fits=fits, values=values, expects=_CODE)


GRID = Grid(
    stub=(("w_ps", "weight_patch"), ("T", "keypoint_temperature")),
    columns=(linear_probing(None, "LP"), fine_tuning(None, "FT")),
    lines=(
        _kamim("8", "0.1", "32.97 77.59"),
        _kamim("8", "0.25", "33.97 77.29"),
        _kamim("8", "0.5", "31.95 77.11"),
        _kamim("8", "1", "23.93 76.94"),
        _kamim("16", "0.1", "31.38 77.43"),
        _kamim("16", "0.25", "33.05 77.48"),
        _kamim("16", "0.5", "30.82 77.06"),
        _kamim("16", "1", "29.51 77.13"),
        _kamim("32", "0.1", "25.71 77.09"),
        _kamim("32", "0.25", "31.73 77.41"),
        _kamim("32", "0.5", "30.91 77.41"),
        _kamim("32", "1", "25.73 77.18"),
        Line(labels=("SimMIM", ""), fits={"method": "SimMIM"}, values="16.12 76.78"),
    ),
    expects={**RECIPE, "encoder": "ViT-B", "data": "ImageNet-1k", "pretraining_data": "ImageNet-1k"},
    others=_KAMIM,
    notes=(TEXT,),
)
