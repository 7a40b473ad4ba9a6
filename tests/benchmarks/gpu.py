"""What training and analysing reach on one NVIDIA GPU, in one command of under nine minutes.

`python gpu.py [--only a,b] [--cpu]`, from any directory, without installation; `make bench-gpu` does the same. Prints
a line of JSON for each number and at the end a table for RESULTS.md. A part whose packages are missing, that fails, or
for which no time is left says so, and the others go on. Packages that the machine lacks may lie in build/gpu-packages
(`make gpu-packages` puts them there, where there is a network); those that it has come first. `--cpu` runs every part
on next to nothing, which tells whether the script works and nothing else.
"""

import argparse
import json
import os
import sys
import time
import traceback
from dataclasses import asdict, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: seconds that all parts may take; the machine is often lent for ten minutes a command
WHOLE = 510.0
#: by part, what it may take at most, in the order of what matters most
BUDGET = {
    "matrix": 20,
    "simmim": 180,
    "fast": 70,
    "kamim": 110,
    "end_to_end": 150,
    "streaming": 50,
    "checkpoints": 50,
    "precision": 90,
}


def use_the_tree() -> None:
    """Make kamim_analysis.train and its like importable from the repository, where they are folders beside it."""
    packages = ROOT / "build" / "gpu-packages"
    sys.path += [str(ROOT), *([str(packages)] if packages.is_dir() else [])]
    import kamim_analysis

    if str(ROOT) not in kamim_analysis.__path__:
        kamim_analysis.__path__.append(str(ROOT))


def shown(row: dict[str, object]) -> str:
    """A line of the table."""

    def number(value: object) -> str:
        return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"  # type: ignore[str-format]

    value = row["value"] if isinstance(row["value"], str) else number(row["value"])
    interval = f" [{number(row['low'])}, {number(row['high'])}]" if row["low"] is not None else ""
    return f"| {row['what']} | {value}{interval} {row['unit']} | {row['asked']} |"


def measure(names: list[str], setting: object) -> list[dict[str, object]]:
    """Every part's rows, printed as they come."""
    import _gpu_analyses
    import _gpu_parts as parts

    assert isinstance(setting, parts.Setting)
    functions = {name: vars(parts).get(name) or vars(_gpu_analyses)[name] for name in names}
    end, rows = time.monotonic() + WHOLE, []

    def tell(part: str, row: "parts.Row") -> None:
        rows.append({"part": part, **asdict(row)})
        print(json.dumps(rows[-1]), flush=True)

    for name in names:
        since = time.monotonic()
        if since > end:
            tell(name, parts.Row(name, "skipped: no time left"))
            continue
        try:
            for row in functions[name](replace(setting, until=min(since + BUDGET[name], end))):
                tell(name, row)
        except ImportError as error:
            tell(name, parts.Row(name, f"skipped: needs {error.name}"))
        except Exception as error:
            traceback.print_exc()
            tell(name, parts.Row(name, f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"))
        parts.release(setting)
        print(f"{name}: {time.monotonic() - since:.0f} s", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(BUDGET), metavar="A,B", help=f"of {', '.join(BUDGET)}")
    parser.add_argument("--cpu", action="store_true", help="every part in a toy size, without a GPU")
    chosen = parser.parse_args()
    names = chosen.only.split(",")
    for name in names:
        if name not in BUDGET:
            parser.error(f"no part {name!r}; there are {', '.join(BUDGET)}")
    import torch

    if not (chosen.cpu or torch.cuda.is_available()):
        print("gpu.py: no NVIDIA GPU that torch can use; --cpu tries the script in a toy size", file=sys.stderr)
        sys.exit(2)
    use_the_tree()
    import _gpu_parts as parts

    where = "a CPU, toy sizes: no result" if chosen.cpu else torch.cuda.get_device_name()
    print(json.dumps({"machine": where, "torch": torch.__version__, "cores": len(os.sched_getaffinity(0))}), flush=True)
    rows = measure(names, parts.Setting(torch.device("cpu" if chosen.cpu else "cuda"), toy=chosen.cpu))
    print(f"\n## {where}, torch {torch.__version__}\n\n| what | measured | asked |\n| --- | --- | --- |")
    print("\n".join(map(shown, rows)))
    failed = [row for row in rows if str(row["value"]).startswith("failed")]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
