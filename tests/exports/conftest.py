"""Models with SimMIM's head in runs as training leaves them, every weight random, so that one left out shows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from kamim_analysis.reconstruction import MaskedImageModel
from kamim_analysis.weights_file import write_state

RECIPE = {
    "objective": {
        "class_path": "KAMIM",
        "init_args": {"mask_unit": 16, "detector": {"class_path": "FAST", "init_args": {"threshold": 10}}},
    },
    "data": {"source": "/home/somebody/photos of cats", "root": "/home/somebody", "crop_scale": [0.67, 1.0]},
    "optim": {"batch_size": 32, "learning_rate": 0.002, "decay_biases_and_norms": True},
    "seed": 7,
}


@pytest.fixture
def randomised() -> Callable[[Any], Any]:
    """Every weight random."""

    def draw(model: Any) -> Any:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        return model.eval()

    return draw


@pytest.fixture
def masked_vit(tiny_vit: Callable[..., Any], randomised: Callable[[Any], Any]) -> MaskedImageModel:
    """A ViT with SimMIM's head; its MLP is of no round ratio."""
    return randomised(MaskedImageModel(tiny_vit(mlp_ratio=67.5 / 32)))


@pytest.fixture
def masked_swin(tiny_swin: Callable[..., Any], randomised: Callable[[Any], Any]) -> MaskedImageModel:
    """A Swin with SimMIM's head."""
    return randomised(MaskedImageModel(tiny_swin()))


@pytest.fixture
def masked(request: pytest.FixtureRequest) -> MaskedImageModel:
    """The one that the test is parametrised with."""
    return request.getfixturevalue(f"masked_{request.param}")


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Path]:
    """Write a model as a training run does: checkpoint, description, pointer, recipe."""

    def write(model: Any, name: str = "run", recipe: dict[str, Any] | None = RECIPE) -> Path:
        run = tmp_path / name
        checkpoint = run / "checkpoints" / "step-00000012"
        checkpoint.mkdir(parents=True)
        encoder = model.encoder
        size = [*model.anatomy.image_size]
        description = {
            "architecture": encoder.architecture,
            "model_args": encoder.model_args,
            "pretrained_cfg": {
                "input_size": [3, *size], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
                "crop_pct": 1.0, "interpolation": "bilinear",
            },
            "step": 12, "version": "0.0.9", "masking": {"unit": 16, "ratio": 0.5},
        }  # fmt: skip
        write_state(checkpoint / "model.safetensors", model.state_dict(), description)
        (run / "last").write_text("step-00000012\n")
        if recipe is not None:
            (run / "config.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        return run

    return write


@pytest.fixture
def images() -> Tensor:
    """Two pictures of 32 px."""
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
