"""The report: one self-contained page (no script, no address) that a person reads from the top."""

from __future__ import annotations

from html import escape
from pathlib import Path

from adaptsplit.evaluation import report_figures as figures
from adaptsplit.evaluation import report_tables as tables
from adaptsplit.evaluation.analysis import Results
from adaptsplit.evaluation.headline import champion, headline
from adaptsplit.evaluation.live import LiveComparison
from adaptsplit.evaluation.report_live import live_figure
from adaptsplit.evaluation.report_style import CSS, PAGE
from adaptsplit.evaluation.report_timeline import draw_timeline
from adaptsplit.evaluation.results import ControllerResult, ResultsDocument

TERMS = {
    "reward": "The scenario's objective per frame: quality, less its prices for energy, bytes, switching and misses.",
    "quality": "Fraction of the frame's cells classified correctly; a missed frame counts as 0.",
    "branch, rate, threshold": "The three knobs of a decision: which head runs on the device, how strongly its "
    "features are compressed (0 = strongest), and the confidence from which the exit's answer is good enough.",
    "exit": "The small classifier on the device: its answer stands when it is confident; else it is the fallback.",
    "miss": "No answer by the deadline.",
    "fallback": "The frame was meant for the edge, but the link was too slow, so the exit answered.",
    "static decision": "The same branch, rate and threshold for every frame. The best one is stated twice: "
    "chosen on training data (what could have been known) and in hindsight on the evaluated episodes (harder to beat).",
    "oracle-informed": "Plans with the whole future of the link and the confidences known, but not the labels: "
    "a bound on what any controller could do. oracle-informed-0 knows only the present; oracle-clairvoyant knows "
    "the labels too, which nobody can.",
    "gap closed": "Sum of (controller - best static) over sum of (oracle - best static): 0 % is the best static "
    "decision, 100 % the oracle. Undefined where the oracle is not told apart from the best static decision.",
    "95 % interval": "Hierarchical bootstrap: recordings, then segments, then episodes are drawn anew 2000 times; "
    "learned controllers with several training runs draw those as well. Differences are paired by episode.",
}


def write_report(results: Results, path: str | Path, *, live: LiveComparison | None = None) -> Path:
    """Write the page. MissingExtraError (extra ``report``) without matplotlib; returns the path."""
    page = render_report(results, live=live)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def render_report(results: Results, *, live: LiveComparison | None = None) -> str:
    """Return the page as HTML text."""
    document = results.document
    sections = (
        _top(document),
        _trade_offs(results),
        _differences(document),
        _timeline(results),
        _decisions(document),
        _knobs(document),
        _families(document),
        _live(live),
        _appendix(document),
    )
    title = escape(f"adaptsplit: {document.scenario}")
    return PAGE.format(title=title, css=CSS, body="\n".join(section for section in sections if section))


def _top(document: ResultsDocument) -> str:
    eyebrow = (
        f"{document.scenario} &middot; {document.split} split &middot; {document.fps:g} frames/s, deadline "
        f"{document.deadline_ms:g} ms &middot; adaptsplit {document.version}, {document.created[:10]}"
    )
    return (
        f'<p class="eyebrow">{eyebrow}</p><h1>{escape(headline(document))}</h1>'
        f'<p class="lead">{escape(document.description)}</p>{_cards(document)}{tables.summary_table(document)}'
    )


def _cards(document: ResultsDocument) -> str:
    best = champion(document)
    if best is None:
        return ""
    static = document.controller(document.best_static.hindsight)
    pair = best.paired["hindsight"]
    wins = pair.probability_of_improvement.value
    cards = [
        (
            tables.text_of(best.number("gap_closed"), 0, 100) + " %",
            f"of the gap to the informed oracle closed by {escape(best.name)}",
        ),
        (tables.text_of(wins, 0, 100) + " %", "of episodes in which it beats the best static decision in hindsight"),
        (_change(best, static, "bytes", None), "bytes per frame, against the best static decision"),
        (_change(best, static, "energy_mj", None), "device energy per frame, against the best static decision"),
        (_points(best, static), "quality, against the best static decision"),
    ]
    return '<div class="cards">' + "".join(f"<div><b>{a}</b><span>{b}</span></div>" for a, b in cards) + "</div>"


def _change(best: ControllerResult, static: ControllerResult, metric: str, percentile: str | None) -> str:
    ours, theirs = best.number(metric, percentile), static.number(metric, percentile)
    return f"{100 * (ours / theirs - 1):+.0f} %" if ours is not None and theirs else tables.DASH


def _points(best: ControllerResult, static: ControllerResult) -> str:
    return f"{(best.number('quality') or 0.0) - (static.number('quality') or 0.0):+.3f}"


def _figure(svg: str, caption: str, kind: str = "") -> str:
    return f'<figure class="{kind}"><div class="pan">{svg}</div><figcaption>{caption}</figcaption></figure>'


