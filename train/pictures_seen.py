"""How many pictures a run sees, told before it has any. Imports no torch."""

from functools import cache

from kamim_analysis import plugins
from kamim_analysis.data import open_pictures

from .recipe import Data, Recipe


def pictures_seen(recipe: Recipe) -> int | None:
    """Pictures of all epochs, each as often as it is seen; what is left of an epoch after its last batch is not seen.

    None for data whose number only their directory tells.
    """
    length, batch = _training_pictures(recipe.data), recipe.optim.batch_size
    return None if length is None else recipe.optim.epochs * (length // batch) * batch


def _training_pictures(data: Data) -> int | None:
    """Training pictures of data that are known by name."""
    known = _sizes().get(data.source)
    if known is None:
        return None
    pictures, classes = known
    return pictures if data.per_class is None else data.per_class * classes


@cache
def _sizes() -> dict[str, tuple[int, int]]:
    """Training pictures and classes of data by name."""
    photographs = open_pictures("photographs", "train")
    named = plugins.constants("kamim_analysis.data_sets")
    sizes = {f"torch/{name}": (one["TRAINING_PICTURES"], one["CLASSES"]) for name, one in named.items()}
    return sizes | {"photographs": (len(photographs), len(photographs.classes))}
