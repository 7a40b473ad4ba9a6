"""How a model was trained, as far as the run tells that its weights lie in."""

from pathlib import Path
from typing import Any

import yaml

from ..plain_data import yaml_of

# as `train/run_directory.py` has it, which the core does not import
_RECIPE = "config.yaml"


def recipe_of(weights: Path) -> dict[str, Any]:
    """The recipe of the run of `RUN/encoder.safetensors` or `RUN/checkpoints/STEP/model.safetensors`; else empty."""
    run = weights.parent
    if run.parent.name == "checkpoints":
        run = run.parent.parent
    elif weights.name != "encoder.safetensors":
        return {}
    try:
        recipe = yaml_of((run / _RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return recipe if isinstance(recipe, dict) and objective_of(recipe) else {}


def objective_of(recipe: dict[str, Any]) -> str:
    """The objective's name, such as KAMIM; empty where the recipe has none."""
    objective = recipe.get("objective")
    path = objective.get("class_path") if isinstance(objective, dict) else None
    return path.split(".")[-1] if isinstance(path, str) else ""


def facts(recipe: dict[str, Any]) -> dict[str, str]:
    """Objective, data, optimisation and seed in words, without the folders of the machine that trained."""
    data = dict(recipe.get("data") or {})
    source = str(data.pop("source", "not noted"))
    data.pop("root", None)
    is_path = Path(source).is_absolute() or Path(source).is_dir()
    return {
        "objective": _words(recipe["objective"]),
        "data": f"{Path(source).name if is_path else source} ({_words(data)})",
        "optimisation": _words(recipe.get("optim") or {}),
        "seed": str(recipe.get("seed", "not noted")),
    }


def _words(value: Any) -> str:
    """Settings in one line: `KAMIM (mask_unit 32, detector FAST (threshold 10))`."""
    if isinstance(value, dict) and "class_path" in value:
        name, settings = str(value["class_path"]).split(".")[-1], value.get("init_args") or {}
        return f"{name} ({_words(settings)})" if settings else name
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, list):
        return f"[{', '.join(map(_words, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