def _trade_offs(results: Results) -> str:
    document = results.document
    shown = (
        _figure(
            figures.pareto(document, "answer_latency_ms", "p95", "95th percentile of answer latency (ms)"),
            "Up and to the left is better. Each dot is one static decision, coloured by branch; the stepped line is "
            "the best the static grid offers. A controller above the line does what no fixed decision can.",
        ),
        _figure(
            figures.pareto(document, "bytes", None, "payload per frame (KiB)", 1 / 1024),
            "The same against the bytes put on the radio link, averaged over all frames.",
        ),
        _figure(
            figures.latency_cdf(results, "answer", "answer latency"),
            "Share of all frames answered within a time. A curve that ends below 1 shows misses; a step at the "
            "deadline shows frames that waited for the edge in vain.",
        ),
        _figure(
            figures.latency_cdf(results, "remote", "latency of the edge's result"),
            "The same for results of the edge, also those that came too late. What lies right of the deadline was "
            "sent for nothing.",
        ),
    )
    return f'<h2>Quality against latency and bytes</h2><div class="figures">{"".join(shown)}</div>'


def _differences(document: ResultsDocument) -> str:
    if champion(document) is None and not document.of_kind("oracle"):
        return ""
    shown = [
        _figure(
            figures.forest(document),
            "Reward of each controller less that of the best static decision on the same episodes, with 95 % "
            "intervals. Right of zero is better; an interval that touches zero decides nothing.",
        )
    ]
    closed = figures.gap_closed(document)
    if closed:
        shown.append(
            _figure(closed, "How much of the way from the best static decision to an oracle a controller goes.")
        )
    undefined = [gap.oracle for gap in document.gap.values() if not gap.defined]
    note = ""
    if undefined:
        names = escape(", ".join(undefined))
        note = f'<p class="warn">No gap to close: {names} cannot be told apart from the best static decision here.</p>'
    return f'<h2>Is adapting better than the best fixed decision?</h2>{note}<div class="figures">{"".join(shown)}</div>'


def _timeline(results: Results) -> str:
    if results.timeline is None:
        return ""
    name = next(iter(results.timeline.outcomes))
    caption = (
        f"Episode {results.timeline.episode} ({escape(results.timeline.family)}). Neither the best nor the worst: of "
        f"the third of episodes whose links vary most, the one where {escape(name)}'s gain is nearest to its mean. "
        "Rate is shown where something was sent (darker = more bytes), threshold darker = later exit. "
        "Watch the branch and the threshold follow the capacity."
    )
    picture = _figure(draw_timeline(results.timeline, results.document), caption, "wide")
    return f'<h2>One episode, frame by frame</h2><div class="figures one">{picture}</div>'


def _decisions(document: ResultsDocument) -> str:
    shown = (
        _figure(figures.shares(document, "path", "frames (%)"), "Who answered. Red and orange are the costly ones."),
        _figure(figures.shares(document, "branch", "decided frames (%)"), "Which head branch was chosen."),
        _figure(
            figures.shares(document, "rate", "decided frames (%)"),
            "Which compression rate: 0 is the strongest, and what decisions that never send count as.",
        ),
        _figure(
            figures.shares(document, "threshold", "decided frames (%)"),
            "Which exit threshold: 0 always exits on the device, above 1 never.",
        ),
    )
    return f'<h2>What the controllers decide</h2><div class="figures">{"".join(shown)}</div>'


def _knobs(document: ResultsDocument) -> str:
    if document.knobs is None:
        return ""
    caption = (
        f"Left: reward that {escape(document.knobs.oracle)} loses when one knob is frozen at its best value and the "
        "other two stay free. Right: its reward with the knob frozen at each value (the best is named); the dashed "
        f"line is all three free. First {document.knobs.episodes} episodes."
    )
    if any((knob.worth.value or 0.0) < 0 for knob in document.knobs.knobs):
        caption += (
            " A worth below zero: the oracle weighs decisions by expected quality, and with that knob free it expected "
            "a little too much of some; freezing it costs nothing here."
        )
    picture = _figure(figures.knobs(document), caption, "wide")
    return f'<h2>What each of the three knobs is worth</h2><div class="figures one">{picture}</div>'


def _families(document: ResultsDocument) -> str:
    if len(document.families) < 2:
        return ""
    return f"<h2>By family of links</h2>{tables.family_table(document)}"


def _live(live: LiveComparison | None) -> str:
    if live is None:
        return ""
    caption = "Simulated and live side by side. The twin is good where the two bars of a pair are equal."
    return (
        "<h2>Simulated against live</h2><p class='lead'>The same controllers on the same link: once in the simulator, "
        "once as processes over MQTT with real frames.</p>"
        f'{tables.live_table(live)}<div class="figures one">{_figure(live_figure(live), caption, "wide")}</div>'
    )


def _appendix(document: ResultsDocument) -> str:
    terms = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in TERMS.items())
    weights = ", ".join(f"{k} {v:g}" for k, v in document.objective.items() if isinstance(v, int | float) and v)
    facts = {
        "scenario": document.scenario,
        "objective": weights,
        "episodes": f"{document.episodes} x {document.frames_per_episode} frames, seed {document.seed}",
        "decision space": f"{len(document.of_kind('static'))} distinct decisions",
        **{f"sha256 of {name}": value for name, value in document.hashes.items()},
    }
    listed = "".join(f"<dt>{escape(k)}</dt><dd><code>{escape(v)}</code></dd>" for k, v in facts.items())
    return (
        f"<h2>The static grid</h2>{tables.static_table(document)}"
        f"<h2>Terms</h2><details open><summary>What the words mean</summary><dl>{terms}</dl></details>"
        f"<details><summary>Where this comes from</summary><dl>{listed}</dl></details>"
        "<footer>All numbers of this page are in results.json beside it.</footer>"
    )
