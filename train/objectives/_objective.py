"""What an objective offers to the loop."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kamim_analysis.train.objective_module import ObjectiveModule
    from kamim_analysis.train.recipe import Recipe
    from kamim_analysis.train.start import Start
    from kamim_analysis.train.views import Augmentation, View


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """Settings of an objective, and how to make its parts.

    The loop knows nothing else of an objective: which pictures and which encoder it starts from (`start`), what a
    worker attaches to each picture (`view`) and the module that turns a batch of it into a loss (`build`).
    """

    def check(self, recipe: "Recipe") -> None:
        """Refuse settings that no run can have, with UserError; imports nothing heavy."""
        from kamim_analysis.errors import UserError
        from kamim_analysis.timm_names import SHORT_NAMES, check_architecture

        encoder = recipe.encoder
        if encoder.name is None or encoder.image_size is None:
            raise UserError("encoder.name and encoder.image_size are missing; give both, such as vit_base and 192")
        if encoder.name not in SHORT_NAMES:
            check_architecture(encoder.name)

    def workers_work(self) -> str:
        """What its view leaves to data workers, in words, so that it knows no `data.device_augment`; empty: nothing."""
        return ""

    def start(self, recipe: "Recipe") -> "Start":
        """Pictures and encoder; draws random weights from torch's global random state."""
        from kamim_analysis.train.start import from_random_weights

        return from_random_weights(recipe)

    @abstractmethod
    def view(self, augmentation: "Augmentation", encoder: Any) -> "View":
        """What makes a training sample of a decoded picture; runs in a data worker, so it must pickle."""

    @abstractmethod
    def build(self, start: "Start") -> "ObjectiveModule":
        """The module to train."""
