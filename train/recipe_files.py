"""Recipe files: what a file takes over from the one that it is based on, and what it says about itself.

A file may name its base, `base: NAME` (a shipped recipe) or `base: FILE.yaml` (relative to the file), and holds then
what differs. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from kamim_analysis import plugins
from kamim_analysis.errors import UserError
from kamim_analysis.plain_data import yaml_of

RECIPES = Path(__file__).with_name("recipes")
#: settings whose value is one of several classes, and the package whose plug-ins these are
CHOICES = {"objective": "kamim_analysis.train.objectives", "detector": "kamim_analysis.keypoints"}


@dataclass(frozen=True, kw_only=True)
class About:
    """Where a recipe comes from, and what came out there. No run depends on it.

    A file takes over `paper`, `evaluate` and `gflop` from its base; the rest is its own.
    """

    paper: str = ""
    """Which paper, by name and number."""
    cell: str = ""
    """Where in the paper this run's numbers stand."""
    reported: dict[str, float] = field(default_factory=dict)
    """The paper's numbers by evaluation: accuracies in percent, psnr in dB."""
    evaluate: dict[str, str] = field(default_factory=dict)
    """By the same names, the command that measures it of a trained RUN."""
    gflop: float = 0.0
    """10^9 floating-point operations of a picture's forward and backward passes, as `train.cost` counts them; 0 where
    they depend on the model that is given."""
    note: str = ""
    """What is not as in the paper or its code, or what a reader must know."""


@dataclass(frozen=True)
class RecipeFile:
    """A file laid over its bases."""

    settings: dict[str, Any]
    """Plain data; what is not set has its default."""
    about: About
    bases: tuple[str, ...]
    """As the files name them, the nearest first."""


def recipe_names() -> list[str]:
    """The shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The YAML of a shipped recipe. Raises UserError for an unknown one."""
    names = recipe_names()
    if name not in names:
        near = " or ".join(map(repr, get_close_matches(name, names)))
        raise UserError(f"unknown recipe {name!r}{f'; did you mean {near}?' if near else ''} (kamim recipes lists all)")
    return RECIPES / f"{name}.yaml"


def read(path: Path, above: tuple[Path, ...] = ()) -> RecipeFile:
    """The file laid over its bases; `above` are the files that are based on it.

    Raises UserError with one line that names the file and the key.
    """
    own = _load(path)
    base_name, own_about = own.pop("base", None), own.pop("about", None)
    if base_name is None:
        return RecipeFile(own, _about(path, own_about, About()), ())
    base_path = _base_path(path, base_name)
    chain = (*above, path.resolve())
    if base_path.resolve() in chain:
        steps = " -> ".join(repr(one.name) for one in (*chain, base_path))
        raise UserError(f"'base' of {str(path)!r} leads back to a file that is based on it: {steps}")
    base = read(base_path, chain)
    inherited = replace(base.about, cell="", reported={}, note="")
    about = _about(path, own_about, inherited)
    return RecipeFile(laid_over(base.settings, own), about, (base_name, *base.bases))


def _load(path: Path) -> dict[str, Any]:
    """The settings in one file."""
    try:
        loaded = yaml_of(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read recipe {str(path)!r}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {str(path)!r} is no YAML: {' '.join(str(error).split())}") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise UserError(f"recipe {str(path)!r} holds a {type(loaded).__name__}, not settings by name")
    return loaded or {}


def _base_path(path: Path, name: Any) -> Path:
    """Where the base of a file lies: of a shipped recipe's name, or of a path relative to the file."""
    if not isinstance(name, str) or "\0" in name:
        raise UserError(f"recipe {str(path)!r}: 'base' is {name!r}, neither a shipped recipe's name nor a file")
    if name.endswith((".yaml", ".yml")):
        return path.parent / name
    try:
        return recipe_path(name)
    except UserError as error:
        raise UserError(f"recipe {str(path)!r}: 'base': {error}; a file of yours is given as NAME.yaml") from None


def _about(path: Path, own: Any, inherited: About) -> About:
    """What the file says of itself, laid over what it takes over."""
    if own is None:
        return inherited
    if not isinstance(own, dict):
        raise UserError(f"recipe {str(path)!r}: 'about' is {own!r}, not a mapping")
    known = {one.name: type(getattr(inherited, one.name)) for one in fields(About)}
    for key, value in own.items():
        if key not in known:
            raise UserError(f"recipe {str(path)!r}: 'about' has no {key!r}; there are: {', '.join(known)}")
        if not isinstance(value, known[key]):
            raise UserError(f"recipe {str(path)!r}: 'about.{key}' is {value!r}, not a {known[key].__name__}")
    about = replace(inherited, **own)
    return replace(about, evaluate=inherited.evaluate | about.evaluate)


def laid_over(base: Any, own: Any, key: str = "") -> Any:
    """`own` over `base`: mappings are merged, anything else is replaced.

    Where another class is chosen (`class_path` of an objective or a detector), of the base's `init_args` those stay
    that both classes have from a common parent, such as SimMIM's mask_unit when KAMIM takes its place. A name that two
    classes share by chance, such as the thresholds of two detectors, does not carry over.
    """
    if key in CHOICES:
        base, own = _as_mapping(base), _as_mapping(own)
    if not isinstance(own, dict):
        return own
    base = base if isinstance(base, dict) else {}
    if key in CHOICES and own.get("class_path", base.get("class_path")) != base.get("class_path"):
        base = _of_another_class(base, str(own["class_path"]), CHOICES[key])
    return base | {name: laid_over(base.get(name), value, name) for name, value in own.items()}


def _as_mapping(chosen: Any) -> Any:
    """A class without settings may be given by its name alone."""
    return {"class_path": chosen} if isinstance(chosen, str) else chosen


def _of_another_class(base: Mapping[str, Any], name: str, package: str) -> dict[str, Any]:
    """The base's settings that a class of another name shares with the base's own."""
    old, new = chosen_class(base.get("class_path"), package), chosen_class(name, package)
    settings = base.get("init_args") or {}
    kept = {key: value for key, value in settings.items() if _declares(old, key) is _declares(new, key) is not None}
    return {"init_args": kept} if kept else {}


def chosen_class(path: Any, package: str) -> type:
    """A plug-in's class by the last part of its path; an unknown one shares nothing, and is refused later."""
    name = str(path).rsplit(".", 1)[-1]
    modules = plugins.load_all(package).values()
    return next((found for module in modules if isinstance(found := vars(module).get(name), type)), object)


def _declares(owner: type, name: str) -> type | None:
    """The class in which `owner` has its setting `name` from."""
    return next((one for one in owner.__mro__ if name in vars(one).get("__annotations__", {})), None)
