"""A recipe: every setting of a training run, typed, grouped by what a change of it can affect. Imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from .objectives._objective import Objective


@dataclass(frozen=True, kw_only=True)
class Data:
    """Pictures and their augmentation. KAMIM: crops of 67-100% of the area, both flips."""

    source: str = "photographs"
    """`photographs`, a directory of images (with train/ and val/ or without), packed shards by directory or URL, or a
    timm data set's name."""
    root: str | None = None
    """Where a timm data set lies."""
    per_class: int | None = None
    """So many pictures of each class to train on, the first by name, as AttMask's code takes parts of ImageNet; null:
    all."""
    crop_scale: tuple[float, float] = (0.67, 1.0)
    """Area of the random crop, as a share of the picture's."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of the random crop."""
    horizontal_flip: float = 0.5
    """Probability of mirroring left and right."""
    vertical_flip: float = 0.5
    """Probability of mirroring top and bottom."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How crops are resized."""
    antialias: bool = False
    """Whether that is antialiased; KAMIM's code does not."""
    device_augment: bool = False
    """Crop, flip, detect keypoints and normalise on the device; workers decode, resize to `device_size` and draw."""
    device_size: int = 256
    """device_augment: side in pixels of the square that every picture is squeezed to before; boxes keep the shapes that
    they have in the picture."""
    decode_on_device: bool = False
    """device_augment: JPEGs are decoded there too, by torchvision (nvJPEG on CUDA); workers decode all else."""
    mixed_shards: int | None = None
    """Of packed shards, so many at a time are mixed with each other, so that a node reads few at once; null: all."""
    max_unreadable: float = 0.01
    """The run ends with an error when more than this share of the pictures could not be read."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """The vision transformer."""

    name: str | None = "vit_base"
    """vit_tiny, vit_small, vit_base, swin_tiny, swin_base, or any timm ViT or Swin by timm's name; null where the
    objective starts from a trained model."""
    image_size: int | None = 192
    """Side of the square input in pixels; null: the trained model's own."""
    patch_size: int | None = None
    """Side of a patch in pixels, where it differs from the named model's; likewise below."""
    width: int | None = None
    """Channels of a token."""
    depth: int | None = None
    """Blocks."""
    heads: int | None = None
    """Attention heads of a block."""
    drop_path: float = 0.0
    """Stochastic depth. KAMIM's code configures it and never uses it."""

    def sizes(self) -> dict[str, int]:
        """The sizes that differ from the named model's."""
        return {
            name: value
            for name in ("patch_size", "width", "depth", "heads")
            if (value := getattr(self, name)) is not None
        }


@dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW with a cosine schedule, stepped once per optimizer step."""

    batch_size: int = 2048
    """Images of one optimizer step, over all devices and accumulated micro-batches."""
    epochs: int = 100
    """Passes over the data, warm-up included. (KAMIM's code adds the warm-up on top: 110.)"""
    warmup_epochs: float = 10.0
    """Linear warm-up."""
    learning_rate: float = 8e-4
    """Peak learning rate, for the batch size above; it is not scaled."""
    min_learning_rate: float = 1e-5
    """Learning rate at the end of the cosine."""
    warmup_learning_rate: float = 1e-6
    """Learning rate at the start of the warm-up."""
    weight_decay: float = 0.05
    """Decoupled weight decay."""
    weight_decay_end: float | None = None
    """Where given, the decay goes there from `weight_decay` by half a cosine over the run, as in DINO and iBOT."""
    decay_biases_and_norms: bool = True
    """Whether biases and norms decay too, as in KAMIM's code; false leaves every one-dimensional weight out."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moments."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm at most; `.inf`: never."""
    clip_by: Literal["all", "weight"] = "all"
    """The norm over all gradients, or of each weight's own, as DINO and iBOT clip."""


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """What must not change results beyond rounding."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto`: bf16 on CUDA, float32 on CPU, where bf16 is many times slower."""
    accumulate: int = 1
    """Micro-batches of one optimizer step on each device."""
    micro_batch: int | None = None
    """Most pictures that a device takes at once; `accumulate` then follows from it and the number of devices."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Several devices: a copy of all weights on each (DDP), or each weight and its moments in parts (FSDP2)."""
    workers: int = 2
    """Processes that load pictures, for each device."""
    compile: bool = False
    """Compile each block of the encoder (torch.compile)."""


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """What is looked at while training, beside the training path."""

    every_epochs: int = 5
    """k-NN, attention distance, NMI, reconstructions and attention maps every so many epochs; 0 never. While a probe
    or a fine-tuning trains: accuracy."""
    images: int = 256
    """Validation pictures looked at; as many training pictures serve as k-NN's neighbours."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run."""

    objective: Objective
    """What is trained for, with its settings: a class of train/objectives."""
    data: Data = field(default_factory=Data)
    encoder: Encoder = field(default_factory=Encoder)
    optim: Optim = field(default_factory=Optim)
    efficiency: Efficiency = field(default_factory=Efficiency)
    monitor: Monitor = field(default_factory=Monitor)
    seed: int = 0
    """Seed of weights, order, crops and masks."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; the schedule stays that of the whole run."""
    checkpoint_every: int = 1000
    """Optimizer steps between checkpoints; one is always written at the end."""
    keep_checkpoints: int = 2
    """Older checkpoints are removed."""
    keep_every: int | None = None
    """Checkpoints of steps that this divides are never removed."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """When a loss or gradient is not finite, the weights are left as they were, what was in the batch is written to
    nonfinite.jsonl, and the run stops or goes on."""
    log_every: int = 10
    """Optimizer steps between lines of metrics.jsonl."""


#: settings that a resumed run may change: they stop, watch or speed up a run without changing its path; and what the
#: run itself found, which stands in its own recipe only
FREE_TO_CHANGE = (
    "efficiency.",
    "monitor.",
    "max_steps",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "on_nonfinite",
    "log_every",
    "objective.found_temperature",
)
