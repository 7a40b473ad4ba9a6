"""`kamim models`: the named encoders and known formats, or what a weights file is."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..arguments import Parser, add_reading, reading
from ..errors import UserError

if TYPE_CHECKING:
    from ..source import Source

HELP = "list the named encoders and known formats, or say what a weights file or run is"


def run(arguments: list[str]) -> None:
    """Without arguments the lists; with them a description of each, from keys and shapes, without running it."""
    parser = Parser("models", HELP)
    parser.add_argument(
        "models", nargs="*", metavar="SPEC", help="run directories, weights files, FILE@BRANCH, hf:OWNER/NAME"
    )
    add_reading(parser)
    chosen = parser.parse_args(arguments)
    if not chosen.models:
        _list()
        return

    from ..model_spec import parse_all

    specs = parse_all(chosen.models, reading(chosen))
    for spec in specs:
        if spec.kind not in ("weights", "hub"):
            raise UserError(f"{spec.spec!r} is no weights file, run directory or hf:OWNER/NAME")

    from ..opening import local_weights
    from ..source import read_source

    for spec in specs:
        print("\n".join(_description(spec.spec, read_source(local_weights(spec), spec.reading))))


def _list() -> None:
    from ..plugins import summaries
    from ..timm_names import SHORT_NAMES, architectures

    print("by name, at 192 px unless another image size is given:")
    for short, timm_name in SHORT_NAMES.items():
        print(f"  {short:<10}  {timm_name}")
    print(f"by timm's name: any ViT or Swin among its {len(architectures())} architectures (timm.list_models())")
    print("weights files, recognised by their keys:")
    for name, whose in summaries("kamim_analysis.checkpoints").items():
        print(f"  {name:<18}  {whose}")
    print("as MODEL: [LABEL=]RUN | FILE | FILE@BRANCH | DIRECTORY | timm:NAME | hf:OWNER/NAME | random:NAME|RUN")


def _description(spec: str, source: "Source") -> list[str]:
    """What a source holds, a line each."""
    recognised = source.recognised
    weights = sum(tensor.numel() for tensor in recognised.encoder.values())
    kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in recognised.encoder.values()})
    head = {"linear": "SimMIM's mask token and linear head", "mae": "MAE's mask token and decoder"}[recognised.head]
    arguments = ", ".join(f"{name}={value}" for name, value in recognised.model_args.items() if value is not None)
    branch = f", its {source.branch}" if source.branch else ""
    step = source.description.get("step")
    return [
        f"{spec}: format {source.layout}{branch}",
        f"  {_sizes(recognised.model_args)}",
        f"  {weights:,} weights ({', '.join(kinds)})" + (f" after step {step}" if step is not None else ""),
        *([f"  with {head}"] if recognised.decoder else []),
        *(f"  {note}" for note in source.notes),
        f"  timm: {recognised.architecture}({arguments})",
        f"  sha256 {source.sha256}",
    ]


def _sizes(arguments: Mapping[str, Any]) -> str:
    """What timm's arguments say of the sizes, in words; those that the architecture's name implies are left out."""
    words = {
        "img_size": "{} px",
        "patch_size": "patches of {} px",
        "embed_dim": "{} channels",
        "depth": "{} layers",
        "depths": "{} layers",
        "num_heads": "{} heads",
        "window_size": "windows of {}",
        "reg_tokens": "{} registers",
        "num_reg_tokens": "{} registers",
    }
    return ", ".join(text.format(arguments[name]) for name, text in words.items() if arguments.get(name))
