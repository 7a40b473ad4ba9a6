"""The parts of gpu.py that look at analyses: what they add to a forward pass, and what precision does to them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from _gpu_parts import Row, Setting, rate_row, ratio_row, seconds
from _streaming import STREAMING


def streaming(setting: Setting) -> Iterator[Row]:
    """All streaming analyses on, against the bare forward pass, both in bf16."""
    from kamim_analysis.encoders import evaluating

    encoder, suite_of, batches = analysed(setting, setting.of(256, 4), setting.of(256, 4))

    def bare() -> None:
        with evaluating(encoder), autocast(setting, "bf16"):
            encoder.forward_features(batches[0].images)

    suite = suite_of()

    def watched() -> None:
        with autocast(setting, "bf16"):
            suite.update(batches[0])

    row = ratio_row(setting, "all streaming analyses / bare bf16 pass", watched, bare, setting.of(9, 2), "<= 1.5")
    yield row
    yield rate_row("bare bf16 forward pass", len(batches[0].images), seconds(setting, bare, 5), "images/s")


def precision(setting: Setting) -> Iterator[Row]:
    """What bf16 and compilation change in the analyses' numbers, in half-widths of their own 95% intervals."""
    encoder, suite_of, batches = analysed(setting, setting.of(256, 8), setting.of(64, 4))
    numbers = {}
    for name in ("fp32", "bf16", "fp32 with compiled MLPs"):
        if setting.late:
            yield Row(f"analyses in {name}", "skipped: no time left")
            continue
        if "compiled" in name:
            for block in encoder.blocks:  # the one part in which no hook listens
                block.mlp.compile()
        suite = suite_of()
        with autocast(setting, name):
            for batch in batches:
                suite.update(batch)
        numbers[name] = suite.outcome().rows
        if name != "fp32":
            worst, statistic = largest_change(numbers["fp32"], numbers[name])
            yield Row(f"analyses in {name}: largest change over its half-width ({statistic})", worst, "", asked="< 1")


def largest_change(left: list[Any], right: list[Any]) -> tuple[float, str]:
    """The largest difference of two runs' numbers in half-widths of the first one's interval, and which it is."""
    worst, where = 0.0, "none has an interval"
    for one, other in zip(left, right, strict=True):
        half = (one.ci_high - one.ci_low) / 2
        if half > 0 and abs(one.value - other.value) / half >= worst:
            worst, where = abs(one.value - other.value) / half, f"{one.analysis} {one.statistic}, layer {one.layer}"
    return worst, where


def autocast(setting: Setting, name: str) -> Any:
    """bf16 where the name says so."""
    return torch.autocast(setting.device.type, torch.bfloat16, enabled=name == "bf16")


def analysed(setting: Setting, images: int, batch_size: int) -> tuple[Any, Callable[[], Any], list[Any]]:
    """A random ViT-B, a maker of suites of all streaming analyses, and batches of photographs on the device."""
    from PIL import Image
    from timm.data import create_transform

    from kamim_analysis.analyses._analysis import Subject
    from kamim_analysis.analyses._suite import Suite
    from kamim_analysis.data import open_pictures
    from kamim_analysis.encoders import anatomy
    from kamim_analysis.evaluation_set import ImageBatch
    from kamim_analysis.opening import load_encoder
    from kamim_analysis.reconstruction import MEAN, STD

    name, side = setting.of(("vit_base", 192), ("vit_tiny", 64))
    encoder = load_encoder(f"random:{name}", image_size=side).to(setting.device)
    transform = create_transform((3, side, side), mean=MEAN, std=STD)
    pictures = open_pictures("photographs", "val")
    shown = torch.stack([transform(Image.fromarray(pictures.read(i)[0])) for i in range(images)])
    batches = [
        ImageBatch(part.to(setting.device), torch.zeros(len(part), dtype=torch.long), at)
        for part, at in zip(shown.split(batch_size), torch.arange(images).split(batch_size), strict=True)
    ]
    subject = Subject(label=name, anatomy=anatomy(encoder), mean=MEAN, std=STD, encoder=encoder, classes=1)
    return encoder, lambda: Suite(encoder, replace(subject), STREAMING), batches
