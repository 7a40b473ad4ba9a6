"""`kamim probe`: a linear probe on a frozen encoder, trained on pictures."""

from ._classification import run_classification
from ._recipe import LESS_MEMORY as LESS_MEMORY

HELP = "train a linear probe on a frozen encoder, on pictures"


def run(arguments: list[str]) -> None:
    """Probe by KAMIM's recipe unless told otherwise."""
    description = f"{HELP}, by the recipe of KAMIM's Table 1. The same command on an existing RUN resumes it."
    run_classification("probe", description, "linear_probe", arguments)
