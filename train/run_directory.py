"""The directory of a run: who may write to it, and what stands in it. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from kamim_analysis.errors import UserError

from .recipe import Recipe
from .settings import as_yaml, differences, load_recipe

CONFIG = "config.yaml"


def check(out: Path, recipe: Recipe) -> None:
    """Raise UserError unless `out` is absent, empty, or holds a run of the same recipe, which will be resumed."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"output {str(out)!r} is a file; give a directory")
    config = out / CONFIG
    if not config.is_file():
        if any(out.iterdir()):
            raise UserError(f"output directory {str(out)!r} holds other files; give a new or empty one")
        return
    changed = differences(load_recipe(config), recipe)
    if changed:
        raise UserError(
            f"output directory {str(out)!r} already holds another run ({'; '.join(changed)}); give a new directory, "
            "or the same settings to resume"
        )


def create(out: Path, recipe: Recipe) -> None:
    """Make the directory and write the complete recipe."""
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG).write_text(as_yaml(recipe), encoding="utf-8")
