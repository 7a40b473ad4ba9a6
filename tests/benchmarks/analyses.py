"""What hooks and streaming analyses add to a bare forward pass of ViT-S/16 at 192 px."""

import copy
import sys

import torch
from _streaming import STREAMING
from _timing import medians
from PIL import Image
from timm.data import create_transform

from kamim_analysis.analyses._analysis import Subject
from kamim_analysis.analyses._suite import Suite
from kamim_analysis.data import open_pictures
from kamim_analysis.encoders import anatomy, evaluating
from kamim_analysis.evaluation_set import ImageBatch
from kamim_analysis.opening import load_encoder
from kamim_analysis.reconstruction import MEAN, STD


def main() -> None:
    """Print seconds for a batch of 32 and ratios to the bare pass, each analysis alone and all together."""
    torch.manual_seed(0)
    encoder = load_encoder("random:vit_small", image_size=192)
    # real pictures: noise has keypoints everywhere
    transform = create_transform((3, 192, 192), mean=MEAN, std=STD)
    pictures = open_pictures("photographs", "val")
    images = torch.stack([transform(Image.fromarray(pictures.read(i)[0])) for i in range(32)])
    batch = ImageBatch(images, torch.zeros(32, dtype=torch.long), torch.arange(32))
    subject = Subject(label="vit_small", anatomy=anatomy(encoder), mean=MEAN, std=STD, encoder=encoder, classes=1)

    def bare() -> None:
        with evaluating(encoder):
            encoder.forward_features(batch.images)

    unfused = copy.deepcopy(encoder)
    for module in unfused.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False

    def bare_unfused() -> None:
        with evaluating(unfused):
            unfused.forward_features(batch.images)

    functions = {"bare forward pass": bare, "unfused attention": bare_unfused}
    for names in [(name,) for name in STREAMING] + [STREAMING]:
        suite = Suite(encoder, subject, names)
        functions[" + ".join(names) if len(names) == 1 else "all streaming analyses"] = lambda suite=suite: (
            suite.update(batch)
        )
    times = medians(functions, rounds=9)
    for name, seconds in times.items():
        print(f"{name:<24} {seconds:7.3f} s   {seconds / times['bare forward pass']:.2f}x")


if __name__ == "__main__":
    sys.exit(main())
