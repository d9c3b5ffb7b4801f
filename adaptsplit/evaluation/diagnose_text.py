"""A diagnosis in words and tables: one list of sections, written as Markdown or printed in the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from adaptsplit.evaluation.diagnose_document import Diagnosis
from adaptsplit.evaluation.results import Estimate

DASH = "\N{EN DASH}"
SHOWN_STATICS = {"best static": "best_static", "chosen on train": "chosen_on_train"}
SHOWN_SHARES = 4


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, a sentence on how to read it, and a table; the first column is text, the others are numbers."""

    title: str
    note: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sections(document: Diagnosis) -> list[Section]:
    """Return every table of a diagnosis that has rows."""
    every = (_standings, _uses, _knobs, _relaxations, _groups, _weights)
    return [section for section in (make(document) for make in every) if section.rows]


def interval(value: Estimate, digits: int = 4) -> str:
    """Return ``+0.0120 [+0.0080, +0.0160]``, a dash where it is unknown."""
    if value.value is None or value.low is None or value.high is None:
        return DASH
    return f"{value.value:+.{digits}f} [{value.low:+.{digits}f}, {value.high:+.{digits}f}]"


def short(name: str) -> str:
    """Return how a controller is called in tables: ``oracle-informed-0`` is informed(0)."""
    names = {
        "oracle-informed-0": "informed(0)",
        "oracle-informed-0.5": "informed(0.5)",
        "oracle-informed": "informed(inf)",
        "oracle-clairvoyant": "clairvoyant",
        "bound": "upper bound",
    }
    return names.get(name, name)


def _standings(document: Diagnosis) -> Section:
    rows = []
    for row in document.standings:
        named = f" ({getattr(document, SHOWN_STATICS[row.name])})" if row.name in SHOWN_STATICS else ""
        few = f", {row.episodes} episodes" if row.episodes < document.episodes else ""
        reward = DASH if row.reward.value is None else f"{row.reward.value:.4f}"
        itself = row.role == "static" and getattr(document, SHOWN_STATICS[row.name]) == document.best_static
        rows.append((short(row.name) + named + few, reward, DASH if itself else interval(row.difference)))
    note = (
        f"Reward per frame; the best of {document.static_decisions} static decisions is chosen in hindsight. "
        f"fitted: a regression on {document.fitted.states} states."
    )
    return Section("Who earns what", note, ("controller", "reward", "less best static"), tuple(rows))


def _uses(document: Diagnosis) -> Section:
    rows = tuple(
        (
            short(use.oracle),
            str(use.distinct),
            str(use.covering_90),
            ", ".join(f"{name} {share:.0%}" for name, share in list(use.shares.items())[:SHOWN_SHARES]),
        )
        for use in document.uses
    )
    note = "An oracle knows the confidence, so its exit rules are always (0) or never (1.01)."
    headings = ("oracle", "decisions", "for 90 %", "most frequent")
    return Section("Which decisions the oracles take", note, headings, rows)


def _knobs(document: Diagnosis) -> Section:
    rows = tuple((item.knob, item.best_value, interval(item.worth)) for item in document.knobs)
    note = "What informed(inf) loses when one knob stands at its best value."
    return Section("What each knob is worth", note, ("knob", "best value", "worth"), rows)


def _relaxations(document: Diagnosis) -> Section:
    rows = tuple(
        (
            item.constraint,
            interval(item.worth),
            DASH if item.paid is None else f"{item.paid:.4f}",
            f"{item.changed:.0%}",
        )
        for item in document.relaxations
    )
    note = (
        "What informed(inf) gains when it is taken away (of a price: the gain in all other terms), what the price "
        "takes now, and the share of frames that go another way."
    )
    headings = ("constraint", "relaxing it is worth", "paid", "changed")
    return Section("What binds", note, headings, rows)


def _groups(document: Diagnosis) -> Section:
    rows = tuple(
        (group.group, interval(group.worth), interval(group.reliance)) if group.moves else (group.group, "still", "")
        for group in document.fitted.groups
    )
    note = "What the fitted controller loses when it is fitted without the group, and when it sees its mean."
    return Section("What the observation is worth", note, ("group", "fitted without", "at its mean"), rows)


def _weights(document: Diagnosis) -> Section:
    rows = tuple(
        (
            change.weight if change.factor == 1.0 else f"{change.weight.partition('_')[0]} x {change.factor:g}",
            change.best_static,
            interval(change.margin),
            ", ".join(_rules_above(change.ranking)) or "none",
        )
        for change in document.sensitivity
    )
    note = "The objective's weights halved and doubled: margin of informed(0) over the best static decision."
    return Section("If the weights were others", note, ("weight", "best static", "margin", "rules above it"), rows)


def _rules_above(ranking: tuple[str, ...]) -> list[str]:
    """Names that rank above the best static decision, oracles left out."""
    return [name for name in ranking[: ranking.index("best static")] if not name.startswith("oracle")]


def summary(document: Diagnosis) -> str:
    """Return the few sentences at the top."""
    binds = document.binding or "nothing measurable"
    return (
        f"{document.episodes} {document.split} episodes of {document.frames_per_episode} frames, seed {document.seed}"
        f"{', quick' if document.quick else ''}. What binds: {binds}."
    )


def markdown(document: Diagnosis, picture: Path | None = None) -> str:
    """Return the diagnosis as Markdown; ``picture`` is shown where there is one."""
    parts = [f"# {document.scenario}: diagnosis", document.description, f"**Adapting pays: {document.verdict}**"]
    parts.append(summary(document))
    if document.cautions:
        parts.append("\n".join(f"- {item.text}" for item in document.cautions))
    for section in sections(document):
        parts += [f"## {section.title}", section.note, _table(section)]
    if picture is not None:
        parts.append(f"![Capacity and the decisions of informed(inf) in one episode]({picture.name})")
    return "\n\n".join(parts) + "\n"


def _table(section: Section) -> str:
    rows = [section.headings, ("---",) * len(section.headings), *section.rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


WORDS = ("most frequent", "best value", "best static", "rules above it")
COLOURS = {"yes": "bold green", "no": "bold yellow", "unclear": "bold yellow"}


def terminal(document: Diagnosis) -> RenderableType:
    """Return the diagnosis for the terminal (80 columns suffice)."""
    lines: list[RenderableType] = [
        Text.assemble((document.scenario, "bold"), f": {document.description}"),
        Text(f"adapting pays: {document.verdict}", COLOURS[document.pays]),
        Text(summary(document)),
    ]
    lines += [Text(f"! {item.text}", "yellow") for item in document.cautions]
    for section in sections(document):
        lines += [Text(), _rich(section)]
    return Lines(*lines)


def _rich(section: Section) -> Table:
    table = Table(
        title=section.title,
        title_justify="left",
        title_style="bold",
        caption=section.note,
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1),
    )
    for i, heading in enumerate(section.headings):
        words = i == 0 or heading in WORDS
        folds = heading in WORDS
        table.add_column(heading, justify="left" if words else "right", no_wrap=not folds, overflow="fold")
    for row in section.rows:
        table.add_row(*(Text(cell, _style(cell)) for cell in row))
    return table


def _style(cell: str) -> str:
    """Green or red for an interval that lies on one side of zero."""
    if "[" not in cell:
        return ""
    low, high = (float(part) for part in cell[cell.index("[") + 1 : -1].split(","))
    return "green" if low > 0 else "red" if high < 0 else ""
