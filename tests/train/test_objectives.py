"""SimMIM and KAMIM: every masking, the mean over pictures, and KAMIM's identity with SimMIM."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kamim_analysis import encoders, plugins
from kamim_analysis.data import open_pictures
from kamim_analysis.errors import UserError
from kamim_analysis.reconstruction import pixel_mask
from kamim_analysis.train.masked_objective import evening_weights
from kamim_analysis.train.objectives.kamim import KAMIM
from kamim_analysis.train.objectives.simmim import SimMIM
from kamim_analysis.train.recipe import Recipe
from kamim_analysis.train.samples import TrainingSamples
from kamim_analysis.train.start import Start
from kamim_analysis.train.views import Augmentation

MASKINGS = plugins.names("kamim_analysis.masking")
VARYING = {"mask_ratio": 0.4, "mask_ratio_variation": 0.3, "mask_probability": 0.75}
AUGMENTATION = Augmentation((0.67, 1.0), (3 / 4, 4 / 3), 0.5, 0.5)


def varying(masking: str) -> dict[str, Any]:
    return {"masking": masking, "mask_unit": 8} | ({} if masking == "random_blocks" else VARYING)


@pytest.mark.parametrize("objective", [SimMIM, KAMIM])
@pytest.mark.parametrize("masking", MASKINGS)
def test_every_masking_trains_every_weight(
    objective: type[SimMIM], masking: str, build: Callable[..., Any], batch_of: Callable[..., Any]
) -> None:
    settings = objective(**varying(masking))
    module = build(settings)
    loss = module(batch_of(settings)).total
    loss.backward()
    assert loss.shape == ()
    assert 0 < float(loss.detach()) < 1000
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    assert [name for name, weight in trained.items() if weight.grad is None or not weight.grad.isfinite().all()] == []
    frozen = {name.split(".")[1] for name in dict(module.named_parameters()).keys() - trained.keys()}
    assert frozen == ({"attention_encoder"} if masking.startswith("attmask") else set())


def loss_by_loop(module: Any, batch: dict[str, Tensor], masks: Tensor) -> float:
    """Over pictures: each one's mean error over hidden pixels and colours, 0 where nothing is hidden; their mean."""
    images = (batch["image"].double() - module.mean) / module.std
    prediction = module.model(images.float(), masks).detach().double()
    total = 0.0
    for picture, predicted, mask in zip(images, prediction, masks, strict=True):
        pixels = torch.from_numpy(np.kron(mask.numpy(), np.ones((8, 8)))).bool()
        if pixels.any():
            total += float((predicted - picture).abs()[:, pixels].mean())
    return total / len(images)


@pytest.mark.parametrize("masking", ["random", "keypoint_hint", "random_blocks"])
def test_the_loss_is_the_mean_over_pictures_of_each_one_s_mean(
    masking: str, build: Callable[..., Any], batch_of: Callable[..., Any]
) -> None:
    settings = SimMIM(**varying(masking))
    module, batch = build(settings), batch_of(settings)
    masks = settings.strategy().mask(batch, batch.get("mask_scores"))
    if masking != "random_blocks":
        assert len(set(masks.flatten(1).sum(1).tolist())) > 1
    assert float(module(batch).total.detach()) == pytest.approx(loss_by_loop(module, batch, masks), rel=1e-5)


def test_micro_batches_give_the_loss_of_the_batch(build: Callable[..., Any], batch_of: Callable[..., Any]) -> None:
    settings = KAMIM(**varying("block"))
    module, batch = build(settings), batch_of(settings)
    batch["mask"][0] = False  # a micro-batch of which nothing is hidden
    whole = module(batch)
    parts = [module({name: values[i : i + 1] for name, values in batch.items()}) for i in range(4)]
    assert float(parts[0].total.detach()) == 0
    total = sum(part.total.detach() for part in parts)
    assert float(total) / 4 == pytest.approx(float(whole.total.detach()), rel=1e-5)
    for name in ("masked_l1", "mean_colour_l1"):
        assert float(sum(part.parts[name] for part in parts)) / 4 == pytest.approx(float(whole.parts[name]), rel=1e-5)


def test_nothing_hidden_gives_no_loss_and_no_gradient(build: Callable[..., Any], batch_of: Callable[..., Any]) -> None:
    settings = KAMIM(**varying("random"))
    module, batch = build(settings), batch_of(settings)
    batch["mask"][:] = False
    loss = module(batch).total
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(not bool(weight.grad.any()) for weight in module.parameters())


def test_equal_shares_weigh_exactly_one() -> None:
    for pictures, hidden in ((3, 7), (32, 11), (2048, 88)):
        mask = (torch.arange(144) < hidden).reshape(1, 12, 12).expand(pictures, 12, 12)
        assert bool((evening_weights(mask) == 1).all())


