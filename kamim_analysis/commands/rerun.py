"""`kamim rerun`: an analysis again, from its manifest alone."""

import argparse
import logging
import shlex
import sys
from contextlib import chdir
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import Parser, reading
from ..errors import UserError
from ..invocation import Invocation, before_positional
from ..output import MANIFEST

if TYPE_CHECKING:
    import pandas as pd

    from ..sampling import ChosenPictures

log = logging.getLogger(__name__)
HELP = "run an analysis again from its manifest.json, and tell whether the numbers are the same"
_DIFFERENT = 1


def parser() -> Parser:
    """The command's options."""
    from ..repetition import REPEATABLE

    parser = Parser(
        "rerun",
        f"{HELP}: the manifest of kamim {', '.join(REPEATABLE)}. Weights, pictures and versions that have changed are "
        "named first. The exit code is 1 where numbers differ by more than rounding.",
    )
    parser.add_argument("manifest", type=Path, metavar="RESULTS/manifest.json", help="or the directory that holds it")
    parser.add_argument(
        "--out", required=True, type=Path, help="directory for the new results; it must be new or empty"
    )
    parser.add_argument("--data", help="where the data lie now")
    parser.add_argument("--data_root", metavar="DIR", help="where a data set given by name lies now")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="what relative paths are taken from (default: as it was)"
    )
    return parser


def run(arguments: list[str]) -> None:
    """Check the manifest and what it names, run its command, and compare."""
    asked = parser().parse_args(arguments)

    from .. import output, processes
    from ..repetition import invocation_of, read_manifest

    manifest = read_manifest(asked.manifest)
    invocation = invocation_of(manifest, asked.manifest)
    output.check(asked.out, overwrite=False)
    out = asked.out.absolute()
    original = _metrics(asked.manifest)
    with chdir(_directory(asked, invocation)):
        command = import_module(f"{__package__}.{invocation.command}")
        given = _given(asked, invocation, out)
        chosen = _parsed(command, given, out)
        _warn(_differences(manifest, invocation.command, chosen))
        log.info("runs %s", ascii(shlex.join(["kamim", invocation.command, *given]))[1:-1])
        command.run(given)
    if processes.is_first():
        _compare(original, out)


def _metrics(manifest: Path) -> "pd.DataFrame | None":
    """The numbers beside the manifest; None where they are not."""
    from ..results import METRICS, Results

    directory = manifest if manifest.is_dir() else manifest.parent
    return Results(directory).metrics if (directory / METRICS).is_file() else None


def _directory(asked: argparse.Namespace, invocation: Invocation) -> Path:
    directory = asked.directory or Path(invocation.directory)
    if not directory.is_dir():
        raise UserError(f"no directory {str(directory)!r}, from which relative paths are taken; give --directory DIR")
    return Path(directory)


def _given(asked: argparse.Namespace, invocation: Invocation, out: Path) -> list[str]:
    moved = {"--data": asked.data, "--data_root": asked.data_root}
    options = [f"{name}={value}" for name, value in moved.items() if value is not None]
    return [f"--out={out}", *before_positional(invocation.arguments, options)]


def _parsed(command: Any, given: list[str], out: Path) -> argparse.Namespace:
    """What the command would do. Raises UserError where a manifest would have it write elsewhere, or print help."""
    try:
        chosen: argparse.Namespace = command.parser().parse_args(given)
    except SystemExit as left:
        raise UserError(f"{MANIFEST} asks for the command's help, which is no analysis") from left
    except UserError as error:
        raise UserError(f"{MANIFEST} asks for what this version does not do: {error}") from error
    if chosen.out != out or chosen.overwrite:
        raise UserError(f"{MANIFEST} asks for an output of its own, or to overwrite one; a rerun writes to its --out")
    return chosen


def _differences(manifest: dict[str, Any], command: str, chosen: argparse.Namespace) -> list[str]:
    """What is not as it was, as far as that can be told before anything is computed."""
    from ..manifest import marks_digest, names_digest, surroundings
    from ..model_spec import parse_all
    from ..opening import local_weights
    from ..repetition import changed, warnings_of_models
    from ..source import weights_digest

    try:
        specs = parse_all(chosen.models, reading(chosen))
    except UserError as error:
        raise UserError(f"{error}; relative paths are taken from {str(Path.cwd())!r} (--directory)") from error
    files = {spec.label: local_weights(spec) for spec in specs if spec.kind in ("weights", "hub")}
    found = changed({name: manifest.get(name) for name in surroundings()}, surroundings())
    found += warnings_of_models(
        manifest.get("models", []), {label: weights_digest(file) for label, file in files.items()}
    )
    data, then = _pictures(command, chosen), manifest.get("data", {})
    if names_digest(data) != then.get("fingerprint"):
        return [*found, f"pictures of {chosen.data!r}: others are chosen than then, or in another order"]
    if marks_digest(data) != then.get("marks"):
        found.append(
            f"pictures of {chosen.data!r}: some have another size, or training pictures other names, than then"
        )
    return found


def _pictures(command: str, chosen: argparse.Namespace) -> "ChosenPictures":
    """Those that the command will choose."""
    from ..analyses.self_attention_tokens import SHOWN
    from ..data import check_source
    from ..sampling import open_data

    of_analysis = command in ("analyze", "compare")
    try:
        check_source(chosen.data)
        return open_data(
            chosen.data, chosen.data_root, chosen.images, chosen.seed, max_unreadable=chosen.max_unreadable,
            shown=SHOWN if of_analysis else (), bank_all=command in ("knn", "fast_probe"),
        )  # fmt: skip
    except UserError as error:
        raise UserError(f"{error}; where the data lie elsewhere now, give --data, or --data_root") from error


def _warn(differences: list[str]) -> None:
    for difference in differences:
        log.warning("changed: %s; numbers may differ", difference)


def _compare(original: "pd.DataFrame | None", out: Path) -> None:
    """Say whether the numbers are the original's, and leave with exit code 1 where they are not."""
    from ..repetition import agreement
    from ..results import Results

    if original is None:
        print("no metrics.csv lies beside the manifest: nothing to compare with")
        return
    found = agreement(original, Results(out).metrics)
    print(found)
    if not found.holds:
        sys.exit(_DIFFERENT)
