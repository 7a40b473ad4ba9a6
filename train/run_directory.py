"""The directory of a run: who may write to it, and what stands in it. Imports no torch."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from kamim_analysis.errors import UserError
from kamim_analysis.lock import LOCK
from kamim_analysis.output import PARTIAL, write_file

from .recipe import Recipe
from .settings import as_yaml, differences, load_recipe

CONFIG = "config.yaml"
#: how a classifier that was trained here was judged
RESULTS = "results"

log = logging.getLogger(__name__)


def check(out: Path, recipe: Recipe, *, force: bool = False) -> None:
    """Raise UserError unless `out` is absent, empty, or holds a run of the same recipe, which will be resumed.

    With `force` it may be of another recipe.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"output {str(out)!r} is a file; give a directory")
    config = out / CONFIG
    if not config.is_file():
        # a run that was killed at its very beginning leaves a lock and a half-written recipe
        if any(path.name != LOCK and path.suffix != PARTIAL for path in out.iterdir()):
            raise UserError(f"output directory {str(out)!r} holds other files; give a new or empty one")
        return
    changed = differences(load_recipe(config), recipe)
    if changed and not force:
        raise UserError(
            f"output directory {str(out)!r} already holds another run ({'; '.join(changed)}); give a new directory, "
            "the same settings to resume, or --force to go on from the last checkpoint with these"
        )


def create(out: Path, recipe: Recipe, first_step: int = 0) -> None:
    """Make the directory and write the complete recipe.

    Where it goes on after `first_step` steps by another recipe than before, that is kept as config-before-step-N.yaml,
    N being the first step by the new one, and so are results judged by it.
    """
    config = out / CONFIG
    changed = differences(load_recipe(config), recipe) if config.is_file() else []
    if changed:
        then = f"before-step-{first_step + 1}"
        kept, judged = out / f"config-{then}.yaml", out / f"{RESULTS}-{then}"
        if not kept.exists():  # what came after it did not train a step
            write_file(kept, config.read_bytes())
        if judged.exists():
            shutil.rmtree(out / RESULTS, ignore_errors=True)
        elif (out / RESULTS).exists():
            (out / RESULTS).rename(judged)
        log.warning("%s goes on from step %d with other settings: %s", out, first_step, "; ".join(changed))
    write_file(config, as_yaml(recipe).encode())
