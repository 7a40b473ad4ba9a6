"""README.md lists every test here by its name, and no test that is not there."""

import re
from pathlib import Path

HERE = Path(__file__).parent
TABLE = (HERE / "README.md").read_text(encoding="utf-8")


def names_in(path: Path) -> set[str]:
    return set(re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE))


def test_every_test_that_is_named_is_there() -> None:
    path = HERE / "README.md"
    named = re.findall(r"`([\w/]*\.py)?::(test_\w+)`", TABLE)
    for file, name in named:
        if file:  # those that follow without one are of the same file
            path = HERE.parents[1] / file if "/" in file else HERE / file
        assert name in names_in(path), f"{path.name}::{name}"
    assert len(named) > 100


def test_every_test_of_a_fault_is_named() -> None:
    own = {path: names_in(path) for path in HERE.glob("test_*.py") if path != Path(__file__)}
    assert len(own) > 10
    assert {
        f"{path.name}::{name}" for path, names in own.items() for name in names if f"::{name}`" not in TABLE
    } == set()
