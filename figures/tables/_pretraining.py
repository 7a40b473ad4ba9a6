"""What a run's own recipe tells of its pre-training: the paper's method it is, if it is one, and what else it did."""

import math
from collections.abc import Mapping
from typing import Any

from ._names import METHODS, data_set, letters

# by objective: the settings without which it is another method than the paper's, and their values there
_METHOD_IS: Mapping[str, Mapping[str, object]] = {
    "SimMIM": {"masking": "random_blocks"},
    "KAMIM": {"masking": "random_blocks"},
    "MAE": {"masking": "random", "keypoint_weights": False},
    "AttMask": {"keypoint_weights": False},
    "LatentMIM": {
        "masking": "random", "target": "momentum", "target_sees": "hidden", "loss": "patch_discrimination",
        "keypoint_weights": False, "similarity_weight": 0.1, "visual_cue": True, "decoder_self_attention": True,
    },
}  # fmt: skip
_WORDS = {"keypoint_weights": "keypoint weights", "visual_cue": "no visual cue", "masking": "{} masks"}
# AttMask's paper names its runs by their masks, and iBOT is the one that masks blocks
_IBOT = {
    "block": "iBOT", "random": "iBOT, random masks", "attmask_low": "iBOT+AttMask-Low",
    "attmask_high": "iBOT+AttMask-High", "attmask_hint": "iBOT+AttMask-Hint",
}  # fmt: skip
#: KAMIM's detectors with the parameters that its public code gives them, OpenCV's own
DETECTORS: Mapping[str, Mapping[str, object]] = {
    "FAST": {"threshold": 10, "nonmax_suppression": True, "arc": "9_16"},
    "SIFT": {"features": 0, "octave_layers": 3, "contrast_threshold": 0.04, "edge_threshold": 10.0, "sigma": 1.6},
    "ORB": {"features": 500, "scale_factor": 1.2, "levels": 8, "edge_threshold": 31, "fast_threshold": 20},
}


def pretraining(training: Mapping[str, Any]) -> dict[str, str]:
    """Facts of a complete recipe, as a run's description holds it."""
    name = str(training["objective"]["class_path"]).rsplit(".", 1)[-1]
    given: Mapping[str, Any] = training["objective"].get("init_args") or {}
    optim, data = training["optim"], data_set(str(training["data"]["source"]))
    per_class = training["data"].get("per_class")
    found = {
        "method": method(name, given),
        "pretraining_data": f"{data}, {per_class} a class" if per_class else data,
        "pretraining_epochs": optim["epochs"],
        "pretraining_resolution": training["encoder"]["image_size"],
        "pretraining_batch_size": optim.get("batch_size"),
        "pretraining_learning_rate": optim.get("learning_rate"),
        "local_crops": given.get("local_crops"),
        "prototypes": given.get("head_outputs"),
        "gap": given.get("gap"),
        **_hidden(name, given),
        **_weights(name, given),
    }
    return {key: str(value) for key, value in found.items() if value is not None}


def method(name: str, given: Mapping[str, Any]) -> str:
    """A paper's name of an objective, with what makes it another method behind it.

    >>> method("AttMask", {"masking": "block"}), method("LatentMIM", {"target": "joint", "gap": 0})
    ('iBOT', 'Latent MIM, target joint, no gap')
    >>> method("KAMIM", {"masking": "attmask_high", "weight_patch": 8})
    'KAMIM, attmask_high masks'
    """
    known = METHODS.get(letters(name), name)
    if name == "AttMask":
        masking = str(given.get("masking", "attmask_hint"))
        known = _IBOT.get(masking, f"iBOT, {masking} masks")
    else_than = {key: given.get(key, value) for key, value in _METHOD_IS.get(name, {}).items()}
    changed = [
        _WORDS.get(key, f"{key.replace('_', ' ')} {{}}").format(value)
        for key, value in else_than.items()
        if value != _METHOD_IS[name][key]
    ]
    return ", ".join([known, *changed, *(["no gap"] if given.get("gap") == 0 else [])])


def _hidden(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """How much is hidden."""
    if "visible" in given:
        return {"visible": given["visible"]}
    if "mask_ratio" not in given:
        return {}
    ratio, variation = float(given["mask_ratio"]), float(given.get("mask_ratio_variation", 0))
    found = {"pretraining_mask_ratio": f"{ratio:g}"}
    if given.get("masking", "random_blocks") == "random_blocks":
        return found | {"mask_unit": given.get("mask_unit")}
    if variation:
        found["pretraining_mask_ratio"] = f"{ratio - variation:g} to {ratio + variation:g}"
    return found | {"mask_probability": given.get("mask_probability")}


def _weights(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Which keypoints weight the loss or rank patches, and how; nothing where there are none."""
    weighted = name == "KAMIM" or bool(given.get("keypoint_weights"))
    if not weighted and not str(given.get("masking")).startswith("keypoint_"):
        return {}
    found = {"map_style": given.get("map_style"), "detector": _detector(given.get("detector"))}
    return found | ({"weight_patch": given.get("weight_patch"), "keypoint_temperature": _temperature(given)}
                    if weighted else {})  # fmt: skip


def _temperature(given: Mapping[str, Any]) -> object:
    """T; of one that the run itself found, that it did."""
    chosen, found = given.get("temperature"), given.get("found_temperature")
    return chosen if chosen != "auto" else "auto" if found is None else f"{found:.3g} (auto)"


def _detector(chosen: Mapping[str, Any] | None) -> str | None:
    """A detector's name, with those of its parameters that are not KAMIM's behind it."""
    if not chosen:
        return None
    name = str(chosen["class_path"]).rsplit(".", 1)[-1]
    papers = DETECTORS.get(name, {})
    given = {key: value for key, value in (chosen.get("init_args") or {}).items() if key in papers}
    changed = [f"{key.replace('_', ' ')} {value}" for key, value in given.items() if not _same(value, papers[key])]
    return f"{name} ({', '.join(changed)})" if changed else name


def _same(ours: object, papers: object) -> bool:
    if isinstance(ours, float) and isinstance(papers, float):
        return math.isclose(ours, papers)
    return ours == papers
