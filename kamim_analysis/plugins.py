"""Plug-ins are found by file name: a package's modules, less those that begin with an underscore, and no folders."""

import ast
import pkgutil
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from operator import ne
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import UserError


def names(package: str) -> list[str]:
    """Names of the plug-ins in `package`, sorted, without importing any of them.

    >>> names("kamim_analysis.poolings")
    ['abmilp', 'attentive', 'central', 'cls', 'cls_attention', 'mean']
    """
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ValueError(f"{package} is not a package")
    modules = pkgutil.iter_modules(spec.submodule_search_locations)
    return sorted(m.name for m in modules if not m.ispkg and not m.name.startswith("_"))


def summaries(package: str) -> dict[str, str]:
    """The first line of each plug-in's docstring by name, without importing any of them.

    >>> list(summaries("kamim_analysis.keypoints"))[:3]
    ['agast', 'akaze', 'brisk']
    """
    return {name: (ast.get_docstring(_parsed(package, name)) or "").split("\n")[0] for name in names(package)}


def constants(package: str) -> dict[str, dict[str, Any]]:
    """The constants in capitals that each plug-in sets to a literal, by plug-in and name, without importing any.

    >>> constants("kamim_analysis.analyses")["knn"]["QUESTION"]
    'Do images of one class lie together?'
    """
    return {name: dict(_literals(_parsed(package, name))) for name in names(package)}


def _parsed(package: str, name: str) -> ast.Module:
    spec = find_spec(f"{package}.{name}")
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _literals(module: ast.Module) -> Iterator[tuple[str, Any]]:
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            with suppress(ValueError):
                yield node.targets[0].id, ast.literal_eval(node.value)


def check(name: str, available: list[str], kind: str) -> str:
    """`name` itself if it is one of `available`; else a UserError that names those there are."""
    if name in available:
        return name
    near = nearest(name, available)
    hint = f" (did you mean {near!r}?)" if near else ""
    raise UserError(f"unknown {kind} {name!r}{hint}; there are: {', '.join(available)}")


def nearest(name: str, available: list[str]) -> str | None:
    """The available name most like `name`, or None where none is; first of all one that differs by a single letter.

    >>> nearest("analyse", ["analyses", "analyze"])
    'analyze'
    """
    close = get_close_matches(name, available)
    mistyped = [one for one in close if len(one) == len(name) and sum(map(ne, one, name)) == 1]
    return next(iter(mistyped + close), None)


def load(package: str, name: str, kind: str) -> ModuleType:
    """The module of plug-in `name`. Raises UserError for an unknown one."""
    return import_module(f"{package}.{check(name, names(package), kind)}")


def load_all(package: str) -> dict[str, ModuleType]:
    """Every plug-in of `package` by name."""
    return {name: import_module(f"{package}.{name}") for name in names(package)}
