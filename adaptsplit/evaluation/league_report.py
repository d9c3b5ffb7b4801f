"""The league's page: one self-contained HTML file in the style of the evaluation's report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from adaptsplit.evaluation import league_figures as figures
from adaptsplit.evaluation import league_text as text
from adaptsplit.evaluation.league_anatomy import CONDITIONS
from adaptsplit.evaluation.league_anatomy_figure import draw_anatomy
from adaptsplit.evaluation.league_document import ALL, PAYS, Headline, League, Standing
from adaptsplit.evaluation.league_navisplit import sentence
from adaptsplit.evaluation.report_style import CSS, PAGE


def write_page(league: League, path: Path) -> Path:
    """Write the page and return its path. MissingExtraError (extra ``report``) without matplotlib."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_page(league), encoding="utf-8")
    return path


def render_page(league: League) -> str:
    """Return the page as HTML text."""
    sections = (
        _top(league),
        _standings(league),
        _duels(league),
        _anatomy(league),
        _ablations(league),
        _navisplit(league),
        _scenarios(league),
        _appendix(league),
    )
    return PAGE.format(title="adaptsplit: league", css=CSS, body="\n".join(part for part in sections if part))


def _top(league: League) -> str:
    eyebrow = (
        f"league of {len(league.scenarios)} scenarios &middot; {league.split} split, {league.episodes} episodes each, "
        f"seed {league.seed} &middot; adaptsplit {escape(league.version)}, {league.created[:10]}"
    )
    cards = "" if league.headline is None else _cards(league.headline)
    return f'<p class="eyebrow">{eyebrow}</p><h1>{escape(text.headline(league))}</h1>{cards}'


def _cards(found: Headline) -> str:
    total = found.scenarios
    cards = (
        (text.percent(found.gap_0), "of the gap to informed(0) closed, pooled"),
        (text.percent(found.gap_inf), "of the gap to informed(inf) closed, pooled"),
        (f"{found.better_static} of {total}", "scenarios significantly above the best static decision in hindsight"),
        (f"{found.better_published} of {total}", "scenarios significantly above the best published controller"),
    )
    return (
        '<div class="cards">' + "".join(f"<div><b>{escape(a)}</b><span>{b}</span></div>" for a, b in cards) + "</div>"
    )


def _figure(drawn: str, caption: str) -> str:
    if not drawn:
        return ""
    return f'<figure class="wide"><div class="pan">{drawn}</div><figcaption>{escape(caption)}</figcaption></figure>'


def _figures(*drawn: str) -> str:
    return f'<div class="figures one">{"".join(drawn)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, left: int = 1) -> str:
    """Return an HTML table of plain texts; an interval in brackets is set small."""
    top = "".join(f"<th{' class=l' if i < left else ''}>{escape(name)}</th>" for i, name in enumerate(head))
    body = []
    for row in rows:
        cells = "".join(f"<td{' class=l' if i < left else ''}>{_small(cell)}</td>" for i, cell in enumerate(row))
        body.append(f"<tr>{cells}</tr>")
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _small(cell: str) -> str:
    value, bracket, rest = cell.partition(" [")
    return escape(value) + (f" <small>[{escape(rest)}</small>" if bracket else "")


def _standing_table(rows: Sequence[Standing], caption: str) -> str:
    return table(text.HEADINGS, [text.standing_cells(row) for row in rows], caption, 2)


def _standings(league: League) -> str:
    caption = f"{text.table_title(league).capitalize()}. vs: better / same / worse scenarios, after Holm's correction."
    shown = _figures(
        _figure(
            figures.ranks(league),
            "Left: mean rank. Right: pooled gap closed, what lies below -200 % is drawn at the edge. Oracles know more "
            "than a controller may, so they are not ranked.",
        ),
        _figure(
            figures.profiles(league),
            "Performance profiles: how many episodes reach a score. A curve to the upper right is better. Bands are "
            "95 % intervals of learned agents and oracles.",
        ),
    )
    rest = ""
    if PAYS in league.standings:
        every = _standing_table(league.standings[ALL], "All scenarios, those in which adapting does not pay included.")
        rest = f"<details><summary>Standings over all scenarios</summary>{every}</details>"
    return f"<h2>Standings</h2>{_standing_table(league.table(), caption)}{shown}{rest}"


