"""MAE: the loss, what the encoder sees, and what a run leaves behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kamim_analysis.errors import UserError
from kamim_analysis.masked_autoencoder import MaskedAutoencoder, mae_sincos_positions
from kamim_analysis.model_spec import parse
from kamim_analysis.opening import open_model
from kamim_analysis.shapes import Grid
from kamim_analysis.train.loop import begin, train
from kamim_analysis.train.mae_objective import MAEObjective
from kamim_analysis.train.objectives.mae import MAE
from kamim_analysis.train.recipe import Recipe
from kamim_analysis.train.samples import Order, TrainingSamples, load_samples
from kamim_analysis.train.views import Augmentation

Tiny = Callable[..., Recipe]
SMALL = (
    "--objective.mask_ratio 0.75 --objective.decoder_width 16 --objective.decoder_depth 1 --objective.decoder_heads 2"
).split()


@pytest.fixture
def made(tiny_recipe: Tiny) -> Callable[..., tuple[MAEObjective, dict[str, torch.Tensor]]]:
    """The objective of the tiny recipe with further overrides, and a batch of its own view's samples."""

    def make(*overrides: str) -> tuple[MAEObjective, dict[str, torch.Tensor]]:
        recipe = tiny_recipe(*SMALL, *overrides, name="mae_photographs")
        start = begin(recipe)
        assert isinstance(recipe.objective, MAE)
        view = recipe.objective.view(Augmentation.of(recipe.data), start.encoder)
        samples = TrainingSamples(start.pictures, view, seed=0)
        batch, _failed = next(load_samples(samples, Order(length=32, batch_size=4, seed=0), workers=0, pin=False))
        return recipe.objective.build(start), batch

    return make


