"""A recipe that trains in a second, and small parts of a training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kamim_analysis import encoders
from kamim_analysis.data import open_pictures
from kamim_analysis.train.objectives._objective import Objective
from kamim_analysis.train.recipe import Recipe
from kamim_analysis.train.samples import Order, TrainingSamples, load_samples
from kamim_analysis.train.settings import parse_recipe, recipe_path
from kamim_analysis.train.start import Start
from kamim_analysis.train.views import Augmentation
from kamim_analysis.weights_file import write_state

TINY = (
    "--encoder.image_size 32 --encoder.width 16 --encoder.depth 2 --encoder.heads 2 --optim.batch_size 8 "
    "--optim.epochs 2 --efficiency.workers 0 --monitor.every_epochs 0 --log_every 1 --checkpoint_every 1000"
).split()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Thirty-two pictures of two classes: an epoch of four steps of eight."""
    draw = np.random.default_rng(0)
    for label, low, high in (("dark", 0, 160), ("light", 90, 256)):
        folder = tmp_path / "pictures" / label
        folder.mkdir(parents=True)
        for i in range(16):
            pixels = draw.integers(low, high, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((48, 48)).save(folder / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def tiny_recipe(pictures: Path) -> Callable[..., Recipe]:
    """The recipe on the pictures, with further overrides."""

    def recipe(*overrides: str, name: str = "kamim_photographs") -> Recipe:
        config = ["--config", str(recipe_path(name))]
        return parse_recipe([*config, *TINY, "--data.source", str(pictures), *overrides])

    return recipe


@pytest.fixture
def build() -> Callable[[Objective], Any]:
    """The objective around a small ViT, the same weights each time."""

    def make(objective: Objective) -> Any:
        torch.manual_seed(0)
        encoder = encoders.create("vit_tiny", 32, sizes={"patch_size": 8, "width": 16, "depth": 2, "heads": 2})
        return objective.build(Start(open_pictures("photographs", "train"), encoder))

    return make


@pytest.fixture
def batch_of() -> Callable[[Objective], dict[str, torch.Tensor]]:
    """Four samples of the photographs."""

    def make(objective: Objective) -> dict[str, torch.Tensor]:
        encoder = encoders.create("vit_tiny", 32, sizes={"patch_size": 8, "width": 16, "depth": 2, "heads": 2})
        view = objective.view(Augmentation((0.67, 1.0), (3 / 4, 4 / 3), 0.5, 0.5), encoder)
        data = TrainingSamples(open_pictures("photographs", "train"), view, seed=0)
        batch, _failed = next(load_samples(data, Order(length=24, batch_size=4, seed=0), workers=0, pin=False))
        return dict(batch)

    return make


@pytest.fixture
def model(tmp_path: Path, tiny_vit: Callable[..., Any]) -> Path:
    """A trained encoder, as it were: 32 px, 16 channels, 3 blocks, cls token, built with much stochastic depth."""
    encoder = tiny_vit(width=16, drop_path_rate=0.6)
    description = {"architecture": encoder.architecture, "model_args": encoder.model_args}
    training = {"objective": {"class_path": "KAMIM", "init_args": {"temperature": 0.25}}}
    path = tmp_path / "model.safetensors"
    write_state(path, encoder.state_dict(), description | {"training": training})
    return path


CLASSIFIER = (
    "--objective.layer last --optim.batch_size 8 --optim.epochs 2 --optim.warmup_epochs 0.5 --efficiency.workers 0 "
    "--monitor.every_epochs 0 --log_every 1 --checkpoint_every 1000"
).split()


@pytest.fixture
def classify(pictures: Path, model: Path) -> Callable[..., Recipe]:
    """A recipe on the pictures, 26 to learn from and so three steps an epoch: of a probe, or another by name."""

    def recipe(*overrides: str, name: str = "linear_probe") -> Recipe:
        chosen = ["--config", str(recipe_path(name)), "--objective.model", str(model)]
        return parse_recipe([*chosen, *CLASSIFIER, "--data.source", str(pictures), *overrides])

    return recipe
