"""The commands' tests know the shared run and pictures by shorter names."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def pictures(class_folders: Path) -> Path:
    """Twenty-four pictures of three classes."""
    return class_folders


@pytest.fixture(scope="session")
def run(tiny_run: Path) -> Path:
    """A KAMIM run of six steps."""
    return tiny_run
