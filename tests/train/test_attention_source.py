"""Whose attention ranks the patches: from cls or from all, of an EMA copy that resumes, of any opened model."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate

import kamim_analysis as ka
from kamim_analysis.encoders import anatomy
from kamim_analysis.errors import UserError
from kamim_analysis.model_spec import parse
from kamim_analysis.opening import open_model
from kamim_analysis.train.attention_source import OpenedAttention, attention_received, attention_scores
from kamim_analysis.train.loop import train
from kamim_analysis.train.masked_objective import MaskedObjective
from kamim_analysis.train.objectives.simmim import SimMIM
from kamim_analysis.train.recipe import Recipe

Tiny = Callable[..., Recipe]
HINT = ("--objective.masking", "attmask_hint", "--objective.mask_ratio_variation", "0.2", "--objective.show_max", "0.5")
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]


def images(pictures: int = 3, size: int = 32) -> Tensor:
    return torch.randint(256, (pictures, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def normalised(pixels: Tensor) -> Tensor:
    return (pixels.float() / 255 - IMAGENET[0]) / IMAGENET[1]


def test_attention_received_by_loop(tiny_vit: Callable[..., Any], tiny_swin: Callable[..., Any]) -> None:
    register = anatomy(tiny_vit(reg_tokens=2))
    without = anatomy(tiny_vit(class_token=False, global_pool="avg"))
    for body, queries, prefix in ((register, [0], 3), (without, range(16), 0), (anatomy(tiny_swin()), range(16), 0)):
        attention = torch.rand(2, 2, 16 + prefix, 16 + prefix).softmax(-1)
        received = attention_received(attention, body)
        for image in range(2):
            for patch in range(16):
                of = [float(attention[image, head, q, prefix + patch]) for head in range(2) for q in queries]
                assert float(received[image, patch]) == pytest.approx(sum(of) / len(of), rel=1e-5)


def test_scores_are_those_of_the_recorder(tiny_vit: Callable[..., Any]) -> None:
    encoder = tiny_vit().train()
    pixels = normalised(images())
    scores = attention_scores(encoder, pixels)
    assert encoder.training
    encoder.eval()
    with ka.record(encoder) as recording:
        encoder(pixels)
    torch.testing.assert_close(scores, recording.attention[3][:, :, 0, 1:].mean(1))
    assert not scores.requires_grad


def test_an_opened_model_scores_as_the_recorder_says_on_its_own_grid(tiny_vit: Callable[..., Any]) -> None:
    """ViT-Ti/16 at 64 px beside an encoder of 8-px patches: 4 x 4 scores become 8 x 8."""
    source = OpenedAttention("random:vit_tiny", anatomy(tiny_vit(64)))
    encoder = ka.load_encoder("random:vit_tiny", image_size=64)
    pixels = images(size=64)
    scores = source(pixels)
    with ka.record(encoder) as recording:
        encoder((pixels.float() / 255 - 0.5) / 0.5)  # the mean and deviation that timm has for this architecture
    map_of_four = recording.attention[12][:, :, 0, 1:].mean(1).reshape(3, 1, 4, 4)
    expected = interpolate(map_of_four, size=(8, 8), mode="bilinear").flatten(1)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-7)
    assert not any(weight.requires_grad for weight in source.parameters())


@pytest.mark.parametrize(("size", "expected"), [(64, 70), (32, 28), (56, 56), (6, 14)])
def test_a_model_whose_patches_do_not_tile_the_crop_sees_the_nearest_size_that_they_do(
    size: int, expected: int, tmp_path: Path, tiny_vit: Callable[..., Any]
) -> None:
    from kamim_analysis import encoders
    from kamim_analysis.weights_file import write_state

    encoder = encoders.create("vit_tiny", 42, sizes={"patch_size": 14, "width": 16, "depth": 1, "heads": 2})
    path = tmp_path / "fourteen.safetensors"
    write_state(path, encoder.state_dict(), {"architecture": encoder.architecture, "model_args": encoder.model_args})
    trained = anatomy(encoders.create("vit_tiny", size, sizes={"patch_size": size // 2, "width": 12, "depth": 1}))
    source = OpenedAttention(str(path), trained)
    assert anatomy(source.encoder).image_size == (expected, expected)
    scores = source(images(2, size))
    assert scores.shape == (2, 4)
    resized = interpolate(images(2, size).float(), size=(expected, expected), mode="bilinear", antialias=True)
    own = attention_scores(open_model(parse(str(path)), expected).encoder, normalised(resized))
    grid = expected // 14
    torch.testing.assert_close(
        scores,
        interpolate(own.reshape(2, 1, grid, grid), size=(2, 2), mode="bilinear", antialias=True).flatten(1),
    )


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / (run / "last").read_text().strip() / "model.safetensors")


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_copy_follows_by_a_momentum_that_rises_to_one(tiny_recipe: Tiny, tmp_path: Path) -> None:
    """Four checkpoints of a run of eight steps: m = 1 - 0.1 (1 + cos(pi k / 8)) / 2 at step k."""
    options = ["--checkpoint_every", "1", "--keep_checkpoints", "8", "--objective.attention_momentum", "0.9"]
    train(tiny_recipe(*HINT, *options), tmp_path / "run")
    states = [load_file(f) for f in sorted((tmp_path / "run" / "checkpoints").glob("*/model.safetensors"))]
    names = [name.removeprefix("attention_encoder.") for name in states[0] if name.startswith("attention_encoder.")]
    assert {f"encoder.{name}" for name in names} == {name for name in states[0] if name.startswith("encoder.")}
    for k in range(1, 8):
        momentum = 1 - 0.1 * (1 + torch.tensor(torch.pi * k / 8, dtype=torch.float64).cos()) / 2
        for name in names:
            before, now, after = (
                states[k - 1][f"attention_encoder.{name}"].double(),
                states[k][f"encoder.{name}"].double(),
                states[k][f"attention_encoder.{name}"].double(),
            )
            torch.testing.assert_close(after, momentum * before + (1 - momentum) * now, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("masking", ["attmask_hint", "keypoint_hint"])
@pytest.mark.parametrize("name", ["kamim_photographs", "simmim_photographs"])
def test_resuming_gives_the_uninterrupted_run_s_weights(
    masking: str, name: str, tiny_recipe: Tiny, tmp_path: Path
) -> None:
    options = [*HINT, "--objective.masking", masking, "--encoder.drop_path", "0.3"]
    train(tiny_recipe(*options, name=name), tmp_path / "whole")
    train(tiny_recipe(*options, "--max_steps", "3", name=name), tmp_path / "parts")
    torch.rand(5)
    train(tiny_recipe(*options, name=name), tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert any(key.startswith("attention_encoder.") for key in whole) == (masking == "attmask_hint")


#: trains each recipe file in the directory named after it, in every process of one launch
LAUNCHED = """
import sys
from pathlib import Path
from kamim_analysis.train.loop import train
from kamim_analysis.train.settings import load_recipe
for config in map(Path, sys.argv[1:]):
    train(load_recipe(config), config.with_suffix(""))
