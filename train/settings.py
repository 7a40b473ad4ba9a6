"""Recipes from YAML and the command line, and back. Imports no torch, so a mistake is refused at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from kamim_analysis import plugins
from kamim_analysis.errors import UserError
from kamim_analysis.keypoints._detector import Detector
from kamim_analysis.plain_data import yaml_of

from .objectives._objective import Objective
from .recipe import FREE_TO_CHANGE, Recipe
from .recipe_files import CHOICES, chosen_class, laid_over, read, recipe_names, recipe_path

__all__ = [
    "as_dict",
    "as_yaml",
    "check",
    "differences",
    "flatten",
    "load_recipe",
    "parse_recipe",
    "recipe_names",
    "recipe_parser",
    "recipe_path",
]


_MISTAKES = (ArgumentError, TypeError, ValueError, yaml.YAMLError)
#: options that choose a class, and where it stands in a recipe
_CHOOSING = {"--objective": ("objective",), "--objective.detector": ("objective", "init_args", "detector")}
_TAKEN = ("--config", *_CHOOSING)
#: where a class may be named: what jsonargparse imports, it executes
_NAMING = ("class_path", "help", *CHOICES)


def _check_names(settings: dict[str, Any]) -> None:
    """Raise ValueError for a name that no recipe has; jsonargparse would not say what is near."""
    known = {"": [one.name for one in fields(Recipe)]}
    for one in fields(Recipe):
        group: Any = one.default_factory
        if is_dataclass(group):
            known[one.name] = [setting.name for setting in fields(group)]
    for group, given in {"": settings, **settings}.items():
        for name in given if group in known and isinstance(given, dict) else ():
            if name not in known[group]:
                near = plugins.nearest(name, known[group])
                there = f"did you mean {near!r}?" if near else f"there are: {', '.join(known[group])}"
                raise ValueError(f"no setting {f'{group}.{name}' if group else name!r}; {there}")


def _check_classes(name: str, value: Any) -> None:
    """Raise ValueError for a class that no plug-in defines, wherever in the value of setting `name` it stands.

    jsonargparse imports the module of any class that is named to it, which executes that module, before it looks
    whether the class fits.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_classes(str(key), inner)
    elif isinstance(value, list):
        for inner in value:
            _check_classes("", inner)
    elif isinstance(value, str) and name in _NAMING:
        module, _, last = value.rpartition(".")
        ours = not module or module.startswith("kamim_analysis.")
        if not ours or (module and all(chosen_class(last, package) is object for package in CHOICES.values())):
            raise ValueError(
                f"no class {value!r} among the objectives and detectors of this package; give its name alone"
            )


