"""What an objective offers to the loop."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kamim_analysis.train.views import Augmentation, View


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """Settings of a pretraining objective, and how to make its parts.

    The loop knows nothing else of an objective: what a worker attaches to each picture (`view`) and the module that
    turns a batch of it into a loss (`build`).
    """

    @abstractmethod
    def view(self, augmentation: "Augmentation", image_size: int, patch_size: int) -> "View":
        """What makes a training sample of a decoded picture; runs in a data worker, so it must pickle."""

    @abstractmethod
    def build(self, encoder: Any) -> Any:
        """The module to train: `module(batch) -> Loss`, with attributes `encoder` and `description`."""