"""


def test_processes_and_micro_batches_give_the_losses_of_one(tiny_recipe: Tiny, tmp_path: Path) -> None:
    configs = {}
    for masking in ("attmask_hint", "keypoint_hint"):
        options = [*HINT, "--objective.mask_probability", "0.7", "--objective.masking", masking, "--max_steps", "4"]
        one, four = tmp_path / f"{masking}_one", tmp_path / f"{masking}_four"
        train(tiny_recipe(*options), one)
        train(tiny_recipe(*options, "--efficiency.accumulate", "4"), four)
        assert losses(four) == pytest.approx(losses(one), rel=1e-5)
        configs[masking] = tmp_path / f"{masking}_two.yaml"
        configs[masking].write_text((one / "config.yaml").read_text())
    (tmp_path / "launched.py").write_text(LAUNCHED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(tmp_path / "launched.py"), *map(str, configs.values())]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    for masking in configs:
        assert losses(tmp_path / f"{masking}_two") == pytest.approx(losses(tmp_path / f"{masking}_one"), rel=1e-5)


def test_a_run_with_a_copy_opens_and_reconstructs(tiny_recipe: Tiny, tmp_path: Path) -> None:
    train(tiny_recipe(*HINT, "--max_steps", "2"), tmp_path / "run")
    opened = open_model(parse(str(tmp_path / "run")))
    state = weights(tmp_path / "run")
    for name, weight in opened.encoder.state_dict().items():
        assert torch.equal(weight, state[f"encoder.{name}"]), name
    assert opened.masked_model is not None
    assert opened.masking.unit == 16
    shown = opened.transform(Image.new("RGB", (32, 32)))[None]
    assert opened.masked_model(shown, torch.ones(1, 4, 4, dtype=torch.bool)).shape == (1, 3, 32, 32)


def test_a_run_goes_on_with_the_very_model_that_it_takes_attention_from(
    tiny_recipe: Tiny, tmp_path: Path, model: Path
) -> None:
    options = [*HINT, "--objective.attention_from", str(model)]
    train(tiny_recipe(*options), tmp_path / "whole")
    train(tiny_recipe(*options, "--max_steps", "3"), tmp_path / "run")
    assert not any(key.startswith("attention_encoder.") for key in weights(tmp_path / "run"))
    state = load_file(model)
    held = {"kamim": _metadata(model)}
    state["cls_token"] += 1
    changed = tmp_path / "model.changed"
    original = model.read_bytes()
    save_file(state, changed, metadata=held["kamim"])
    model.write_bytes(changed.read_bytes())
    with pytest.raises(UserError, match=r"the weights of model .* are not those that run .* takes attention from"):
        train(tiny_recipe(*options), tmp_path / "run")
    model.write_bytes(original)
    train(tiny_recipe(*options), tmp_path / "run")
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_attention_of_the_opened_model_decides_the_mask(model: Path, build: Callable[..., Any]) -> None:
    module: MaskedObjective = build(SimMIM(masking="attmask_high", mask_ratio=0.25, attention_from=str(model)))
    pixels = images(4)
    drawn = [module.strategy.draw(anatomy(module.encoder).blocks[-1].grid, 8, module.settings.amount()) for _ in "1234"]
    batch = {key: torch.stack([one[key] for one in drawn]) for key in drawn[0]} | {"image": pixels}
    masks = []
    module.model.register_forward_pre_hook(lambda _module, inputs: masks.append(inputs[1].flatten(1)))
    module(batch)
    encoder = ka.load_encoder(str(model))
    with ka.record(encoder) as recording:
        encoder(normalised(pixels))
    highest = recording.attention[3][:, :, 0, 1:].mean(1).argsort(dim=1, descending=True)[:, :4]
    assert torch.equal(masks[0].nonzero()[:, 1].reshape(4, 4), highest.sort(dim=1).values)
