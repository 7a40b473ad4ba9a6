"""KAMIM's section 5.1: quality of reconstructions."""

from types import MappingProxyType

from ._grid import Column, Facts, Grid, Line
from ._kamim import RECIPE, WEIGHTS

TITLE = "Reconstruction of masked ImageNet-1k pictures, ViT-B"
SOURCE = "KAMIM, arXiv 2407.13873, section 5.1"
ORDER = 6
_FITS: Facts = {"evaluation": "reconstruction"}
_CODE: Facts = {"mask_ratio": "0.4"}


def _psnr(title: str, statistic: str, expects: Facts = MappingProxyType({})) -> Column:
    return Column(title=title, statistic=statistic, fits=_FITS, expects=expects, unit="dB", decimals=3)


def _ssim(title: str, statistic: str, expects: Facts = MappingProxyType({})) -> Column:
    return Column(title=title, statistic=statistic, fits=_FITS, expects=expects, unit="", decimals=4)


_PRETRAINING = {
    key: value for key, value in RECIPE.items() if key in ("patch", "resolution", "mask_unit") or "pretraining" in key
}
GRID = Grid(
    stub=(("method", "method"),),
    columns=(
        _psnr("PSNR, dB", "psnr_reference", _CODE),
        _ssim("SSIM", "ssim_reference", _CODE),
        _psnr("PSNR masked, dB", "psnr_masked"),
        _psnr("PSNR pasted, dB", "psnr_pasted"),
        _ssim("SSIM masked", "ssim_gaussian_masked"),
        _ssim("SSIM pasted", "ssim_gaussian_pasted"),
    ),
    lines=(
        Line(labels=("SimMIM",), fits={"method": "SimMIM"}, values="12.058 0.1095 — — — —"),
        Line(labels=("KAMIM",), fits={"method": "KAMIM"}, values="12.063 0.1076 — — — —", expects=WEIGHTS),
    ),
    expects={**_PRETRAINING, "encoder": "ViT-B", "data": "ImageNet-1k", "pretraining_data": "ImageNet-1k"},
    others={},
    notes=(
        "PSNR and SSIM as the public code has them: mask ratio 0.4, normalised pixels, the whole prediction compared. "
        "Ours beside, on pixels in [0, 1]: over hidden pixels (masked), and over the picture with its visible pixels "
        "pasted back (pasted), at the mask ratio of pre-training.",
    ),
)
