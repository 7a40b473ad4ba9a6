"""`kamim models`: the named encoders, or what a weights file is."""

from ..arguments import Parser
from ..errors import UserError

HELP = "list the named encoders, or say what a weights file or run is"


def run(arguments: list[str]) -> None:
    """Without arguments a list; with them a description of each."""
    parser = Parser("models", HELP)
    parser.add_argument("models", nargs="*", metavar="SPEC", help="run directories or weights files to describe")
    chosen = parser.parse_args(arguments)
    if chosen.models:
        _describe(chosen.models)
        return

    from ..timm_names import SHORT_NAMES, architectures

    print("by name, at 192 px unless another image size is given:")
    for short, timm_name in SHORT_NAMES.items():
        print(f"  {short:<10}  {timm_name}")
    print(f"by timm's name: any ViT or Swin among its {len(architectures())} architectures (timm.list_models())")
    print("as MODEL: [LABEL=]RUN_DIRECTORY | WEIGHTS_FILE | timm:NAME | random:NAME | random:RUN_DIRECTORY")


def _describe(texts: list[str]) -> None:
    from ..model_spec import parse_all

    specs = parse_all(texts)
    for spec in specs:
        if spec.kind != "weights":
            raise UserError(f"{spec.spec!r} is no weights file or run directory")

    from ..opening import describe_weights

    for spec in specs:
        print(f"{spec.spec}: {describe_weights(spec)}")
