"""The model card: README.md with the hub's metadata, saying what the weights, and the run they lie in, tell."""

import re
from pathlib import Path
from typing import Any

import yaml

from ..encoders import anatomy
from ..opening import OpenedModel
from ..reconstruction import MaskedImageModel
from ..version import __version__
from ._exported import Exported, evaluation
from ._training import facts, objective_of

_SIMMIM = """\
@inproceedings{xie2022simmim,
  title={SimMIM: A Simple Framework for Masked Image Modeling},
  author={Xie, Zhenda and Zhang, Zheng and Cao, Yue and Lin, Yutong and Bao, Jianmin and Yao, Zhuliang and Dai, Qi
          and Hu, Han},
  booktitle={CVPR},
  year={2022},
  note={arXiv:2111.09886}
}"""
_KAMIM = """\
@misc{krishna2024kamim,
  title={Keypoint Aware Masked Image Modelling},
  author={Krishna, Madhava and Subramanyam, A V},
  year={2024},
  note={arXiv:2407.13873}
}"""
_ATTMASK = """\
@inproceedings{kakogeorgiou2022attmask,
  title={What to Hide from Your Students: Attention-Guided Masked Image Modeling},
  author={Kakogeorgiou, Ioannis and Gidaris, Spyros and Psomas, Bill and Avrithis, Yannis and Bursuc, Andrei
          and Karantzalos, Konstantinos and Komodakis, Nikos},
  booktitle={ECCV},
  year={2022},
  note={arXiv:2203.12719}
}"""
_IBOT = """\
@inproceedings{zhou2022ibot,
  title={iBOT: Image BERT Pre-Training with Online Tokenizer},
  author={Zhou, Jinghao and Wei, Chen and Wang, Huiyu and Shen, Wei and Xie, Cihang and Yuille, Alan and Kong, Tao},
  booktitle={ICLR},
  year={2022},
  note={arXiv:2111.07832}
}"""
_LATENT_MIM = """\
@inproceedings{wei2024latentmim,
  title={Towards Latent Masked Image Modeling for Self-Supervised Visual Representation Learning},
  author={Wei, Yibing and Gupta, Abhinav and Morgado, Pedro},
  booktitle={ECCV},
  year={2024},
  note={arXiv:2407.15837}
}"""
_MAE = """\
@inproceedings{he2022mae,
  title={Masked Autoencoders Are Scalable Vision Learners},
  author={He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll\\'ar, Piotr and Girshick, Ross},
  booktitle={CVPR},
  year={2022},
  note={arXiv:2111.06377}
}"""
# the papers behind an objective
_PAPERS = {
    "SimMIM": (_SIMMIM,),
    "KAMIM": (_KAMIM, _SIMMIM),
    "AttMask": (_ATTMASK, _IBOT),
    "LatentMIM": (_LATENT_MIM,),
    "MAE": (_MAE,),
}
_FEATURES = """\
Features for research: to look at, to probe, or to fine-tune from. This is no classifier, and nothing here says how
good or how fair its features are for other pictures than those it was trained on: measure before you rely on them."""
_CONTROL = """\
A control with random weights, for comparison with trained ones. It has learned nothing."""
_LICENCE = """\
None is stated, for the export knows none. Whoever publishes these weights should add `license:` to the metadata of
this file, and mind the terms of the source weights and of the pictures they were trained on."""
# what would be markup in a heading or a line
_MARKUP = re.compile(r"([\\`*_~|#$\[\]<>&])")


def model_card(opened: OpenedModel, exported: Exported, recipe: dict[str, Any], folder: str) -> str:
    """README.md for an export in a directory called `folder`; `recipe` is the run's, empty where there is none."""
    sections = {
        "Use": _use(exported, folder),
        "Training": _bullets(_training(opened, recipe)),
        "Evaluation transform": _transform(opened),
        "Intended use and limits": _CONTROL if _is_random(opened) else _FEATURES,
        "Licence": _LICENCE,
        "Provenance": _bullets(_provenance(opened)),
        "Citation": "\n\n".join(f"```bibtex\n{paper}\n```" for paper in _PAPERS.get(objective_of(recipe), ())),
    }
    head = [_metadata(opened, exported, recipe), f"# {_plain(_name(opened))}", _summary(opened, exported)]
    return "\n\n".join([*head, *(f"## {name}\n\n{text}" for name, text in sections.items() if text)]) + "\n"


def _metadata(opened: OpenedModel, exported: Exported, recipe: dict[str, Any]) -> str:
    """The hub's front matter. It names no licence: that is the owner's to give."""
    data = {
        "library_name": exported.library,
        "pipeline_tag": "image-feature-extraction",
        "model_name": _name(opened),
        "tags": _tags(opened, recipe),
    }
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---"


