"""Writes docs/API.md: signature, first line, shapes and source of every public name.

    python tests/coverage/api_table.py            # write the document
    python tests/coverage/api_table.py --check    # exit 1 and show the difference if the file says otherwise

The names are those of `kamim_analysis.__all__`; all else is read from the source, which is not run, so that the
document does not depend on the versions of torch and Python at hand.
"""

import argparse
import ast
import difflib
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import kamim_analysis

DOCUMENT = Path(__file__).parents[2] / "docs" / "API.md"
INTRODUCTION = """# Public names

Written by `python tests/coverage/api_table.py`; do not edit by hand.

`import kamim_analysis as ka` gives these names, and [what is promised of them](STABILITY.md) holds for no others: a
module or a function that is not listed may change with any version. `help(ka.NAME)` says more, with an example that
runs. Shapes are jaxtyping's; in normal use they are not checked.

"""
_LINE = 100


@cache
def module_of(name: str) -> ast.Module:
    """The source of a module of the package."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def definitions(name: str) -> list[ast.FunctionDef | ast.ClassDef]:
    """A public name's class or function; of an overloaded one first what type checkers see, last what runs."""
    body = module_of(f"kamim_analysis.{kamim_analysis._PUBLIC[name]}").body
    found = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name]
    if not found:
        raise SystemExit(f"{name} is no function or class of kamim_analysis.{kamim_analysis._PUBLIC[name]}")
    return found


def signature(node: ast.FunctionDef, *, bound: bool = False) -> str:
    """`name(arguments) -> returned`, an argument a line where that is long; `bound`: less the first argument."""
    arguments = list(_arguments(node.args))[bound:]
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{node.name}({', '.join(arguments)}){returned}"
    if len(line) > _LINE:
        inside = "".join(f"    {argument},\n" for argument in arguments)
        line = f"{node.name}(\n{inside}){returned}"
    manager = "@contextmanager\n" if any(ast.unparse(each) == "contextmanager" for each in node.decorator_list) else ""
    return manager + line.replace("'", '"')  # single quotes are ast's, double ones the house's


def _arguments(arguments: ast.arguments) -> Iterator[str]:
    """Each argument as written, with the marks between them."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    for i, (argument, default) in enumerate(zip(positional, defaults, strict=True)):
        yield ast.unparse(argument) + (f" = {ast.unparse(default)}" if default else "")
        if arguments.posonlyargs and i == len(arguments.posonlyargs) - 1:
            yield "/"
    if arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield ast.unparse(argument) + (f" = {ast.unparse(default)}" if default else "")


def members(node: ast.ClassDef) -> Iterator[str]:
    """Public fields, properties and methods of a class, each with the first line of what it is."""
    for item, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            shown = f"{item.target.id}: {ast.unparse(item.annotation)}"
            said = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        elif isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
            decorators = {ast.unparse(decorator) for decorator in item.decorator_list}
            is_value = bool(decorators & {"property", "cached_property"})
            returned = ast.unparse(item.returns) if item.returns else ""
            shown = f"{item.name}: {returned}" if is_value else signature(item, bound=True)
            said = ast.get_docstring(item) or ""
        else:
            continue
        quoted = shown.replace("'", '"')
        yield f"* `{quoted}`" + (f": {first_line(str(said))}" if said else "")


def first_line(docstring: str) -> str:
    """The first paragraph, on one line."""
    return " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split())


def source(docstring: str) -> str:
    """The paragraph that says where a measure comes from, or nothing."""
    paragraphs = (" ".join(text.split()) for text in docstring.split("\n\n"))
    return next((text[text.index("Source: ") :] for text in paragraphs if "Source: " in text), "")


def section(name: str) -> str:
    """What the document says of a name."""
    *overloads, node = definitions(name)
    docstring = ast.get_docstring(node) or ""
    if isinstance(node, ast.FunctionDef):
        shown = [signature(each) for each in overloads or [node] if isinstance(each, ast.FunctionDef)]
        parts = ["```python\n" + "\n".join(shown) + "\n```", first_line(docstring)]
    else:
        parts = [f"A class of `kamim_analysis.{kamim_analysis._PUBLIC[name]}`. {first_line(docstring)}"]
        parts += ["\n".join(members(node))]
    parts += [source(docstring)]
    return f"## `{name}`\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def axes() -> str:
    """The glossary of axis names, from shapes.py."""
    return (ast.get_docstring(module_of("kamim_analysis.shapes")) or "").split("\n\n")[1]


def document() -> str:
    """The whole document."""
    names = sorted(set(kamim_analysis.__all__) - {"__version__"}, key=str.lower)
    sections = "\n".join(section(name) for name in names)
    version = "## `__version__`\n\nThe version, a string.\n"
    return f"{INTRODUCTION}{sections}\n{version}\n## Axes\n\n{axes()}\n"


def main() -> None:
    """Write the document, or compare it."""
    parser = argparse.ArgumentParser(description="The public names, their signatures and shapes.")
    parser.add_argument("--check", action="store_true", help="compare docs/API.md, write nothing")
    if not parser.parse_args().check:
        DOCUMENT.write_text(document(), encoding="utf-8")
        return
    stored = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    difference = difflib.unified_diff(stored.splitlines(), document().splitlines(), "docs/API.md", "fresh", lineterm="")
    shown = "\n".join(difference)
    if shown:
        sys.exit(shown)


if __name__ == "__main__":
    main()
