"""`kamim finetune`: train an encoder to classify."""

from ._classification import run_classification
from ._recipe import LESS_MEMORY as LESS_MEMORY

HELP = "fine-tune an encoder to classify pictures"


def run(arguments: list[str]) -> None:
    """Fine-tune by KAMIM's recipe unless told otherwise."""
    description = f"{HELP}, by the recipe of KAMIM's Table 1. The same command on an existing RUN resumes it."
    run_classification("finetune", description, "fine_tuning", arguments)
