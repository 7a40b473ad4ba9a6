"""Imports go one way: a static walk over every module of the package, and subprocesses for what must stay light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "kamim_analysis": ROOT / "kamim_analysis",
    "kamim_analysis.train": ROOT / "train",
    "kamim_analysis.analyses": ROOT / "analyses",
    "kamim_analysis.figures": ROOT / "figures",
}
OUTER = {"kamim_analysis.train", "kamim_analysis.analyses", "kamim_analysis.figures"}
# what figures may take from the core: nothing that needs torch or a model
FOR_FIGURES = {f"kamim_analysis.{name}" for name in ("results", "errors", "plugins", "output", "bootstrap", "version")}
FOR_FIGURES |= {
    f"kamim_analysis.{name}"
    for name in ("cka", "comparison", "plain_data", "protocol", "results_reading", "shared_neighbours")
}


@cache
def modules() -> dict[str, Path]:
    """Every module's file by its import name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


def part_of(module: str) -> str:
    """The folder a module belongs to: train, analyses, figures or the core."""
    return next((outer for outer in OUTER if module == outer or module.startswith(f"{outer}.")), "kamim_analysis")


def statements(node: ast.AST, *, deferred: bool) -> Iterator[tuple[ast.stmt, bool]]:
    """Import statements below a node, and whether they wait inside a function; those for type checkers left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield from statements(ast.Module([other], []), deferred=deferred)
        elif isinstance(child, ast.Import | ast.ImportFrom):
            yield child, deferred
        else:
            inside = deferred or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from statements(child, deferred=inside)


def targets(module: str, statement: ast.stmt) -> set[str]:
    """Full names of the modules that an import statement loads."""
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names}
    assert isinstance(statement, ast.ImportFrom)
    base = statement.module or ""
    if statement.level:
        package = module.split(".") if modules()[module].name == "__init__.py" else module.split(".")[:-1]
        up = package[: len(package) - statement.level + 1]
        base = ".".join([*up, *([base] if base else [])])
    children = {f"{base}.{alias.name}" for alias in statement.names}
    return {child for child in children if child in modules()} | ({base} if not children <= modules().keys() else set())


@cache
def edges() -> list[tuple[str, str, bool]]:
    """(importer, imported, deferred) for every import statement."""
    return [
        (module, target, deferred)
        for module, path in modules().items()
        for statement, deferred in statements(ast.parse(path.read_text(encoding="utf-8")), deferred=False)
        for target in targets(module, statement)
    ]


def ours() -> list[tuple[str, str, bool]]:
    return [(source, target, deferred) for source, target, deferred in edges() if target in modules()]


def test_the_walk_sees_what_it_should():
    assert ("kamim_analysis.density", "kamim_analysis.patches", False) in edges()
    assert ("kamim_analysis.analyses.knn", "kamim_analysis.analyses._analysis", False) in edges()
    assert ("kamim_analysis.train.objectives.kamim", "kamim_analysis.train.views", True) in edges()
    assert ("kamim_analysis.commands.analyze", "kamim_analysis.analyses._run", True) in edges()
    assert not any(
        source == "kamim_analysis" and target.startswith("kamim_analysis.an") for source, target, _ in edges()
    )
    assert len(modules()) > 60


def test_no_module_imports_itself_in_a_circle():
    graph: dict[str, set[str]] = {}
    for source, target, deferred in ours():
        if not deferred:
            graph.setdefault(source, set()).add(target)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_the_core_imports_nothing_of_the_outer_folders_when_loaded():
    wrong = [
        (source, target)
        for source, target, deferred in ours()
        if part_of(source) == "kamim_analysis" and part_of(target) != "kamim_analysis" and not deferred
    ]
    assert wrong == []


def test_only_commands_import_the_outer_folders_from_within_functions():
    wrong = [
        (source, target)
        for source, target, _ in ours()
        if part_of(source) == "kamim_analysis"
        and part_of(target) != "kamim_analysis"
        and not source.startswith("kamim_analysis.commands.")
    ]
    assert wrong == []


@pytest.mark.parametrize("outer", sorted(OUTER))
def test_the_outer_folders_know_nothing_of_each_other(outer):
    others = OUTER - {outer}
    assert [(s, t) for s, t, _ in ours() if part_of(s) == outer and part_of(t) in others] == []


def test_figures_take_results_from_the_core_and_nothing_heavy():
    taken = {(s, t) for s, t, _ in ours() if part_of(s) == "kamim_analysis.figures" and part_of(t) == "kamim_analysis"}
    assert {(s, t) for s, t in taken if t not in FOR_FIGURES and t != "kamim_analysis"} == set()


@pytest.mark.parametrize("package", ["torch", "timm", "torchvision", "torchmetrics"])
def test_figures_never_import_torch(package):
    sources = {s for s, t, _ in edges() if t.split(".")[0] == package and part_of(s) == "kamim_analysis.figures"}
    assert sources == set()


@pytest.mark.parametrize("name", ["train", "analyses", "figures", "tests"])
def test_nobody_imports_the_folders_by_their_own_names(name):
    # from the repository's root that would work, and make a second copy of every class
    for path in [*modules().values(), *(ROOT / "tests").rglob("*.py")]:
        for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(statement, ast.Import):
                assert not any(alias.name.split(".")[0] == name for alias in statement.names), path
            if isinstance(statement, ast.ImportFrom) and not statement.level:
                assert (statement.module or "").split(".")[0] != name, path


def test_packages_hold_a_docstring_only():
    for module, path in modules().items():
        if path.name == "__init__.py" and module != "kamim_analysis":
            (docstring,) = ast.parse(path.read_text(encoding="utf-8")).body
            assert isinstance(docstring, ast.Expr), module


def light() -> list[str]:
    chosen = ["train.settings", "train.recipe", "train.run_directory", "data", "model_spec", "keypoint_maps", "results"]
    chosen += ["cli", "arguments", "weights_file", "timm_names", "photographs", "sampling", "bootstrap", "output"]
    folders = ("kamim_analysis.train.objectives.", "kamim_analysis.keypoints.", "kamim_analysis.commands.")
    named = [module for module in modules() if module.startswith((*folders, "kamim_analysis.figures"))]
    named.remove("kamim_analysis.keypoints._batched")  # tensors, which a detector imports when it is given a batch
    return ["kamim_analysis", *(f"kamim_analysis.{name}" for name in chosen), *named]


def test_light_modules_do_not_import_torch():
    """One process imports them one after the other and says after which one a heavy package was there."""
    program = (
        "import sys, importlib\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'timm', 'torchvision'} & sys.modules.keys()\n"
        "    assert not heavy, (name, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *light()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
