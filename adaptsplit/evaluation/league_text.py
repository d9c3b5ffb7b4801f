"""The league in words and in the terminal: headline, cells of tables shared with the page, the rich table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from adaptsplit.evaluation.league_document import (
    PAYS,
    AblationRow,
    Duel,
    League,
    NaviBound,
    NaviRow,
    ScenarioEntry,
    Standing,
    Tally,
)
from adaptsplit.evaluation.report_tables import DASH, text_of
from adaptsplit.evaluation.results import Estimate

METHOD: dict[str, str] = {
    "scenarios": "Adapting pays where informed(0) is above the best static decision in hindsight beyond doubt on the "
    "episodes of this league, and the shipped diagnosis (made on validation data) does not say no.",
    "normalised score": "Per scenario: 0 is the best static decision in hindsight, 1 is oracle-informed-0, which knows "
    "the link and the frame of the moment and nothing of the future. Defined only where that gap is above zero.",
    "pooled gap closed": "Sum of the gains over the best static decision / sum of the oracle's gains, over scenarios.",
    "rank": "Mean rank by reward over the table's scenarios, among everybody but oracles who played on all of them; "
    "equal rewards share their mean rank.",
    "P(better)": "Probability of improvement: the share of episodes that a controller wins against the best static "
    "decision on the same link and frames, a tie counting one half.",
    "better / same / worse": "Scenarios on which the difference is told apart from zero: two-sided bootstrap p below "
    "0.05 after Holm's correction over the scenarios of the table, for each controller and reference.",
    "learned agents": "All training seeds of an agent are pooled, and the seed is a level of the bootstrap. Where one "
    "agent stands for all, it is the one with the best mean reward on validation episodes that training did not use.",
    "published, bandit": "With default parameters; the best of them is chosen in hindsight, on the test episodes: the "
    "harder mark.",
    "intervals": "95 %, hierarchical bootstrap over recordings, segments and episodes, 2000 draws. Scenarios on the "
    "same recordings share their draws. The list of scenarios is not resampled.",
}


def headline(league: League) -> str:
    """Return the result in plain words, with its numbers."""
    found = league.headline
    paying = sum(entry.pays for entry in league.scenarios)
    if found is None or not found.scenarios:
        return (
            f"{len(league.scenarios)} scenarios, of which adapting pays in {paying}; no trained agent was evaluated "
            "where it does."
        )
    total = found.scenarios
    lacking = f"; {paying - total} more lack trained agents" if total < paying else ""
    return (
        f"Where adapting pays ({total} of {len(league.scenarios)} scenarios{lacking}), the learned policy chosen on "
        f"validation is at least as good as the best static decision in hindsight on {found.at_least_static} "
        f"(significantly better on {found.better_static}) and as the best published controller on "
        f"{found.at_least_published} (significantly better on {found.better_published}). Pooled, it closes "
        f"{percent(found.gap_0)} of the gap to informed(0) and {percent(found.gap_inf)} of that to informed(inf)."
    )


def percent(value: Estimate | None) -> str:
    """Return ``"61 % [38, 85]"``, a dash where it is undefined."""
    return _interval(value, ".0f", 100.0, " %")


def number(value: Estimate | None, digits: int = 2) -> str:
    """Return ``"2.0 [1.0, 3.5]"``, a dash where it is undefined."""
    return _interval(value, f".{digits}f")


def signed(value: Estimate | None, digits: int = 4) -> str:
    """Return ``"+0.0062 [+0.0020, +0.0120]"``, a dash where it is undefined."""
    return _interval(value, f"+.{digits}f")


def _interval(value: Estimate | None, form: str, scale: float = 1.0, unit: str = "") -> str:
    if value is None or value.value is None:
        return DASH
    shown = f"{scale * value.value:{form}}{unit}"
    if value.low is None or value.high is None:
        return shown
    return f"{shown} [{scale * value.low:{form}}, {scale * value.high:{form}}]"


def counts(tallies: Sequence[Tally], place: int) -> str:
    """Return ``"2 / 0 / 0"`` of the ``place``-th tally, a dash where there is none."""
    if place >= len(tallies):
        return DASH
    found = tallies[place]
    return f"{found.better} / {found.same} / {found.worse}" if found.better + found.same + found.worse else DASH


HEADINGS = ("controller", "group", "rank", "gap 0", "gap inf", "P(better)", "vs static", "vs published")
NARROW = ("controller", "group", "rank", "gap 0", "inf", "P", "static", "publ.")
WIDE = 130  # columns of a terminal that holds the table with its intervals


def standing_cells(row: Standing) -> tuple[str, ...]:
    """Return the texts of one row, in the order of ``HEADINGS``."""
    runs = f" x{row.runs}" if row.runs > 1 else ""
    return (
        row.controller + runs,
        row.group,
        number(row.rank, 1),
        percent(row.gap_0),
        percent(row.gap_inf),
        text_of(row.improvement.value, 2),
        counts(row.tallies, 0),
        counts(row.tallies, 1),
    )


def table_title(league: League) -> str:
    """Return what the first table is about."""
    paying = sum(entry.pays for entry in league.scenarios)
    many = "" if paying == 1 else "s"
    which = f"the {paying} scenario{many} in which adapting pays" if PAYS in league.standings else "all scenarios"
    return f"league over {which}, {league.episodes} {league.split} episodes each"


def console_table(league: League, width: int | None = None) -> Table:
    """Return the standings for the terminal; a narrow ``width`` shows points without intervals, and no groups."""
    caption = "gap: pooled gap closed, % of informed(0) and informed(inf); vs: scenarios better / same / worse"
    table = Table(
        title=table_title(league),
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    narrow = width is not None and width < WIDE
    shown = [i for i in range(len(HEADINGS)) if not narrow or i != 1]
    for i in shown:
        table.add_column(HEADINGS[i] if not narrow else NARROW[i], justify="left" if i < 2 else "right", no_wrap=True)
    before = None
    for row in league.table():
        cells = standing_cells(row)
        if narrow:
            cells = tuple(cell.partition(" [")[0].replace(" / ", "/") for cell in cells)
        if before is not None and (row.group == "oracle") != (before == "oracle"):
            table.add_section()
        before = row.group
        style = {"learned": "bold", "oracle": "dim"}.get(row.group, "")
        table.add_row(*(Text(cells[i]) for i in shown), style=style)
    return table


NAVI_HEADINGS = ("controller", "group", "bytes / frame", "quality", "bytes saved", "quality gained", "reached")


def navi_cells(row: NaviRow) -> tuple[str, ...]:
    """Return the texts of one row of the NaviSplit table, in the order of ``NAVI_HEADINGS``."""
    return (
        row.controller,
        row.group,
        f"{row.bytes:.0f}",
        f"{row.quality:.4f}",
        percent(row.bytes_saved),
        signed(row.quality_difference),
        "yes" if row.reached else "no",
    )


def bound_cells(row: NaviBound) -> tuple[str, ...]:
    """Return an oracle's bound as a row of the same table."""
    name = f"{row.oracle}, {row.bytes_per_kib:.3f} / KiB"
    saved, quality = percent(row.bytes_saved), signed(row.quality_difference)
    return name, f"bound, {row.episodes} episodes", f"{row.bytes:.0f}", f"{row.quality:.4f}", saved, quality, ""


def removed_text(row: AblationRow) -> str:
    """Return ``"without link"`` or ``"rate at 1"``."""
    return f"without {row.removed}" if row.kind == "group" else f"{row.removed} at {row.value}"


def duel_of(league: League, scenario: str, kind: str) -> Duel | None:
    """Return the duel of one kind on one scenario."""
    return next((d for d in league.duels if d.scenario == scenario and d.rival_kind == kind), None)


def pays_text(entry: ScenarioEntry) -> str:
    """Return ``"yes (diagnosis: unclear)"``."""
    return f"{'yes' if entry.pays else 'no'} (diagnosis: {entry.diagnosis or 'none'})"