def slow_loss(module: MAEObjective, batch: dict[str, torch.Tensor], normalised: bool, weighted: bool) -> float:
    """Patch by patch and in float64, from the formulas of the papers; the prediction alone is the model's."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images, mask = batch["image"].numpy() / 255.0, batch["mask"].numpy()
    patches = module.model.predict_patches(module.normalised(batch["image"]), batch["mask"]).detach().double().numpy()
    total, count = 0.0, 0
    for image, hidden, predicted, b in zip(images, mask, patches, range(len(images)), strict=True):
        for row, column in zip(*hidden.nonzero(), strict=True):
            pixels = image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].transpose(1, 2, 0)
            target = ((pixels - mean) / std).ravel()
            if normalised:
                target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
            error = ((predicted[4 * row + column] - target) ** 2).mean()
            if weighted:  # four weight patches of 4 px in a patch of 8 px
                density = batch["density"][b].double().numpy()
                weights = np.exp((density - density.min()) / 0.5)
                error *= weights[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean()
            total, count = total + error, count + 1
    return total / count


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_the_slow_one(made: Callable[..., Any], normalised: bool, weighted: bool) -> None:
    kinds = f"--objective.normalised_patches {normalised} --objective.keypoint_weights {weighted}".lower().split()
    module, batch = made(*kinds, "--objective.weight_patch", "4", "--objective.temperature", "0.5")
    loss = module(batch)
    expected = slow_loss(module, batch, normalised, weighted)
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-5)
    if weighted:
        assert loss.parts["mean_weight"] > 1
        assert float(loss.parts["masked_mse"]) == pytest.approx(slow_loss(module, batch, normalised, False), rel=1e-5)


def test_the_best_constant_is_what_it_is_compared_with(made: Callable[..., Any]) -> None:
    module, batch = made("--objective.normalised_patches", "false")
    images, hidden = module.normalised(batch["image"]), batch["mask"].repeat_interleave(8, 1).repeat_interleave(8, 2)
    errors = (images - images.mean((2, 3), keepdim=True)).square().permute(0, 2, 3, 1)[hidden]
    torch.testing.assert_close(module(batch).parts["constant_mse"], errors.mean())
    normalised = made("--objective.normalised_patches", "true")[0]
    # of standardised patches of 192 numbers, the unbiased variance being 1
    assert float(normalised(batch).parts["constant_mse"]) == pytest.approx(191 / 192, abs=1e-3)


@pytest.mark.parametrize("kinds", ["", "--objective.keypoint_weights true"])
def test_weights_of_one_change_no_bit(made: Callable[..., Any], kinds: str) -> None:
    module, batch = made(*kinds.split())
    if kinds:
        batch["density"].fill_(0.125)
    loss = module(batch).total
    loss.backward()
    plain, without = made()
    expected = plain(without).total
    expected.backward()
    assert torch.equal(loss, expected)
    for one, other in zip(module.parameters(), plain.parameters(), strict=True):
        assert one.grad is other.grad is None or torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("masking", ["random", "random_blocks", "keypoint_high", "keypoint_low", "keypoint_hint"])
def test_hidden_pixels_never_reach_the_encoder(made: Callable[..., Any], masking: str) -> None:
    module, batch = made("--objective.masking", masking, "--objective.mask_unit", "8")
    latents: list[torch.Tensor] = []
    module.encoder.norm.register_forward_hook(lambda _module, _inputs, output: latents.append(output.detach()))
    first = module(batch).total
    draws = {name: value for name, value in batch.items() if name.startswith("mask")}
    mask = module.strategy.mask(batch, draws.get("mask_scores"))
    # of 16 patches int(0.75 x 16), and the hint reveals int(0.1 x 12) of these
    count = 11 if masking == "keypoint_hint" else 12
    assert mask.sum((1, 2)).tolist() == [count] * 4
    hidden = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    changed = torch.where(hidden, 255 - batch["image"], batch["image"])
    assert module(batch | {"image": changed}).total != first
    assert latents[0].shape == (4, 1 + 16 - count, 16)
    assert torch.equal(latents[0], latents[1])


def test_the_encoder_starts_as_in_the_paper(made: Callable[..., Any]) -> None:
    encoder = made("--encoder.width", "96", "--encoder.heads", "3")[0].encoder
    assert not encoder.pos_embed.requires_grad
    torch.testing.assert_close(encoder.pos_embed.detach(), mae_sincos_positions(96, Grid(4, 4)))
    for name, weight in encoder.named_parameters():
        if name.startswith("blocks") and weight.ndim == 2:
            bound = (6 / sum(weight.shape)) ** 0.5  # Glorot and Bengio's
            assert 0.99 * bound < weight.abs().max() <= bound, name


def test_an_opened_run_predicts_what_the_training_module_does(tiny_recipe: Tiny, tmp_path: Path) -> None:
    recipe = tiny_recipe(*SMALL, "--max_steps", "2", name="mae_photographs")
    trained = train(recipe, tmp_path / "run").objective.model.eval()
    opened = open_model(parse(str(tmp_path / "run")))
    assert isinstance(opened.masked_model, MaskedAutoencoder)
    assert (opened.masking.unit, opened.masking.ratio) == (8, 0.75)
    images, mask = torch.randn(2, 3, 32, 32), torch.rand(2, 16).argsort(1).lt(12).unflatten(1, (4, 4))
    with torch.no_grad():
        assert torch.equal(opened.masked_model(images, mask), trained(images, mask))


def test_what_does_not_suit_is_refused(tiny_recipe: Tiny, tmp_path: Path) -> None:
    for wrong, message in (
        ("--objective.masking attmask_high", "attmask_high does not suit MAE"),
        ("--objective.masking block", "block does not suit MAE.*choose random, "),
        ("--objective.mask_ratio_variation 0.2", "leave objective.mask_ratio_variation at 0"),
        ("--objective.mask_probability 0.5", "objective.mask_probability at 1"),
    ):
        with pytest.raises(UserError, match=message):
            tiny_recipe(*wrong.split(), name="mae_photographs")
    recipe = tiny_recipe("--encoder.name", "vit_relpos_small_patch16_224", name="mae_photographs")
    with pytest.raises(UserError, match="cannot have sin-cos positions"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
