"""Latent MIM: what each network sees and learns from, schedules, weights, and exact runs."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kamim_analysis.errors import UserError
from kamim_analysis.masked_autoencoder import mae_sincos_positions, visible_and_hidden
from kamim_analysis.opening import load_encoder
from kamim_analysis.shapes import Grid
from kamim_analysis.train.latent_loss import patch_discrimination
from kamim_analysis.train.loop import train
from kamim_analysis.train.masks import masks_of
from kamim_analysis.train.objectives.latent_mim import LatentMIM
from kamim_analysis.train.progress import Progress
from kamim_analysis.train.recipe import Recipe

SMALL = {"visible": 4, "gap": 2, "projector_width": 24, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
ARGUMENTS = [f"--objective.{name}={value}" for name, value in SMALL.items()]
TINY = ["--encoder.patch_size", "8", "--optim.warmup_epochs", "0.5", *ARGUMENTS]
Tiny = Callable[..., Recipe]


@pytest.fixture
def latent(build: Callable[..., Any]) -> Callable[..., Any]:
    """The objective around the tiny ViT of 16 patches, 4 of them visible."""
    return lambda **settings: build(LatentMIM(**SMALL | settings))


@pytest.fixture
def sampled(batch_of: Callable[..., Any]) -> Callable[..., Any]:
    """Four samples of it."""
    return lambda **settings: batch_of(LatentMIM(**SMALL | settings))


def split(objective: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return visible_and_hidden(masks_of(objective.strategy, batch).flatten(1), objective.hidden)


@pytest.mark.parametrize(
    ("masking", "hidden"), [("random", 12), ("keypoint_high", 12), ("keypoint_low", 12), ("keypoint_hint", 11)]
)
def test_exactly_as_many_are_visible(
    masking: str, hidden: int, latent: Callable[..., Any], sampled: Callable[..., Any]
) -> None:
    settings = {"masking": masking, "show_max": 0.125}  # hints: floor(0.125 x 12/16 x 16) = 1
    objective, batch = latent(**settings), sampled(**settings)
    assert objective.hidden == hidden
    assert masks_of(objective.strategy, batch).flatten(1).sum(1).tolist() == [hidden] * 4
    assert torch.isfinite(objective(batch).total)


def test_the_papers_twenty_of_196_are_visible() -> None:
    amount = LatentMIM().amount_of(Grid(14, 14))
    assert int(round(amount.ratio * 196, 9)) == 176
    for visible in range(1, 195):  # of a single hidden patch its loss can tell nothing
        ratio = LatentMIM(visible=visible).amount_of(Grid(14, 14)).ratio
        assert int(round(ratio * 196, 9)) == 196 - visible


def test_the_online_encoder_never_sees_hidden_pixels_nor_the_target_visible_ones(
    latent: Callable[..., Any], sampled: Callable[..., Any]
) -> None:
    objective, batch = latent(), sampled()
    visible, hidden = split(objective, batch)
    images = objective.normalised(batch["image"])
    for shown, at, run in (
        ("visible", visible, lambda x: objective.model.visible_latents(x, visible)),
        ("hidden", hidden, lambda x: objective.model.target_latents(x, hidden, sees_all=False, gradient=False)),
    ):
        kept = torch.zeros(4, 16).scatter(1, at, 1.0).reshape(4, 1, 4, 4)
        kept = kept.repeat_interleave(8, 2).repeat_interleave(8, 3).bool()
        assert torch.equal(run(torch.where(kept, images, torch.randn_like(images))), run(images)), shown
        assert not torch.allclose(run(torch.where(kept, torch.randn_like(images), images)), run(images)), shown


def test_latents_of_visible_patches_are_those_of_a_sequence_cut_by_hand(
    latent: Callable[..., Any], sampled: Callable[..., Any]
) -> None:
    objective, batch = latent(projector_layers=0), sampled()
    visible, hidden = split(objective, batch)
    images, encoder = objective.normalised(batch["image"]), objective.encoder
    embedded = encoder.patch_embed(images) + mae_sincos_positions(16, Grid(4, 4), 0)
    for b in range(4):
        sequence = torch.cat([encoder.cls_token[0], embedded[b, visible[b]]])[None]
        expected = encoder.norm(encoder.blocks(sequence))[0]
        ours = objective.model.visible_latents(images, visible)[b]
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    whole = encoder.forward_features(images)[:, 1:]
    theirs = objective.model.target_latents(images, hidden, sees_all=True, gradient=False)
    torch.testing.assert_close(theirs, torch.stack([whole[b, hidden[b]] for b in range(4)]), rtol=1e-4, atol=1e-5)


def similarity(vectors: Tensor) -> float:
    vectors = vectors.detach().double()
    per_image = [
        sum(float(a @ b / a.norm() / b.norm()) for a in image for b in image) / len(image) ** 2 for image in vectors
    ]
    return sum(per_image) / len(per_image)


def test_the_loss_is_discrimination_and_the_similarity_constraint(
    latent: Callable[..., Any], sampled: Callable[..., Any]
) -> None:
    objective, batch = latent(similarity_weight=0.3), sampled()
    objective.begin_step(Progress(step=5, steps_per_epoch=5, epochs=2))  # half-way: (0.75 + 0.25) / 2
    loss = objective(batch)
    visible, hidden = split(objective, batch)
    images = objective.normalised(batch["image"])
    seen = objective.model.visible_latents(images, visible)
    targets = objective.model.target_latents(images, hidden, sees_all=False, gradient=False)
    predictions = objective.model.decoder(seen, visible, hidden)
    discrimination = float(patch_discrimination(predictions, targets, 0.2).mean().detach())
    constraint = (similarity(predictions) - 0.5) ** 2 + (similarity(seen[:, 1:]) - 0.5) ** 2
    assert float(loss.total.detach()) == pytest.approx(discrimination + 0.3 * constraint, rel=1e-5)
    assert float(loss.parts["patch_discrimination"]) == pytest.approx(discrimination, rel=1e-5)
    assert float(loss.parts["similarity_constraint"]) == pytest.approx(constraint, rel=1e-4)


def gradients(objective: Any, loss: Tensor) -> dict[str, Tensor | None]:
    objective.zero_grad()
    loss.backward()
    return {name: weight.grad for name, weight in objective.model.named_parameters()}


def test_every_online_weight_learns_and_no_target_does(latent: Callable[..., Any], sampled: Callable[..., Any]) -> None:
    objective = latent()
    found = gradients(objective, objective(sampled()).total)
    fixed = {name for name in found if name.startswith("target_") or name.endswith("pos_embed")}
    assert {name for name, gradient in found.items() if gradient is None} == fixed
    assert any(name.startswith("target_projector.") for name in fixed)


def test_only_joint_optimisation_learns_from_the_target(
    latent: Callable[..., Any], sampled: Callable[..., Any]
) -> None:
    totals, found = [], []
    for target in ("momentum", "stop_gradient", "joint"):
        objective = latent(target=target, similarity_weight=0.0)
        assert (objective.model.target_encoder is not None) == (target == "momentum")
        loss = objective(sampled())
        totals.append(loss.total.detach())
        found.append(gradients(objective, loss.total))
    assert torch.equal(totals[0], totals[1])  # the copy begins as the online weights
    assert torch.equal(totals[0], totals[2])
    for name, gradient in found[1].items():
        if gradient is not None:
            assert torch.equal(gradient, found[0][name]), name
            assert torch.equal(gradient, found[2][name]) == name.startswith("decoder."), name


@pytest.mark.parametrize("part", ["encoder.patch_embed.proj.weight", "projector.0.weight"])
def test_targets_come_of_the_copies_alone(part: str, latent: Callable[..., Any], sampled: Callable[..., Any]) -> None:
    objective, batch = latent(), sampled()
    _, hidden = split(objective, batch)
    images = objective.normalised(batch["image"])

    def targets() -> Tensor:
        found: Tensor = objective.model.target_latents(images, hidden, sees_all=False, gradient=False)
        return found

    before = targets()
    torch.nn.init.normal_(objective.model.get_parameter(part))
    assert torch.equal(targets(), before)
    torch.nn.init.normal_(objective.model.get_parameter(f"target_{part}"))
    assert not torch.allclose(targets(), before)


def test_the_target_follows_with_the_cosine_of_the_momentum(latent: Callable[..., Any]) -> None:
    objective = latent(momentum=0.9)
    online, target = objective.model.encoder.norm.weight, objective.model.target_encoder.norm.weight
    projected = objective.model.projector[0].weight, objective.model.target_projector[0].weight
    expected, expected_projected = target.double(), projected[1].double()
    for step in range(6):
        with torch.no_grad():
            online.normal_()
            projected[0].normal_()
        momentum = 1 - 0.5 * (1 + math.cos(math.pi * step / 6)) * (1 - 0.9)
        expected = momentum * expected + (1 - momentum) * online.double()
        expected_projected = momentum * expected_projected + (1 - momentum) * projected[0].double()
        objective.begin_step(Progress(step=step, steps_per_epoch=3, epochs=2))
        target_of_similarity = 0.25 + 0.25 * (1 + math.cos(math.pi * step / 6))
        assert objective.similarity_target == pytest.approx(target_of_similarity, abs=1e-12)
        torch.testing.assert_close(target.double(), expected.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(projected[1].double(), expected_projected.detach(), rtol=1e-5, atol=1e-6)


def test_keypoint_weights_of_one_are_none_bit_for_bit(latent: Callable[..., Any], sampled: Callable[..., Any]) -> None:
    batch = sampled(keypoint_weights=True)
    plain = latent()
    weighted = latent(keypoint_weights=True)
    uneven = weighted(batch).total.detach()
    batch["density"].fill_(0.25)
    losses = [objective(batch) for objective in (plain, weighted)]
    assert torch.equal(losses[0].total, losses[1].total)
    one, other = (gradients(objective, loss.total) for objective, loss in zip((plain, weighted), losses, strict=True))
    assert all(gradient is None or torch.equal(gradient, other[name]) for name, gradient in one.items())
    assert uneven > 1.2 * losses[0].total  # no weight is below one


def test_keypoint_weights_multiply_the_loss_of_their_own_patch(
    latent: Callable[..., Any], sampled: Callable[..., Any]
) -> None:
    objective, batch = (
        latent(keypoint_weights=True, weight_patch=4, similarity_weight=0.0),
        sampled(keypoint_weights=True),
    )
    batch["density"] = torch.rand(4, 8, 8)
    visible, hidden = split(objective, batch)
    images = objective.normalised(batch["image"])
    targets = objective.model.target_latents(images, hidden, sees_all=False, gradient=False)
    predictions = objective.model.decoder(objective.model.visible_latents(images, visible), visible, hidden)
    errors = patch_discrimination(predictions, targets, 0.2).detach()
    total = 0.0
    for b in range(4):
        weights = torch.exp((batch["density"][b] - batch["density"][b].min()) / 0.25)
        for m, patch in enumerate(hidden[b].tolist()):
            row, column = divmod(patch, 4)
            total += float(errors[b, m] * weights[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean())
    assert float(objective(batch).total.detach()) == pytest.approx(total / (4 * 12), rel=1e-5)


# whole runs


def lines(run: Path) -> Iterator[dict[str, float]]:
    return map(json.loads, (run / "metrics.jsonl").read_text().splitlines())


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / (run / "last").read_text().strip() / "model.safetensors")


@pytest.fixture
def recipe(tiny_recipe: Tiny) -> Tiny:
    """A run of Latent MIM in a second."""
    return lambda *overrides: tiny_recipe(*TINY, *overrides, name="latent_mim_photographs")


def test_resuming_in_mid_epoch_gives_the_uninterrupted_runs_weights(recipe: Tiny, tmp_path: Path) -> None:
    train(recipe(), tmp_path / "whole")
    train(recipe("--max_steps", "3"), tmp_path / "parts")
    torch.rand(5)  # whatever else the process drew
    train(recipe(), tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, weight in whole.items():
        assert torch.equal(weight, parts[name]), name
    assert list(lines(tmp_path / "whole"))[-1]["loss"] == list(lines(tmp_path / "parts"))[-1]["loss"]


def test_micro_batches_give_the_same_losses_but_for_the_similarity_constraint(recipe: Tiny, tmp_path: Path) -> None:
    train(recipe("--max_steps", "4", "--objective.similarity_weight", "0"), tmp_path / "one")
    train(
        recipe("--max_steps", "4", "--objective.similarity_weight", "0", "--efficiency.accumulate", "4"), tmp_path / "4"
    )
    train(recipe("--max_steps", "4"), tmp_path / "held")
    train(recipe("--max_steps", "4", "--efficiency.accumulate", "4"), tmp_path / "held4")
    losses = {run.name: [line["loss"] for line in lines(run)] for run in tmp_path.iterdir() if (run / "last").is_file()}
    assert losses["4"] == pytest.approx(losses["one"], rel=1e-5)
    assert losses["held4"] == pytest.approx(losses["held"], rel=1e-2)  # of two pictures each
    assert losses["held"] != pytest.approx(losses["one"], rel=1e-3)


def test_two_processes_give_the_losses_of_one(recipe: Tiny, tmp_path: Path) -> None:
    train(recipe("--max_steps", "3"), tmp_path / "one")
    config = str(tmp_path / "one" / "config.yaml")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command = ["kamim_analysis", "train", "--config", config, "--out", str(tmp_path / "two")]
    subprocess.run([*launch, *command], check=True, capture_output=True, timeout=300)
    for name in ("loss", "similarity_constraint", "gradient_norm"):
        one, two = ([line[name] for line in lines(tmp_path / run)] for run in ("one", "two"))
        assert two == pytest.approx(one, rel=1e-4), name


def test_the_run_and_its_target_open_and_the_control_is_the_initialisation(recipe: Tiny, tmp_path: Path) -> None:
    rates = ["--optim.warmup_learning_rate", "1e-12", "--optim.warmup_epochs", "1"]
    train(recipe("--max_steps", "1", *rates), tmp_path / "begun")
    control = load_encoder(f"random:{tmp_path / 'begun'}").state_dict()
    start = weights(tmp_path / "begun")
    for name, weight in control.items():
        torch.testing.assert_close(weight, start[f"encoder.{name}"], rtol=0, atol=1e-8)
    torch.testing.assert_close(control["pos_embed"], mae_sincos_positions(16, Grid(4, 4)), rtol=0, atol=0)
    train(recipe("--optim.learning_rate", "0.01"), tmp_path / "run")
    found = weights(tmp_path / "run")
    for spec, prefix in (
        ("run", "encoder."),
        ("run/checkpoints/step-00000008/model.safetensors@target_encoder", "target_encoder."),
    ):
        for name, weight in load_encoder(str(tmp_path / spec)).state_dict().items():
            assert torch.equal(weight, found[prefix + name])
    assert not torch.equal(found["encoder.norm.weight"], found["target_encoder.norm.weight"])
    assert torch.equal(found["encoder.pos_embed"], control["pos_embed"])


def test_the_loss_falls(recipe: Tiny, tmp_path: Path) -> None:
    train(
        recipe("--optim.epochs", "20", "--optim.learning_rate", "0.003", "--objective.momentum", "0.99"),
        tmp_path / "run",
    )
    curve = [line["patch_discrimination"] for line in lines(tmp_path / "run")]
    chance = 2 * 0.2 * math.log(12)
    assert sum(curve[:5]) / 5 == pytest.approx(chance, rel=0.1)
    assert sum(curve[-10:]) / 10 < 0.9 * chance


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["masking=attmask_high"], "attmask_high does not suit Latent MIM"),
        (["masking=random_blocks"], "choose one of random, keypoint_high, keypoint_low, keypoint_hint"),
        (["mask_ratio=0.75"], "objective.mask_ratio has no part in Latent MIM; set objective.visible"),
        (["visible=0"], "objective.visible is 0; it must be at least 1"),
        (["momentum=1.5"], "objective.momentum is 1.5; it must be between 0 and 1"),
        (["score_temperature=0"], "objective.score_temperature is 0.0; it must be greater than 0"),
    ],
)
def test_settings_that_no_run_can_have_are_refused(recipe: Tiny, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(*(f"--objective.{override}" for override in overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--objective.visible", "16"], "objective.visible 16 leaves none of 4 x 4 patches to predict"),
        (["--objective.decoder_heads", "3"], "decoder_width 16 must be a multiple of 4 and of decoder_heads, 3"),
        (["--encoder.name", "vit_relpos_small_patch16_224"], "cannot have sin-cos positions"),
    ],
)
def test_what_does_not_fit_the_encoder_is_refused_before_the_run(
    recipe: Tiny, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(recipe(*overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_collapses_says_so_in_the_log_and_the_progress_bar(
    tiny_recipe: Callable[..., Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = (
        "--objective.visible 5 --objective.decoder_width 16 --objective.decoder_depth 1 --objective.decoder_heads 2 "
        "--objective.projector_width 32 --objective.similarity_weight 0 --objective.target joint --objective.loss l2 "
        "--optim.epochs 10 --optim.learning_rate 0.003"
    ).split()
    train(tiny_recipe(*settings, name="latent_mim_photographs"), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    alike = [max(line["target_cosine_between"], line["target_cosine_within"]) > 0.95 for line in lines]
    assert not alike[0]
    assert all(alike[-3:])
    told = [record.getMessage() for record in caplog.records if "targets of" in record.getMessage()]
    assert told[0].startswith(f"step {alike.index(True) + 1}: ")
    assert len(told) == sum(not before and now for before, now in pairwise(alike))
    shown = capsys.readouterr().err
    assert "run" in shown
    assert "collapsed" in shown
