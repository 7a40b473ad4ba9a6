"""What a weights file is: its layout, which of its encoders is meant, and the timm model that it becomes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

from . import plugins
from .checkpoints._layout import Hints, Recognised, Renamed, State, lacking, rename
from .errors import UserError, some
from .weights_file import Contents

_LAYOUTS = "kamim_analysis.checkpoints"
#: of several encoders in a file: the layout's first, else the averaged ones that their authors evaluate
_PREFERRED = ("teacher", "target_encoder")
_WHOLE: Sequence[tuple[str, str]] = (("", ""),)


@dataclass(frozen=True)
class Identity:
    """A recognised weights file."""

    layout: str
    branch: str
    """Which of the file's encoders was taken; "" where there is one."""
    recognised: Recognised
    notes: tuple[str, ...]
    """What was guessed, chosen or set aside, a line each."""


@dataclass(frozen=True)
class _Candidate:
    """One encoder of a file seen as one layout."""

    branch: str
    name: str
    layout: ModuleType
    state: State

    @cached_property
    def lacking(self) -> list[str]:
        return lacking(self.state, self.layout.REQUIRED)

    @cached_property
    def renamed(self) -> Renamed:
        return rename(self.state, self.layout.RULES)

    @property
    def fits(self) -> bool:
        return not self.lacking and not self.renamed.unknown

    def misfit(self) -> str:
        """Why it does not fit."""
        reasons = [f"lacks {some(self.lacking)}"] if self.lacking else []
        reasons += [f"does not know {some(self.renamed.unknown)}"] if self.renamed.unknown else []
        where = f" (as {self.branch})" if self.branch else ""
        return f"{self.name}{where} {' and '.join(reasons)}"


def identify(
    contents: Contents, source: str, hints: Hints, *, layout: str | None = None, branch: str | None = None
) -> Identity:
    """Find the layout of a file from the keys of its state dicts and convert the weights to timm's names.

    `layout` and `branch` are the user's choices where several fit. Raises UserError when none fits, naming the nearest
    layouts and the keys that did not fit; when several fit; and for a branch that the file does not have.
    """
    candidates = list(_candidates(contents.states, layout))
    fitting = [candidate for candidate in candidates if candidate.fits]
    if not fitting:
        raise UserError(_no_fit(source, contents, candidates))
    branches = tuple(dict.fromkeys(candidate.branch for candidate in fitting))
    named = [inner for inner, _prefix in getattr(fitting[0].layout, "BRANCHES", _WHOLE) if inner]
    taken = _choose(branches, branch, (*named, *_PREFERRED), source)
    chosen = [candidate for candidate in fitting if candidate.branch == taken]
    if len(chosen) > 1:
        names = ", ".join(candidate.name for candidate in chosen)
        raise UserError(f"{source!r} fits several layouts ({names}); choose one with --format")
    recognised = _converted(chosen[0], hints, source)
    notes = (*_choice_note(branches, taken), *_aside_note(chosen[0].renamed.aside), *recognised.announcements)
    return Identity(chosen[0].name, taken, recognised, notes)


def _converted(candidate: _Candidate, hints: Hints, source: str) -> Recognised:
    try:
        recognised: Recognised = candidate.layout.convert(candidate.renamed.state, hints)
    except (KeyError, IndexError, ValueError, RuntimeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{source!r} has the keys of {candidate.name} but not its shapes: {reason}") from error
    return recognised


def _candidates(states: dict[str, State], only: str | None) -> Iterator[_Candidate]:
    layouts = {only: plugins.load(_LAYOUTS, only, "format")} if only else plugins.load_all(_LAYOUTS)
    for entry, state in states.items():
        for name, layout in layouts.items():
            prefixes = getattr(layout, "BRANCHES", _WHOLE)
            for inner, prefix in prefixes:
                encoder = _under(state, prefix, [other for _inner, other in prefixes if other != prefix])
                if encoder:
                    yield _Candidate(inner or entry, name, layout, encoder)


def _under(state: State, prefix: str, others: list[str]) -> State:
    """The encoder below a prefix, with what lies outside of all the layout's encoders; empty if there is none.

    What would have an encoder's key without its prefix is marked: `../norm.weight` beside `encoder.norm.weight`.
    """
    if not any(key.startswith(prefix) for key in state):
        return {}
    elsewhere = tuple(other for other in others if other and not prefix.startswith(other)) if prefix else ()
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    outside = {key: value for key, value in state.items() if not key.startswith((prefix, *elsewhere))}
    return inside | {f"../{key}" if key in inside else key: value for key, value in outside.items()}


def _choose(branches: tuple[str, ...], wanted: str | None, preferred: Sequence[str], source: str) -> str:
    """The user's choice, else the layout's first, else a teacher."""
    if wanted is None:
        return next((branch for branch in preferred if branch in branches), branches[0])
    if wanted not in branches:
        there = ", ".join(filter(None, branches)) or "one encoder without a name"
        raise UserError(f"{source!r} has no encoder called {wanted!r}; it has {there}")
    return wanted


def _choice_note(branches: tuple[str, ...], taken: str) -> list[str]:
    others = [branch for branch in branches if branch != taken]
    return [f"of its encoders {taken} is taken; also there: {', '.join(others)} (FILE@NAME)"] if others else []


def _aside_note(aside: list[str]) -> list[str]:
    return [f"left out: {some(sorted(aside))}"] if aside else []


def _no_fit(source: str, contents: Contents, candidates: list[_Candidate]) -> str:
    """The nearest layouts: those that lack least, then those that know most keys."""
    ranked = sorted(candidates, key=lambda one: (len(one.lacking), len(one.renamed.unknown)))
    near = "; ".join(candidate.misfit() for candidate in ranked[:2])
    keys = some([key for state in contents.states.values() for key in state])
    return f"{source!r} fits no known layout (kamim models lists them). Nearest: {near or 'none'}. Its keys: {keys}"
