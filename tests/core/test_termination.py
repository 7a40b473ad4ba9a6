"""A command that is told to end says so by its exit code, whatever it was doing."""

import os
import signal

import pytest

from kamim_analysis.errors import UserError
from kamim_analysis.termination import orderly_termination


def told_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_exit_code_is_that_of_the_signal() -> None:
    with pytest.raises(SystemExit) as left, orderly_termination():
        told_to_end()
    assert left.value.code == 143


@pytest.mark.parametrize("made_of_it", [RuntimeError, UserError])
def test_what_made_another_error_of_it_changes_nothing(made_of_it: type[Exception]) -> None:
    def interrupted() -> None:
        try:
            told_to_end()
        except SystemExit as error:
            raise made_of_it("class cannot be defined") from error

    with pytest.raises(SystemExit) as left, orderly_termination():
        interrupted()
    assert left.value.code == 143


def test_an_error_of_its_own_stays_that_error() -> None:
    for _ in range(2):  # the second after one that was told to end, in the same process
        with pytest.raises(UserError, match="no data"), orderly_termination():
            raise UserError("no data")
        with pytest.raises(SystemExit), orderly_termination():
            told_to_end()
