"""Opening a weights file: seconds from file to ready, and peak memory against the file's size.

Each file is opened in a process of its own. Seconds are of opening alone, hash included; imports of torch and timm are
printed apart. The peak is what opening adds to the process that has imported them.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path


def vit_b(path: Path) -> None:
    """ViT-B/16 in timm's names, as most authors publish it."""
    import timm
    import torch

    torch.save({"model": timm.create_model("vit_base_patch16_224", num_classes=0).state_dict()}, path)


def swin_b(path: Path) -> None:
    """Swin-B in timm's names."""
    import timm
    import torch

    torch.save({"model": timm.create_model("swin_base_patch4_window7_224", num_classes=0).state_dict()}, path)


def vit_b_transformers(path: Path) -> None:
    """ViT-B/16 in transformers' names, whose query, key and value have to be fused."""
    import torch
    from transformers import ViTConfig, ViTModel

    torch.save({"model_state_dict": ViTModel(ViTConfig(), add_pooling_layer=False).state_dict()}, path)


def vit_b_safetensors(path: Path) -> None:
    """ViT-B/16 in timm's names as safetensors."""
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("vit_base_patch16_224", num_classes=0).state_dict(), path)


FILES: dict[str, Callable[[Path], None]] = {
    "ViT-B.pth": vit_b,
    "ViT-B.safetensors": vit_b_safetensors,
    "ViT-B of transformers.pth": vit_b_transformers,
    "Swin-B.pth": swin_b,
}


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def opened(path: Path) -> None:
    """Open a file and print seconds of imports, seconds of opening, and added peak memory against the file's size."""
    start = time.perf_counter()
    # what the command line has imported before it opens a model
    for module in ("timm.data", "torchvision.transforms", "kamim_analysis.opening"):
        import_module(module)
    imported, before = time.perf_counter(), peak_bytes()
    import_module("kamim_analysis.opening").load_encoder(str(path))
    seconds = time.perf_counter() - imported
    print(imported - start, seconds, (peak_bytes() - before) / path.stat().st_size)


def main() -> None:
    """Print a line for each file."""
    if len(sys.argv) > 2:
        FILES[sys.argv[2]](Path(sys.argv[1]))
    elif len(sys.argv) > 1:
        opened(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            for name in FILES:
                path = Path(folder) / name
                # made in another process: what it takes must not count
                subprocess.run([sys.executable, __file__, str(path), name], check=True, capture_output=True)
                done = subprocess.run([sys.executable, __file__, str(path)], check=True, capture_output=True, text=True)
                imports, seconds, ratio = map(float, done.stdout.split())
                size = path.stat().st_size / 2**20
                print(f"{name:26s} {size:4.0f} MB: {seconds:.2f} s after {imports:.1f} s of imports, peak {ratio:.2f}x")
                path.unlink()


if __name__ == "__main__":
    main()
