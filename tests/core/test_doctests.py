"""Every example in a docstring runs."""

import doctest
import importlib
import pkgutil

import pytest

# an editable install maps the outer folders one by one, so walking the package alone would miss them
PACKAGES = ["kamim_analysis", *(f"kamim_analysis.{folder}" for folder in ("train", "analyses", "figures"))]
MODULES = sorted(
    {
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
        if not module.name.endswith("__main__")
    }
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name: str) -> None:
    module = importlib.import_module(name)
    failures, _examples = doctest.testmod(module, extraglobs={"torch": importlib.import_module("torch")})
    assert failures == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    modules = [importlib.import_module(name) for name in MODULES]
    assert sum(bool(found.examples) for module in modules for found in finder.find(module)) >= 12