def _check_overrides(overrides: Sequence[str]) -> None:
    """Likewise for what is left of a command line, or of a sweep's file: `--NAME VALUE`, `--NAME=VALUE`."""
    words = [part for word in overrides for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for name, value in pairwise(words):
        leaf = name.rsplit(".", 1)[-1].removeprefix("--").rstrip("+")
        if name.startswith("--"):
            _check_classes(leaf, yaml_of(value) if leaf in ("objective", "detector", "init_args") else value)


def recipe_parser() -> ArgumentParser:
    """A parser of `--config YAML` and dotted overrides, one option for each field of `Recipe`."""
    for package in CHOICES.values():  # jsonargparse resolves a short name once its class is imported
        plugins.load_all(package)
    parser = ArgumentParser(prog="kamim train", exit_on_error=False, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Recipe, None)
    return parser


def parse_recipe(arguments: Sequence[str], parser: ArgumentParser | None = None) -> Recipe:
    """A recipe from command-line arguments: `--config FILE`, laid over its bases, and overrides.

    An override that chooses another class keeps of the old one's settings what `laid_over` keeps. `parser`: that of
    `recipe_parser`, for who reads many. Raises UserError with one line for a mistake.
    """
    parser = parser or recipe_parser()
    settings, files, overrides = _laid_out(arguments)
    try:
        recipe = _parse(parser, settings, overrides)
    except _MISTAKES as error:
        raise UserError(f"{_at_fault(parser, files)}{_one_line(str(error))}") from error
    check(recipe)
    return recipe


def _laid_out(arguments: Sequence[str]) -> tuple[dict[str, Any], list[Path], list[str]]:
    """Files and choices of classes laid over each other; the files' paths; and the arguments that are left."""
    settings: dict[str, Any] = {}
    files, overrides = [], []
    split = [part for one in arguments for part in (one.split("=", 1) if one.partition("=")[0] in _TAKEN else [one])]
    rest = iter(split)
    for name in rest:
        value = next(rest, None) if name in _TAKEN else None
        if name == "--config" and value is not None:
            files.append(Path(value))
            settings = laid_over(settings, read(files[-1]).settings)
        elif value is not None and value.isidentifier():
            chosen: Any = value
            for key in reversed(_CHOOSING[name]):
                chosen = {key: chosen}
            settings = laid_over(settings, chosen)
        else:
            overrides += [name] if value is None else [name, value]
    return settings, files, overrides


def _parse(parser: ArgumentParser, settings: dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Raises one of _MISTAKES."""
    _check_names(settings)
    _check_classes("", settings)
    _check_overrides(overrides)
    text = yaml.safe_dump(_with_whole_detector(settings))
    parsed = vars(parser.instantiate(parser.parse_args(["--config", text, *overrides])))
    return Recipe(**{name: value for name, value in parsed.items() if name != "config"})


def _with_whole_detector(settings: dict[str, Any]) -> dict[str, Any]:
    """All settings of the detector that is chosen, if one is.

    jsonargparse would take those that are not given from the default detector where a name is the same: AKAZE with
    FAST's threshold finds nothing at all.
    """
    objective: Any = settings.get("objective")
    chosen: Any = (objective.get("init_args") or {}) if isinstance(objective, dict) else {}
    given: Any = chosen.get("detector")
    detector = chosen_class(given.get("class_path"), CHOICES["detector"]) if isinstance(given, dict) else object
    if not issubclass(detector, Detector):
        return settings
    whole = as_dict(detector())["init_args"] | (given.get("init_args") or {})
    chosen = chosen | {"detector": {"class_path": given["class_path"], "init_args": whole}}
    return settings | {"objective": objective | {"init_args": chosen}}


def _at_fault(parser: ArgumentParser, files: Sequence[Path]) -> str:
    """The beginning of an error: the file that is refused by itself, if one is."""
    for path in files:
        file = read(path)
        try:
            _parse(parser, laid_over({}, file.settings))
        except _MISTAKES:
            based = f" (base: {', '.join(file.bases)})" if file.bases else ""
            return f"recipe {str(path)!r}{based}: "
    return ""


def load_recipe(path: Path, parser: ArgumentParser | None = None) -> Recipe:
    """The recipe in a YAML file."""
    return parse_recipe(["--config", str(path)], parser)


def check(recipe: Recipe) -> None:
    """Refuse numbers that no run can have, before anything is built. Raises UserError."""
    _check_numbers(recipe)
    if recipe.optim.warmup_epochs >= recipe.optim.epochs:
        raise UserError(
            f"optim.warmup_epochs {recipe.optim.warmup_epochs} is not less than optim.epochs {recipe.optim.epochs}"
        )
    if recipe.optim.weight_decay_end is not None and not recipe.optim.weight_decay > 0:
        raise UserError(f"optim.weight_decay is {recipe.optim.weight_decay}; with weight_decay_end it must be above 0")
    if not 0 <= recipe.encoder.drop_path < 1:
        raise UserError(f"encoder.drop_path is {recipe.encoder.drop_path}; it must be at least 0 and less than 1")
    recipe.objective.check(recipe)
    _check_device(recipe)
    size = recipe.encoder.image_size
    for name, cell in _cells(recipe).items():
        if cell is not None and size is not None and size % cell:
            raise UserError(
                f"{name} {cell} does not divide encoder.image_size {size}; choose sizes of which one divides the other"
            )


def _check_numbers(recipe: Recipe) -> None:
    """Each by itself. Raises UserError."""
    for name, value in flatten(recipe).items():
        leaf = name.rsplit(".", 1)[-1]
        if leaf in _POSITIVE and isinstance(value, int | float) and not value > 0:
            raise UserError(f"{name} is {value}; it must be greater than 0")
        if name in _AT_MOST and value is not None and value > _AT_MOST[name]:
            raise UserError(f"{name} is {value}, and no machine trains that; it must be {_AT_MOST[name]} at most")


def _check_device(recipe: Recipe) -> None:
    """Refuse to do on the device what only data workers can."""
    theirs = recipe.objective.workers_work()
    if recipe.data.device_augment and theirs:
        raise UserError(f"data.device_augment must be false: {theirs} is work for the data workers")
    if recipe.data.decode_on_device and not recipe.data.device_augment:
        raise UserError("data.decode_on_device is true, but data.device_augment, which it needs, is false; set both")


_POSITIVE = (
    "batch_size epochs learning_rate temperature found_temperature weight_patch mask_unit mask_ratio image_size "
    "patch_size width depth heads per_class device_size mixed_shards accumulate micro_batch checkpoint_every "
    "keep_every log_every clip_norm max_steps"
).split()


#: ten times and more what the largest published encoders have; within these, memory decides (`encoders.create`)
_AT_MOST = {
    "encoder.depth": 1_000,
    "encoder.width": 32_768,
    "encoder.heads": 32_768,
    "encoder.image_size": 16_384,
    "encoder.patch_size": 16_384,
}


def _cells(recipe: Recipe) -> dict[str, int | None]:
    """Sizes in pixels that must divide the image."""
    objective, cells = recipe.objective, {"encoder.patch_size": recipe.encoder.patch_size}
    if getattr(objective, "masking", None) == "random_blocks":
        cells["objective.mask_unit"] = getattr(objective, "mask_unit", None)
    if getattr(objective, "keypoint_weights", True):
        cells["objective.weight_patch"] = getattr(objective, "weight_patch", None)
    return cells


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
    if unknown and unknown[1] in CHOICES:
        package = CHOICES[unknown[1]]
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