@pytest.mark.parametrize("objective", [SimMIM, KAMIM])
def test_simmim_s_masks_and_crops_are_drawn_as_ever(objective: type[SimMIM]) -> None:
    """Runs that were started before other strategies came must resume: the crop, then one permutation of the units."""
    encoder = encoders.create("vit_tiny", 32, sizes={"patch_size": 8, "width": 16, "depth": 2, "heads": 2})
    view = objective(mask_unit=16).view(AUGMENTATION, encoder)
    data = TrainingSamples(open_pictures("photographs", "train"), view, seed=5)
    sample = data[(3, 7)][0]
    torch.manual_seed(int(np.random.SeedSequence([5, 3, 7]).generate_state(1, np.uint64)[0]))
    image = AUGMENTATION.build(32)(torch.from_numpy(data.pictures.read(7)[0]).permute(2, 0, 1))
    units = torch.zeros(4, dtype=torch.bool).index_fill(0, torch.randperm(4)[:3], True)  # ceil(0.6 x 4)
    assert torch.equal(sample["image"], image)
    assert torch.equal(sample["mask"], units.reshape(2, 2).repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert sample.keys() == {"image", "mask", "label"} | ({"density"} if objective is KAMIM else set())


@pytest.mark.parametrize("masking", ["random", "keypoint_high", "attmask_high", "random_blocks"])
def test_swin_hides_what_its_last_layer_sees(masking: str, tiny_swin: Callable[..., Any]) -> None:
    """Two stages: patches of 4 px that the mask token replaces, of 8 px that the last layer scores and predicts."""
    encoder = tiny_swin()
    settings = SimMIM(masking=masking, mask_unit=4, mask_ratio=0.5)
    data = TrainingSamples(open_pictures("photographs", "train"), settings.view(AUGMENTATION, encoder), seed=0)
    sample = data[(0, 1)][0]
    module = settings.build(Start(data.pictures, encoder))
    masks = []
    module.model.register_forward_pre_hook(lambda _module, inputs: masks.append(inputs[1]))
    loss = module({name: values[None] for name, values in sample.items()}).total
    (mask,) = masks
    assert bool(loss.isfinite())
    assert mask.shape == (1, 8, 8)
    assert int(mask.sum()) == 32
    assert pixel_mask(mask, 4).shape == (1, 32, 32)
    cells = mask[0].unfold(0, 2, 2).unfold(1, 2, 2).flatten(2)
    assert bool((cells.all(2) == cells.any(2)).all()) == (masking != "random_blocks")


def test_keypoints_rank_the_patches_of_the_very_crop() -> None:
    from kamim_analysis.keypoint_maps import keypoint_map

    encoder = encoders.create("vit_tiny", 64, sizes={"patch_size": 8, "width": 16, "depth": 2, "heads": 2})
    settings = SimMIM(masking="keypoint_high", mask_ratio=0.25)
    data = TrainingSamples(open_pictures("photographs", "train"), settings.view(AUGMENTATION, encoder), seed=0)
    sample = data[(0, 4)][0]
    density = keypoint_map(sample["image"].permute(1, 2, 0).numpy()).reshape(8, 8, 8, 8).mean((1, 3))
    np.testing.assert_allclose(sample["mask_scores"].numpy(), density.flatten(), rtol=1e-6)
    mask = settings.strategy().mask({k: v[None] for k, v in sample.items()}, sample["mask_scores"][None])[0].numpy()
    assert mask.sum() == 16
    assert density[mask].min() >= density[~mask].max()
    assert density[mask].min() > 0  # this crop has more patches with keypoints than are hidden


@pytest.mark.parametrize("setting", ["mask_probability 0.5", "mask_ratio_variation 0.2"])
def test_random_blocks_takes_no_chance_and_no_variation(setting: str, tiny_recipe: Callable[..., Recipe]) -> None:
    name, value = setting.split()
    with pytest.raises(UserError, match="have no part in masking random_blocks"):
        tiny_recipe(f"--objective.{name}", value)
    tiny_recipe(f"--objective.{name}", value, "--objective.masking", "random")


def test_attention_has_no_part_in_other_maskings(build: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="attention_from has no part in masking 'keypoint_high'"):
        build(SimMIM(masking="keypoint_high", attention_from="random:vit_tiny"))


def test_a_model_that_is_not_there_is_refused_at_once(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or directory"):
        tiny_recipe("--objective.masking", "attmask_high", "--objective.attention_from", str(tmp_path / "gone.pth"))
    with pytest.raises(UserError, match=r"attention_momentum is 1.5; it must be between 0 and 1"):
        tiny_recipe("--objective.attention_momentum", "1.5")


def test_kamim_with_weights_of_one_is_simmim_bit_for_bit(
    build: Callable[..., Any], batch_of: Callable[..., Any]
) -> None:
    kamim = KAMIM(mask_unit=8, map_style="points")
    simmim = SimMIM(mask_unit=8)
    batch = batch_of(kamim)
    batch["density"].fill_(0.125)  # the same density everywhere: exp((D - min D) / T) = exp(0) = 1
    losses, gradients = [], []
    for objective in (kamim, simmim):
        module = build(objective)
        loss = module(batch).total
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([weight.grad.flatten() for weight in module.parameters()]))
    assert torch.equal(*losses)
    assert torch.equal(*gradients)


def test_keypoints_raise_the_weight_of_their_pixels(build: Callable[..., Any], batch_of: Callable[..., Any]) -> None:
    kamim = KAMIM(mask_unit=8)
    batch = batch_of(kamim)
    module = build(kamim)
    parts = module(batch).parts
    assert parts["mean_weight"] > 1
    batch["density"].zero_()
    assert module(batch).parts["mean_weight"] == 1
