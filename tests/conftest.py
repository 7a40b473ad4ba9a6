"""What the tests share: tiny random encoders, seeded pictures, and the photographs that scikit-image brings along."""

import os
from collections.abc import Callable
from typing import Any

# tiny tensors gain nothing from threads, and beside other processes they lose a hundredfold waiting for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same global random state."""
    torch.manual_seed(0)


@pytest.fixture
def tiny_vit() -> Callable[..., Any]:
    """A factory of ViTs for 32-px images: 4 x 4 patches of 8 px, 32 channels, 2 heads, 3 blocks, a cls token."""

    def make(image_size: int = 32, width: int = 32, depth: int = 3, heads: int = 2, **options: Any) -> Any:
        from kamim_analysis.encoders import create

        sizes = {"width": width, "depth": depth, "heads": heads, "patch_size": 8}
        return create("vit_tiny", image_size, sizes=sizes, **options).eval()

    return make


@pytest.fixture
def tiny_swin() -> Callable[..., Any]:
    """A factory of two-stage Swins with patches of 4 px, 16 and 32 channels, windows of 4 x 4."""

    def make(image_size: int = 32, window: int = 4, **options: Any) -> Any:
        from kamim_analysis.encoders import build

        arguments = {"img_size": image_size, "window_size": window, "embed_dim": 16, "depths": (2, 2)}
        return build("swin_tiny_patch4_window7_224", arguments | {"num_heads": (2, 4)} | options).eval()

    return make


@pytest.fixture
def pictures() -> list[NDArray[np.uint8]]:
    """Four real photographs, RGB uint8, of several sizes."""
    from kamim_analysis.decode import read_rgb
    from kamim_analysis.photographs import paths

    chosen = {path.stem: path for path in paths()}
    return [read_rgb(chosen[name]) for name in ("astronaut", "coffee", "china", "coins")]