def _duels(league: League) -> str:
    shown = _figures(
        _figure(
            figures.heat_map(league),
            "Normalised score in %: 0 = best static in hindsight, 100 = informed(0). Blue is better, red worse; "
            "colours end at 100. Grey: no defined gap, or not played. In brackets: adapting does not pay.",
        ),
        _figure(
            figures.duels(league),
            "The learned agent, chosen on validation, less the best static decision and the best published controller, "
            "both chosen in hindsight. Right of zero is better.",
        ),
        _figure(
            figures.scenarios(league),
            "Reward less that of the best static decision in hindsight, per scenario. Losses beyond twice the informed "
            "oracle's gain are drawn at the edge.",
        ),
    )
    rows = [
        [
            d.scenario,
            d.learned,
            d.rival_kind,
            d.rival.removeprefix("static:"),
            text.signed(d.difference),
            text.number(d.improvement),
            f"{d.p:.4f}",
            f"{d.p_holm:.4f}",
            d.verdict,
        ]
        for d in league.duels
    ]
    head = ("scenario", "learned", "rival", "its name", "difference", "P(better)", "p", "p (Holm)", "verdict")
    listed = table(head, rows, "p is two-sided, from the bootstrap; the least that 2000 draws can show is 0.001.", 4)
    return f"<h2>Scenario by scenario</h2>{shown}{listed if rows else ''}"


def _anatomy(league: League) -> str:
    parts: list[str] = []
    for part in league.anatomy:
        low, high = (f"{value / 1e6:.2f}" for value in part.edges_bps)
        frames = part.rows[0].conditions
        caption = (
            f"First {part.episodes} episodes. Thirds of the estimated goodput end at {low} and {high} Mbit/s; "
            f"{frames['drop'].frames} frames after a drop, {frames['return'].frames} after a return. "
            "Of a learned agent it is the training run that is best on validation."
        )
        drawn = _figures(_figure(draw_anatomy(part), caption))
        mark = " open" if len(parts) == 0 else ""
        parts.append(f"<details{mark}><summary>{escape(part.scenario)}</summary>{drawn}</details>")
    if not parts:
        return ""
    states = "; ".join(f"{name}: {meaning}" for name, meaning in CONDITIONS.items())
    return f"<h2>Who chooses what when the link drops</h2><p class='lead'>{escape(states)}.</p>{''.join(parts)}"


def _ablations(league: League) -> str:
    if not league.ablations:
        return ""
    caption = (
        "Reward of the whole agent less that of the one trained without a group of observation fields, or with a knob "
        "frozen where the best static decision in hindsight has it. Right of zero: it was worth something."
    )
    rows = [
        [
            part.scenario,
            part.agent,
            f"{row.kind}: {row.removed}",
            row.value or "",
            text.signed(row.loss),
            text.percent(row.score),
            text.percent(part.score),
            str(row.runs),
        ]
        for part in league.ablations
        for row in part.rows
    ]
    head = ("scenario", "agent", "removed", "frozen at", "loss", "gap 0 left", "gap 0 of the whole", "seeds")
    listed = table(head, rows, "Gap closed to informed(0), with and without.", 4)
    return f"<h2>Ablations</h2>{_figures(_figure(figures.ablations(league), caption))}{listed}"


def _navisplit(league: League) -> str:
    found = league.navisplit
    if found is None:
        return ""
    rows = [*map(text.bound_cells, found.bounds), *map(text.navi_cells, found.rows)]
    caption = "Reached: at least 95 % fewer bytes, and the quality not below the reference's."
    listed = table(text.NAVI_HEADINGS, rows, caption, 2)
    return f"<h2>NaviSplit's headline on our data</h2><p>{escape(sentence(found))}</p>{listed}"


def _scenarios(league: League) -> str:
    rows = [
        [
            e.name,
            text.pays_text(e),
            text.signed(e.gap_0),
            text.signed(e.gap_inf),
            str(e.recordings),
            e.roles.best_static.removeprefix("static:"),
            e.roles.published or "",
            e.roles.bandit or "",
            e.roles.learned or "",
        ]
        for e in league.scenarios
    ]
    head = ["scenario", "adapting pays", "informed(0) gains", "informed(inf) gains", "recordings", "best static"]
    head += ["best published", "best bandit", "learned, by validation"]
    notes = [f"{item.name}: skipped: {item.reason}" for item in league.skipped]
    notes += [f"{item.name}: training failed: {item.reason}" for item in league.failed_runs]
    warned = "".join(f'<p class="warn">{escape(note)}</p>' for note in notes)
    return f"<h2>Scenarios</h2>{warned}{table(head, rows, 'Gains over the best static decision in hindsight.', 2)}"


def _appendix(league: League) -> str:
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>" for name, meaning in text.METHOD.items())
    return (
        f"<h2>Terms</h2><details open><summary>How the numbers are made</summary><dl>{terms}</dl></details>"
        f"<footer>Made by <code>{escape(league.command)}</code>. All numbers are in league.json beside it; each "
        " scenario's own report lies in its folder.</footer>"
    )