def _tags(opened: OpenedModel, recipe: dict[str, Any]) -> list[str]:
    family = anatomy(opened.encoder).family
    tags = [{"vit": "vision-transformer", "swin": "swin-transformer"}.get(family, family), "kamim-analysis"]
    if _is_random(opened):
        return ["random-weights", *tags]
    if recipe or opened.masked_model is not None:
        objective = objective_of(recipe).lower()
        return ["self-supervised-learning", "masked-image-modeling", *filter(None, [objective]), *tags]
    return tags


def _summary(opened: OpenedModel, exported: Exported) -> str:
    """What it is, and what this form of it lacks."""
    encoder, body = opened.encoder, anatomy(opened.encoder)
    heads = "-".join(dict.fromkeys(str(block.heads) for block in body.blocks))
    weights = sum(parameter.numel() for parameter in encoder.parameters())
    merged = f", merged step by step to {body.stride} px" if body.stride != body.mask_patch else ""
    classes = exported.configs["config.json"].get("architectures", [])
    held = f" It is stored as transformers' `{classes[0]}`." if classes else ""
    what = (
        f"An encoder of pictures: timm's `{encoder.architecture}` ({type(encoder).__name__}) with {len(body.blocks)} "
        f"blocks, {heads} heads, {body.width} channels and {weights:,} weights. It takes pictures of "
        f"{body.image_size.width} x {body.image_size.height} px in patches of {body.mask_patch} px{merged}.{held}"
    )
    return "\n\n".join([what, *([_bullets(exported.notes)] if exported.notes else [])])


def _use(exported: Exported, folder: str) -> str:
    """A program that runs beside the exported directory."""
    return (
        f"After `pip install {exported.library}`, where this directory lies as `{_code(folder)}` "
        f"(from the hub: `{_code(exported.from_hub)}`):\n\n```python\n{exported.used_from(folder)}```"
    )


def _training(opened: OpenedModel, recipe: dict[str, Any]) -> list[str]:
    told = opened.provenance
    if _is_random(opened):
        return [f"none: seeded random weights (seed {told['seed']})"]
    lines = [f"{what}: `{_code(words)}`" for what, words in facts(recipe).items()] if recipe else []
    if "step" in told:
        version = _plain(str(told.get("version", "unknown")))
        lines.append(f"weights after step {told['step']}, written by kamim-analysis {version}")
    if isinstance(opened.masked_model, MaskedImageModel):
        lines.append("the source holds a mask token and a linear reconstruction head, as SimMIM trains them")
    elif opened.masked_model is not None:
        lines.append("the source holds a mask token and a decoder of hidden patches, as MAE trains them")
    if "masking" in told and not recipe:
        lines.append(f"{told['masking']['ratio']:.0%} of the units of {told['masking']['unit']} px were hidden")
    return lines if recipe else [*lines, "the source does not tell more of the training"]


def _transform(opened: OpenedModel) -> str:
    """timm's evaluation transform in words."""
    how = evaluation(opened)
    _colours, height, width = how["input_size"]
    larger = [int(side / how["crop_pct"]) for side in (width, height)]
    first = {
        "squash": f"Resize to {larger[0]} x {larger[1]} px, whatever the proportions",
        "border": f"Resize the longer side to {larger[0]} px and pad",
    }.get(how["crop_mode"], f"Resize the shorter side to {min(larger)} px")
    mean, std = ((", ".join(f"{value:g}" for value in how[name])) for name in ("mean", "std"))
    return (
        f"{first} ({how['interpolation']}), take the central {width} x {height} px, scale to [0, 1], subtract the "
        f"mean ({mean}) and divide by the standard deviation ({std}) of red, green and blue."
    )


def _provenance(opened: OpenedModel) -> list[str]:
    told = opened.provenance
    layout = f", read as layout `{told['format']}`" if "format" in told else ""
    lines = [f"source: `{_code(_without_folder(opened.spec))}`{layout}"]
    if "sha256" in told:
        lines.append(f"sha256 of the source's weights: `{told['sha256']}`")
    lines += [_plain(note) for note in told.get("notes", ())]
    return [*lines, f"exported by kamim-analysis {__version__}"]


def _is_random(opened: OpenedModel) -> bool:
    return opened.spec.startswith("random:")


def _name(opened: OpenedModel) -> str:
    """The label, or what is left of the SPEC without the folders of the machine that exports."""
    named = opened.label not in ("", opened.spec)
    return " ".join((opened.label if named else _without_folder(opened.spec)).split())


def _without_folder(spec: str) -> str:
    if spec.startswith(("hf:", "timm:")):
        return spec
    prefix = "random:" if spec.startswith("random:") else ""
    return prefix + Path(spec.removeprefix(prefix)).resolve().name


def _code(text: str) -> str:
    """Text that cannot break out of a line, or of code in it."""
    return " ".join(text.replace("`", "'").split())


def _plain(text: str) -> str:
    """Text in one line that Markdown leaves as it is."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def _bullets(lines: tuple[str, ...] | list[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)
