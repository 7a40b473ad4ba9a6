"""Linear probe: one linear layer on a frozen encoder, trained on pictures (KAMIM, arXiv 2407.13873, section 4.1)."""

from dataclasses import dataclass
from typing import ClassVar

from kamim_analysis.train.objectives._classification import Classification


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Classification):
    """The encoder stays as it is, in evaluation mode; a learned pooling and norm are trained with the linear layer.

    Defaults as in Table 1. A Swin's last layer has no norm then; the public code takes it after the final norm
    (`norm: final`).
    """

    ANALYSIS: ClassVar[str] = "linear_probe"
    FROZEN: ClassVar[bool] = True
