"""The public names: they exist, say their shapes and sources, show an example, and are one list everywhere."""

import ast
import doctest
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kamim_analysis

ROOT = Path(__file__).parents[2]
NAMES = sorted(set(kamim_analysis.__all__) - {"__version__"})
# what design and README told people to rely on, and what notebooks use: these stay
PROMISED = "attention_distance attention_nmi keypoint_map load_encoder patch_attention patch_weights record".split()
PROMISED += ["Results", "relative_log_amplitude", "show"]
# no measure of a paper: what opens, reads, shows or reduces
WITHOUT_SOURCE = {"Recording", "Results", "UserError", "load_encoder", "normalised_spectrum", "patch_attention"}
WITHOUT_SOURCE |= {"record", "show"}
ARRAY = re.compile(r"(Tensor|ndarray|NDArray)\b")
SHAPED = re.compile(r"\b(Float|Int|Int64|Bool|UInt8|Shaped)\[(Tensor|ndarray|np\.ndarray), ?['\"][^'\"]+['\"]\]")


def script(name: str) -> Any:
    """A script of tests/coverage, loaded as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / "coverage" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def annotations(name: str) -> list[str]:
    """Of a function its arguments' and what it returns, of a class its fields', as they are written."""
    node = script("api_table").definitions(name)[-1]
    if isinstance(node, ast.ClassDef):
        return [ast.unparse(item.annotation) for item in node.body if isinstance(item, ast.AnnAssign)]
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    found = [argument.annotation for argument in arguments] + [node.returns]
    assert None not in found, name
    return [ast.unparse(annotation) for annotation in found if annotation]


def test_the_table_names_objects_of_their_modules():
    for name, module in kamim_analysis._PUBLIC.items():
        found = getattr(importlib.import_module(f"kamim_analysis.{module}"), name)
        assert getattr(kamim_analysis, name) is found
        assert found.__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = kamim_analysis.nothing


def test_all_lists_of_the_names_are_one():
    block = next(
        node for node in ast.parse(Path(kamim_analysis.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.If)
    )  # fmt: skip
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == kamim_analysis._PUBLIC
    assert sorted(kamim_analysis.__all__) == sorted({"__version__", *kamim_analysis._PUBLIC})
    assert set(PROMISED) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_says_its_shapes_and_source_and_shows_an_example(name):
    docstring = inspect.getdoc(getattr(kamim_analysis, name)) or ""
    for annotation in annotations(name):
        # without its shaped parts, whatever else is an array must have its shape in the text
        if ARRAY.search(SHAPED.sub("", annotation)):
            assert re.search(r"\[(\.\.\.|[A-Za-z]+(, [^\]]+)?)\]", docstring), (name, annotation)
    assert doctest.DocTestParser().get_examples(docstring), name
    assert (name in WITHOUT_SOURCE) != bool(re.search(r"Source: |arXiv \d{4}\.\d{5}", docstring)), name


def test_star_import_gives_the_names_and_nothing_else():
    found: dict[str, Any] = {}
    exec("from kamim_analysis import *", found)
    assert found.keys() - {"__builtins__"} == set(kamim_analysis.__all__)


def test_importing_the_package_and_listing_it_is_light():
    program = (
        "import sys, kamim_analysis as ka\n"
        "assert set(dir(ka)) >= {*ka.__all__, '__name__', '__doc__'}\n"
        "print(*sorted({'torch', 'numpy', 'timm', 'cv2', 'pandas', 'matplotlib'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_document_is_that_of_the_source():
    table = script("api_table")
    document = table.DOCUMENT.read_text(encoding="utf-8")
    assert document == table.document(), "run python tests/coverage/api_table.py"
    assert re.findall(r"^## `(\w+)`$", document, re.M) == [*sorted(NAMES, key=str.lower), "__version__"]


def test_the_file_that_mypy_checks_uses_every_name():
    tree = ast.parse((ROOT / "tests" / "coverage" / "every_public_name.py").read_text(encoding="utf-8"))
    used = {
        node.attr for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ka"
    }  # fmt: skip
    assert used == set(kamim_analysis.__all__)
