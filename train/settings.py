"""Recipes from YAML and the command line, and back. Imports no torch, so a mistake is refused at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from kamim_analysis import plugins
from kamim_analysis.errors import UserError
from kamim_analysis.keypoints._detector import Detector

from .objectives._objective import Objective
from .recipe import FREE_TO_CHANGE, Recipe

RECIPES = Path(__file__).with_name("recipes")
# settings whose value is one of several classes: jsonargparse resolves a short name once its class is imported
_CHOICES = {"objective": "kamim_analysis.train.objectives", "detector": "kamim_analysis.keypoints"}


def recipe_names() -> list[str]:
    """The shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The YAML of a shipped recipe. Raises UserError for an unknown one."""
    return RECIPES / f"{plugins.check(name, recipe_names(), 'recipe')}.yaml"


def recipe_parser() -> ArgumentParser:
    """A parser of `--config FILE` and dotted overrides, one option for each field of `Recipe`."""
    for package in _CHOICES.values():
        plugins.load_all(package)
    parser = ArgumentParser(prog="kamim train", exit_on_error=False, add_help=False)
    parser.add_argument("--config", action="config", help="a recipe file; options override it in their order")
    parser.add_class_arguments(Recipe, None)
    return parser


def parse_recipe(arguments: Sequence[str]) -> Recipe:
    """A recipe from command-line arguments. Raises UserError with one line for a mistake."""
    parser = recipe_parser()
    try:
        settings = vars(parser.instantiate(parser.parse_args(list(arguments))))
        recipe = Recipe(**{name: value for name, value in settings.items() if name != "config"})
    except (ArgumentError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(_one_line(str(error))) from error
    check(recipe)
    return recipe


def load_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file."""
    return parse_recipe(["--config", str(path)])


def check(recipe: Recipe) -> None:
    """Refuse numbers that no run can have, before anything is built. Raises UserError."""
    for name, value in flatten(recipe).items():
        leaf = name.rsplit(".", 1)[-1]
        if leaf in _POSITIVE and value is not None and not value > 0:
            raise UserError(f"{name} is {value}; it must be greater than 0")
    if recipe.optim.warmup_epochs >= recipe.optim.epochs:
        raise UserError(
            f"optim.warmup_epochs {recipe.optim.warmup_epochs} is not less than optim.epochs {recipe.optim.epochs}"
        )
    if recipe.optim.weight_decay_end is not None and not recipe.optim.weight_decay > 0:
        raise UserError(f"optim.weight_decay is {recipe.optim.weight_decay}; with weight_decay_end it must be above 0")
    if not 0 <= recipe.encoder.drop_path < 1:
        raise UserError(f"encoder.drop_path is {recipe.encoder.drop_path}; it must be at least 0 and less than 1")
    recipe.objective.check(recipe)
    size = recipe.encoder.image_size
    for name, cell in _cells(recipe).items():
        if cell is not None and size is not None and size % cell:
            raise UserError(
                f"{name} {cell} does not divide encoder.image_size {size}; choose sizes of which one divides the other"
            )


_POSITIVE = (
    "batch_size epochs learning_rate temperature weight_patch mask_unit mask_ratio image_size patch_size width depth "
    "heads accumulate checkpoint_every log_every clip_norm max_steps"
).split()


def _cells(recipe: Recipe) -> dict[str, int | None]:
    """Sizes in pixels that must divide the image."""
    names = ("mask_unit", "weight_patch")
    cells = {f"objective.{name}": getattr(recipe.objective, name, None) for name in names}
    return cells | {"encoder.patch_size": recipe.encoder.patch_size}


def as_dict(value: Any) -> Any:
    """A settings dataclass as plain data; one that was chosen among several classes keeps its class's name."""
    if not is_dataclass(value):
        return list(value) if isinstance(value, tuple) else value
    settings = {field.name: as_dict(getattr(value, field.name)) for field in fields(value)}
    chosen = isinstance(value, Objective | Detector)
    return {"class_path": type(value).__name__, "init_args": settings} if chosen else settings


def as_yaml(recipe: Recipe) -> str:
    """The complete recipe, reloadable."""
    text: str = yaml.safe_dump(as_dict(recipe), sort_keys=False)
    return text


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Every setting by its dotted name."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        inner = {f"{prefix}.{key}" if prefix else key: v for key, v in value.items()}
        return {name: leaf for key, v in inner.items() for name, leaf in walk(key, v).items()}

    return {name.replace(".init_args", ""): value for name, value in walk("", as_dict(recipe)).items()}


def differences(old: Recipe, new: Recipe) -> list[str]:
    """What a resumed run would change, one `name: old -> new` each, settings free to change left out."""
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not name.startswith(FREE_TO_CHANGE)
    ]


def _one_line(message: str) -> str:
    """jsonargparse's message on one line, with the choices where a class's name is unknown."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    line = re.sub(r"<class '(\w+)'>", r"\1", line)
    line = re.sub(r"Problem with given class_path '[\w.]*?(\w+)':", r"\1:", line)
    unknown = re.search(r'Parser key "(\w+)": Expected a dot import path string: (\S+)', line)
    if unknown and unknown[1] in _CHOICES:
        package = _CHOICES[unknown[1]]
        return f"unknown {unknown[1]} {unknown[2]!r}; there are: {', '.join(_class_names(package))}"
    return line


def _class_names(package: str) -> list[str]:
    """The classes that the plug-ins of a package define."""
    return [
        name
        for plugin, module in plugins.load_all(package).items()
        for name, value in vars(module).items()
        if isinstance(value, type) and name.lower() == plugin.replace("_", "")
    ]
