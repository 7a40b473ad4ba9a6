"""What the tests of hostile files share: a payload that shows whether it was executed."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest


class Payload:
    """Unpickling this makes a directory."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """What a payload would leave; that it would is shown here."""
    target = tmp_path / "executed"
    pickle.loads(pickle.dumps(Payload(target)))
    target.rmdir()
    return target


@pytest.fixture
def payload(target: Path) -> Payload:
    """What would leave `target`."""
    return Payload(target)
