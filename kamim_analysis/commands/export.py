"""`kamim export`: a model in another library's form, with a model card."""

from pathlib import Path

from .. import plugins
from ..arguments import Parser, add_heads, whole_number

HELP = "write a model for timm or transformers, with a model card"
_FORMS = "kamim_analysis.exports"


def run(arguments: list[str]) -> None:
    """Check the command, open the model, and put the directory in place whole."""
    chosen = _parser().parse_args(arguments)
    plugins.check(chosen.format, plugins.names(_FORMS), "form")

    from .. import output
    from ..exports._directory import CARD, holds_export, write
    from ..model_spec import Reading, parse

    spec = parse(chosen.model, Reading(heads=chosen.heads))
    output.check(chosen.out, overwrite=chosen.overwrite, earlier=holds_export)

    from ..exports._card import model_card
    from ..exports._training import recipe_of
    from ..opening import open_model

    opened = open_model(spec, chosen.image_size)
    exported = plugins.load(_FORMS, chosen.format, "form").export(opened)
    recipe = recipe_of(Path(spec.target)) if spec.kind == "weights" else {}
    card = model_card(opened, exported, recipe, chosen.out.name)
    with output.written_whole(chosen.out, overwrite=chosen.overwrite) as aside:
        write(exported, card, aside)
    for note in exported.notes:
        print(f"note: {note}")
    print(f"{chosen.out} opens with {exported.loaded_from(chosen.out)}; {chosen.out / CARD} says more")


def _parser() -> Parser:
    parser = Parser("export", f"{HELP}: a directory that can be uploaded to the hub as it is.")
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="[LABEL=]SPEC; LABEL is the card's title, SPEC a run directory, a weights file (FILE@teacher for one of "
        "its encoders), a directory with config.json, timm:NAME, hf:OWNER/NAME or random:NAME",
    )
    parser.add_argument("--format", required=True, metavar="FORM", help=" or ".join(plugins.names(_FORMS)))
    parser.add_argument("--out", required=True, type=Path, help="directory to write; it must be new or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in --out")
    parser.add_argument("--image_size", type=whole_number(1), help="side of the input (default: the model's own)")
    add_heads(parser)
    return parser
