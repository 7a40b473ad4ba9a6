"""The shipped recipes: the papers' settings and numbers, what they inherit, what they cost."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kamim_analysis.cli import main
from kamim_analysis.data import open_pictures
from kamim_analysis.errors import UserError
from kamim_analysis.train.cost import flops_of_picture
from kamim_analysis.train.pictures_seen import pictures_seen
from kamim_analysis.train.recipe_files import laid_over, read, recipe_names, recipe_path
from kamim_analysis.train.samples import Order, TrainingSamples, load_samples
from kamim_analysis.train.settings import as_dict, flatten, load_recipe, parse_recipe, recipe_parser
from kamim_analysis.train.views import Augmentation

# name: (encoder, data, linear probe, fine-tuning), KAMIM's Tables 1 to 4
KAMIM_TABLES = {
    "simmim_vit_t16_in1k": ("vit_tiny", "imagenet", 12.37, 70.49),
    "kamim_vit_t16_in1k": ("vit_tiny", "imagenet", 13.75, 70.41),
    "simmim_vit_s16_in1k": ("vit_small", "imagenet", 20.99, 76.8),
    "kamim_vit_s16_in1k": ("vit_small", "imagenet", 22.68, 77.02),
    "simmim_vit_b16_in1k": ("vit_base", "imagenet", 16.12, 76.78),
    "kamim_vit_b16_in1k": ("vit_base", "imagenet", 33.97, 77.30),
    "simmim_swin_t_in1k": ("swin_tiny", "imagenet", 14.37, 77.94),
    "kamim_swin_t_in1k": ("swin_tiny", "imagenet", 14.53, 78.12),
    "simmim_swin_b_in1k": ("swin_base", "imagenet", 20.42, 79.58),
    "kamim_swin_b_in1k": ("swin_base", "imagenet", 18.16, 80.02),
    "kamim_vit_b16_in1k_w8_t0.1": ("vit_base", "imagenet", 32.97, 77.59),
    "kamim_vit_b16_in1k_w8_t0.5": ("vit_base", "imagenet", 31.95, 77.11),
    "kamim_vit_b16_in1k_w8_t1": ("vit_base", "imagenet", 23.93, 76.94),
    "kamim_vit_b16_in1k_w16_t0.1": ("vit_base", "imagenet", 31.38, 77.43),
    "kamim_vit_b16_in1k_w16_t0.25": ("vit_base", "imagenet", 33.05, 77.48),
    "kamim_vit_b16_in1k_w16_t0.5": ("vit_base", "imagenet", 30.82, 77.06),
    "kamim_vit_b16_in1k_w16_t1": ("vit_base", "imagenet", 29.51, 77.13),
    "kamim_vit_b16_in1k_w32_t0.1": ("vit_base", "imagenet", 25.71, 77.09),
    "kamim_vit_b16_in1k_w32_t0.25": ("vit_base", "imagenet", 31.73, 77.41),
    "kamim_vit_b16_in1k_w32_t0.5": ("vit_base", "imagenet", 30.91, 77.41),
    "kamim_vit_b16_in1k_w32_t1": ("vit_base", "imagenet", 25.73, 77.18),
    "simmim_vit_b16_inat21": ("vit_base", "inaturalist", 6.92, 79.8),
    "kamim_vit_b16_inat21": ("vit_base", "inaturalist", 17.60, 80.48),
    "simmim_vit_b16_places365": ("vit_base", "places365", 26.04, 53.2),
    "kamim_vit_b16_places365": ("vit_base", "places365", 40.47, 53.03),
    "simmim_vit_b16_cifar10": ("vit_base", "cifar10", 62.83, 94.13),
    "kamim_vit_b16_cifar10": ("vit_base", "cifar10", 59.01, 94.12),
    "simmim_vit_b16_cifar100": ("vit_base", "cifar100", 37.46, 78.92),
    "kamim_vit_b16_cifar100": ("vit_base", "cifar100", 35.67, 77.26),
    "kamim_vit_b16_in1k_sift": ("vit_base", "imagenet", 31.31, 77.37),
    "kamim_vit_b16_in1k_orb": ("vit_base", "imagenet", 32.36, 77.17),
}
# name: (masking, pictures of a class, k-NN, linear), AttMask's tables
ATTMASK_TABLES = {
    "ibot_vit_s16_in1k": ("block", None, 71.5, 74.4),
    "attmask_high_vit_s16_in1k": ("attmask_high", None, 72.5, 75.7),
    "attmask_hint_vit_s16_in1k": ("attmask_hint", None, 72.8, 76.1),
    "attmask_high_vit_s16_in1k_300e": ("attmask_high", None, 75.0, 77.5),
    "ibot_vit_s16_in1k_20": ("block", 260, 46.7, 56.4),
    "ibot_random75_vit_s16_in1k_20": ("random", 260, 47.3, 55.5),
    "ibot_random_vit_s16_in1k_20": ("random", 260, 47.8, 56.7),
    "attmask_low_vit_s16_in1k_20": ("attmask_low", 260, 44.0, 53.4),
    "attmask_hint_vit_s16_in1k_20": ("attmask_hint", 260, 49.5, 57.5),
    "attmask_high_vit_s16_in1k_20": ("attmask_high", 260, 49.7, 57.9),
    "ibot_vit_s16_in1k_5": ("block", 65, 15.7, None),
    "ibot_vit_s16_in1k_10": ("block", 130, 31.9, None),
    "attmask_high_vit_s16_in1k_5": ("attmask_high", 65, 17.5, None),
    "attmask_high_vit_s16_in1k_10": ("attmask_high", 130, 33.8, None),
}
KAMIM_OPTIM = {"batch_size": 2048, "epochs": 100, "warmup_epochs": 10, "learning_rate": 8e-4, "clip_norm": 1.0}
MAE_OPTIM = {"batch_size": 4096, "warmup_epochs": 40, "learning_rate": 1.5e-4 * 16, "betas": (0.9, 0.95)}


def settings_of(name: str) -> dict[str, Any]:
    """Every setting by its dotted name."""
    flat: dict[str, Any] = flatten(load_recipe(recipe_path(name)))
    return flat


def has(settings: dict[str, Any], group: str, expected: dict[str, Any]) -> None:
    found = {name: settings[f"{group}.{name}"] for name in expected}
    assert found == {name: list(v) if isinstance(v, tuple) else pytest.approx(v) for name, v in expected.items()}


@pytest.mark.parametrize("name", KAMIM_TABLES)
def test_kamims_cells_have_the_papers_settings_and_numbers(name: str) -> None:
    encoder, data, probed, tuned = KAMIM_TABLES[name]
    settings, about = settings_of(name), read(recipe_path(name)).about
    assert (about.reported["linear_probe"], about.reported["fine_tuning"]) == (probed, tuned)
    assert about.paper == "KAMIM, arXiv 2407.13873"
    assert (settings["encoder.name"], settings["data.source"]) == (encoder, f"torch/{data}")
    assert settings["encoder.image_size"] == 192
    has(settings, "optim", KAMIM_OPTIM | {"weight_decay": 0.05, "betas": (0.9, 0.999)})
    has(settings, "objective", {"mask_unit": 32, "mask_ratio": 0.6})
    has(settings, "data", {"crop_scale": (0.67, 1.0), "vertical_flip": 0.5, "antialias": False})
    method, *rest = name.split("_in1k")
    assert settings["objective.class_path"] == ("SimMIM" if method.startswith("simmim") else "KAMIM")
    if method.startswith("kamim"):
        cell = (rest or [""])[0].split("_t")
        patch, temperature = (int(cell[0][2:]), float(cell[1])) if len(cell) == 2 else (8, 0.25)
        detector = {"_sift": "SIFT", "_orb": "ORB"}.get(cell[0], "FAST")
        has(settings, "objective", {"weight_patch": patch, "temperature": temperature, "map_style": "drawn"})
        assert settings["objective.detector.class_path"] == detector


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("simmim_vit_b16_in1k", (20.51, 61.65, 97.03, 36.49, 84.58, 12.058, 0.1095)),
        ("kamim_vit_b16_in1k", (37.72, 72.63, 97.43, 51.77, 85.07, 12.063, 0.1076)),
    ],
)
def test_vit_b_has_the_numbers_of_tables_3_and_5_and_of_reconstruction(name: str, expected: tuple[float, ...]) -> None:
    cifar = [f"{how}_cifar{n}" for n in (10, 100) for how in ("linear_probe", "fine_tuning")]
    keys = ["linear_probe_layernorm", *cifar, "psnr_reference", "ssim_reference"]
    reported = read(recipe_path(name)).about.reported
    assert tuple(reported[key] for key in keys) == expected


@pytest.mark.parametrize("name", ATTMASK_TABLES)
def test_attmasks_rows_have_the_papers_settings_and_numbers(name: str) -> None:
    masking, per_class, knn, probed = ATTMASK_TABLES[name]
    settings, about = settings_of(name), read(recipe_path(name)).about
    assert (about.reported["knn"], about.reported.get("linear_probe")) == (knn, probed)
    long = name.endswith("300e")
    batch = 800 if long else 240
    rates = {"learning_rate": 5e-4 * batch / 256, "min_learning_rate": 1e-6, "warmup_learning_rate": 0.0}
    has(settings, "optim", rates | {"batch_size": batch, "epochs": 300 if long else 100, "warmup_epochs": 10})
    has(settings, "optim", {"weight_decay": 0.04, "weight_decay_end": 0.4, "decay_biases_and_norms": False})
    has(settings, "optim", {"clip_norm": 3.0, "clip_by": "weight"})
    has(settings, "encoder", {"name": "vit_small", "image_size": 224, "drop_path": 0.1})
    ratio, variation, probability = (0.75, 0.0, 1.0) if "random75" in name else (0.3, 0.2, 0.5)
    has(settings, "objective", {"masking": masking, "mask_ratio": ratio, "mask_ratio_variation": variation})
    has(settings, "objective", {"mask_probability": probability, "head_outputs": 8192, "norm_last_layer": False})
    has(settings, "objective", {"cls_temperature": (0.04, 0.07), "temperature_epochs": 30, "show_max": 0.1})
    momentum, crops = (0.996, 10) if per_class is None else (0.99, 6)
    has(settings, "objective", {"momentum": momentum, "local_crops": crops, "local_size": 96})
    edge = 0.32 if long else 0.25
    has(settings, "objective", {"local_scale": (0.05, edge)})
    has(settings, "data", {"crop_scale": (edge, 1.0), "vertical_flip": 0.0, "interpolation": "bicubic"})
    assert (settings["data.source"], settings["data.per_class"]) == ("torch/imagenet", per_class)


def test_few_shot_numbers_of_attmask() -> None:
    for name, expected in (
        ("ibot", (32.9, 47.6, 52.5, 56.4)),
        ("attmask_high", (37.1, 51.3, 55.7, 59.1)),
        ("attmask_hint", (37.6, 52.2, 56.4, 59.6)),
    ):
        reported = read(recipe_path(f"{name}_vit_s16_in1k")).about.reported
        assert tuple(reported[f"few_shot_{v}"] for v in (1, 5, 10, 20)) == expected


def test_latent_mim_and_its_ablations() -> None:
    settings = settings_of("latent_mim_vit_b16_in1k")
    has(settings, "optim", MAE_OPTIM | {"epochs": 800, "min_learning_rate": 0.25 * 2.4e-3, "weight_decay": 0.05})
    has(settings, "objective", {"visible": 20, "gap": 4, "momentum": 0.99, "score_temperature": 0.2})
    has(settings, "objective", {"similarity_weight": 0.1, "similarity_start": 0.75, "similarity_end": 0.25})
    has(settings, "objective", {"decoder_width": 512, "decoder_depth": 3})
    has(settings, "data", {"crop_scale": (0.2, 1.0), "vertical_flip": 0.0, "interpolation": "bicubic"})
    reported = read(recipe_path("latent_mim_vit_b16_in1k")).about.reported
    assert reported == {"nearest_neighbour": 50.1, "linear_probe": 72.0, "fine_tuning": 83.0}
    for ablation, change in {
        "joint": ("objective.target", "joint"),
        "stopgrad": ("objective.target", "stop_gradient"),
        "l1": ("objective.loss", "l1"),
        "l2": ("objective.loss", "l2"),
        "no_gap": ("objective.gap", 0),
    }.items():
        assert settings_of(f"latent_mim_vit_b16_in1k_{ablation}") == settings | dict([change])
        assert not read(recipe_path(f"latent_mim_vit_b16_in1k_{ablation}")).about.reported


def test_mae() -> None:
    settings = settings_of("mae_vit_b16_in1k")
    has(settings, "optim", MAE_OPTIM | {"epochs": 1600, "min_learning_rate": 0.0, "weight_decay": 0.05})
    has(settings, "objective", {"mask_ratio": 0.75, "normalised_patches": True, "decoder_width": 512})
    has(settings, "encoder", {"name": "vit_base", "image_size": 224})
    assert read(recipe_path("mae_vit_b16_in1k")).about.reported == {"linear_probe": 68.0, "fine_tuning": 83.6}
    assert settings_of("mae_vit_b16_in1k_800e") == settings | {"optim.epochs": 800}


def leaves(value: Any, *above: str) -> Iterator[tuple[str, ...]]:
    """Where every value of nested mappings stands."""
    for key, inner in value.items():
        yield from leaves(inner, *above, key) if isinstance(inner, dict) else [(*above, key)]


@pytest.mark.parametrize("name", [name for name in recipe_names() if read(recipe_path(name)).bases])
def test_no_recipe_repeats_its_base(name: str) -> None:
    own: dict[str, Any] = yaml.safe_load(recipe_path(name).read_text())
    base, about = read(recipe_path(own.pop("base"))), own.pop("about")
    whole = laid_over(base.settings, own)
    for *groups, last in leaves(own):
        less = deepcopy(own)
        inner = less
        for group in groups:
            inner = inner[group]
        del inner[last]
        assert laid_over(base.settings, less) != whole, f"{'.'.join([*groups, last])} is the base's"
    assert about.get("paper", "") != base.about.paper
    assert not about.get("evaluate", {}).items() & base.about.evaluate.items()


@pytest.mark.parametrize("name", recipe_names())
def test_every_number_of_a_paper_has_its_command(name: str) -> None:
    about = read(recipe_path(name)).about
    assert set(about.reported) <= set(about.evaluate)
    assert bool(about.paper) == bool(about.cell)


COMMANDS = sorted({command for name in recipe_names() for command in read(recipe_path(name)).about.evaluate.values()})


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_understood(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command.replace("DATA ", "nowhere ").replace("RUN_", f"{tmp_path}/").replace("RUN ", "random:vit_tiny ")
    program, *arguments = words.split()
    assert program == "kamim"
    with pytest.raises(SystemExit) as left:  # all that is wrong with them is that there are no such data
        main(arguments)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "no data at 'nowhere'" in error or "in DIR = 'CIFAR" in error


def test_every_recipe_is_listed_with_the_papers_result(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert set(recipe_names()) <= set(rows)
    assert rows["kamim_swin_b_in1k"] == ["KAMIM", "swin_base", "imagenet", "100", "128M", "8.7e18", "18.16", "80.02"]
    assert rows["attmask_high_vit_s16_in1k_5"][2:] == ["imagenet:65", "100", "6.48M", "7.3e17", "17.50", "-"]


def test_a_printed_recipe_is_yaml_after_its_numbers_and_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["recipes", "kamim_vit_b16_cifar10"])
    text = capsys.readouterr().out
    (tmp_path / "own.yaml").write_text(text)
    assert load_recipe(tmp_path / "own.yaml") == load_recipe(recipe_path("kamim_vit_b16_cifar10"))
    assert "# KAMIM, arXiv 2407.13873: Table 3, KAMIM pretrained on CIFAR-10\n" in text
    assert "59.01   kamim probe RUN --data torch/cifar10 --data_root ROOT --out RUN_probe\n" in text
    # 24 steps of 2048 in each of 100 epochs, 77 GFLOP each
    assert "# The run sees 4.92M pictures and takes 3.8e17 FLOP.\n" in text


def test_pictures_seen() -> None:
    def seen(name: str, *overrides: str) -> int | None:
        return pictures_seen(parse_recipe(["--config", str(recipe_path(name)), *overrides]))

    assert seen("simmim_vit_b16_in1k") == 100 * (1_281_167 // 2048) * 2048
    assert seen("attmask_high_vit_s16_in1k_20") == 100 * (260_000 // 240) * 240
    order = Order(length=len(open_pictures("photographs", "train")), batch_size=32, seed=0)
    assert seen("kamim_photographs", "--optim.epochs", "3") == 3 * 32 * order.steps_per_epoch
    assert seen("kamim_photographs", "--data.source", ".") is None


def vit_flop(tokens: int, width: int, depth: int, patch: int, output: int) -> float:
    """Of a ViT with one cls token and a linear layer from each patch to `output` numbers, forward and backward: every
    product has two gradients, of its weights and of its input, but the pixels need none."""
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    patches = tokens - 1
    embedding = patches * 3 * patch**2 * width
    return 2.0 * (3 * (depth * block + patches * width * output) + 2 * embedding)


def test_flop_of_vits_are_those_of_the_closed_form() -> None:
    paper = load_recipe(recipe_path("kamim_vit_b16_in1k"))
    assert flops_of_picture(paper) == pytest.approx(vit_flop(145, 768, 12, 16, 768), rel=0.02)
    tiny = "--encoder.name vit_tiny --encoder.width 48 --encoder.depth 2 --encoder.patch_size 8".split()
    small = parse_recipe(["--config", str(recipe_path("simmim_photographs")), *tiny])
    assert flops_of_picture(small) == pytest.approx(vit_flop(65, 48, 2, 8, 3 * 8**2), rel=0.002)


def costs() -> dict[str, str]:
    """A shipped recipe for each that costs what no other does: detector and weights cost nothing in a pass."""
    parser, found = recipe_parser(), {}
    for name in recipe_names():
        recipe = load_recipe(recipe_path(name), parser)
        objective = as_dict(recipe.objective)
        for free in ("detector", "map_style", "weight_patch", "temperature"):
            objective["init_args"].pop(free, None)
        if recipe.encoder.name is not None:
            found[repr((objective, recipe.encoder, read(recipe_path(name)).about.gflop))] = name
    return {name: key for key, name in found.items()}


@pytest.mark.parametrize("name", costs())
def test_a_recipe_tells_what_a_picture_costs(name: str) -> None:
    # AttMask's masks differ from picture to picture, and with them what its head is given
    told = read(recipe_path(name)).about.gflop
    assert flops_of_picture(load_recipe(recipe_path(name))) == pytest.approx(1e9 * told, rel=0.03)


@pytest.mark.parametrize("name", ["simmim_photographs", "attmask_photographs", "latent_mim_photographs"])
def test_flop_are_counted_without_computing(name: str) -> None:
    """Against the same count around passes that compute."""
    recipe = load_recipe(recipe_path(name))
    start = recipe.objective.start(recipe)
    module = recipe.objective.build(start)
    view = recipe.objective.view(Augmentation.of(recipe.data), module.encoder)
    order = Order(length=len(start.pictures), batch_size=4, seed=recipe.seed)
    batch, _failed = next(load_samples(TrainingSamples(start.pictures, view, recipe.seed), order, workers=0, pin=False))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(batch).total.backward()
    before = torch.random.get_rng_state()
    assert flops_of_picture(recipe) == counter.get_total_flops() / 4
    assert torch.equal(torch.random.get_rng_state(), before)


def test_all_recipes_share_a_parser() -> None:
    parser = recipe_parser()
    assert load_recipe(recipe_path("mae_photographs"), parser) == load_recipe(recipe_path("mae_photographs"))
    with pytest.raises(UserError, match="unknown recipe 'kamim_vit_b16'; did you mean 'kamim_vit_b16"):
        recipe_path("kamim_vit_b16")
