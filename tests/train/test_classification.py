"""The loss of classifiers: mixing, smoothing, augmentation."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kamim_analysis.train.accuracy import among_best
from kamim_analysis.train.classification import agreement, mixer
from kamim_analysis.train.loop import begin
from kamim_analysis.train.recipe import Recipe
from kamim_analysis.train.views import Augmentation

Make = Callable[..., Recipe]


@pytest.mark.parametrize("mixing", ["cutmix", "mixup", "both"])
def test_mixed_labels_are_the_shares_of_the_pictures(mixing: str) -> None:
    """Pictures of one colour each, the class's number: the mean colour is the expected class."""
    labels = torch.tensor([0, 3, 1, 2])
    images = labels[:, None, None, None].expand(4, 3, 20, 20).float()
    for _ in range(20):
        mixed, targets = mixer(mixing, 5)(images, labels)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        assert (targets >= 0).all()
        assert ((targets > 0).sum(1) <= 2).all()
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ torch.arange(5.0))
        assert (mixing == "cutmix") <= bool((mixed == mixed.round()).all())


def test_both_kinds_of_mixing_come_with_equal_chance() -> None:
    labels = torch.tensor([0, 1])
    images = labels[:, None, None, None].expand(2, 3, 16, 16).float()
    both = mixer("both", 2)
    cut = sum(bool((mixed == mixed.round()).all()) for mixed in (both(images, labels)[0] for _ in range(400)))
    assert abs(cut - 200) < 4 * math.sqrt(100)


def test_mixing_is_drawn_from_the_global_random_state() -> None:
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 1, 0])
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(mixer("both", 2)(images, labels)[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_with_smoothed_labels(classify: Make, smoothing: float) -> None:
    recipe = classify("--objective.mixing", "none", "--objective.label_smoothing", str(smoothing))
    objective = recipe.objective.build(begin(recipe)).train()
    labels = torch.tensor([0, 1, 1, 0])
    image = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    loss = objective({"image": image, "label": labels})
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = (image.permute(0, 2, 3, 1).double().numpy() / 255 - mean) / std
    with torch.no_grad():
        logits = objective.model(torch.from_numpy(normalised).permute(0, 3, 1, 2).float()).double().numpy()
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    own = -logs[np.arange(4), labels.numpy()].mean()
    expected = (1 - smoothing) * own + smoothing * -logs.mean()
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.parts["train_top1"].item() == (logits.argmax(1) == labels.numpy()).mean()


def test_nothing_is_mixed_outside_training(classify: Make) -> None:
    recipe = classify("--objective.mixing", "both")
    objective = recipe.objective.build(begin(recipe)).eval()
    batch = {"image": torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8), "label": torch.tensor([0, 1, 1, 0])}
    assert torch.equal(objective(batch).total, objective(batch).total)
    objective.train()
    assert not torch.equal(objective(batch).total, objective(batch).total)


@pytest.mark.parametrize("augmentation", ["paper", "crop", "none"])
def test_a_view_is_a_function_of_torchs_random_state(classify: Make, augmentation: str) -> None:
    recipe = classify("--objective.augmentation", augmentation)
    start = begin(recipe)
    view = pickle.loads(pickle.dumps(view_of(recipe, start.encoder)))
    picture = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    seen = []
    for seed in (0, 0, 1, 2, 3):
        torch.manual_seed(seed)
        np.random.seed(len(seen))  # noqa: NPY002  (what must not matter)
        seen.append(view(picture)["image"])
    assert seen[0].shape == (3, 32, 32)
    assert seen[0].dtype == torch.uint8
    assert torch.equal(seen[0], seen[1])
    assert all(torch.equal(seen[0], other) for other in seen[2:]) == (augmentation == "none")


def view_of(recipe: Recipe, encoder: Any) -> Any:
    data = recipe.data
    augmentation = Augmentation(data.crop_scale, data.crop_ratio, data.horizontal_flip, data.vertical_flip)
    return recipe.objective.view(augmentation, encoder)


def test_erased_pixels_are_black_and_as_many_as_said(classify: Make) -> None:
    """White pictures under TrivialAugment stay light or become gray; a rectangle of exact zeros is the eraser's."""
    options = "--objective.erasing 1 --objective.erasing_scale [0.2,0.2] --objective.erasing_ratio [1,1]".split()
    recipe = classify(*options)
    view = view_of(recipe, begin(recipe).encoder)
    erase = view.crop.augment.transforms[-1]
    image = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    share = (erase(image) == 0).all(0).float().mean()
    assert float(share) == pytest.approx(14**2 / 32**2)  # 0.2 x 1024 pixels make a square of 14.3


def test_among_best_counts_by_rank() -> None:
    logits, labels = torch.randn(50, 9), torch.randint(9, (50,))
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)  # how many classes stand before
    expected = torch.stack([ranks < 1, ranks < 5], dim=1).float()
    assert torch.equal(among_best(logits, labels, [1, 5]), expected)
    mixed = torch.nn.functional.one_hot(labels, 9) * 0.7 + 0.3 / 9
    assert agreement(logits, mixed) == agreement(logits, labels) == expected[:, 0].mean()
