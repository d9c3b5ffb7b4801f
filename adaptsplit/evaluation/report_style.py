"""The report's style sheet and page frame: light and dark by the reader's setting, phone and print."""

CSS = """
:root { color-scheme: light dark; --ink:#1b1e24; --muted:#5b6270; --line:#d7dbe2; --paper:#f4f4f0; --card:#fdfdfb;
  --accent:#c2410c; --good:#0b6b4f; --bad:#b42318; --tint:#fff4ec; --blue:#0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink:#e9ebef; --muted:#a3abb9; --line:#3a414d; --paper:#14171c;
  --card:#1c2027; --accent:#fb923c; --good:#4ecfa3; --bad:#ff8a7a; --tint:#2a211b; --blue:#3b97d3; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--paper); color:var(--ink); font:16px/1.55 system-ui,-apple-system,"Segoe UI",
  "Noto Sans","DejaVu Sans",sans-serif; -webkit-text-size-adjust:100%; }
main { max-width:1120px; margin:0 auto; padding:28px 20px 60px; }
.eyebrow { color:var(--muted); font-size:.86rem; letter-spacing:.02em; margin:0 0 6px; }
h1 { font-size:clamp(1.3rem,2.9vw,1.8rem); line-height:1.28; font-weight:650; margin:0 0 14px; text-wrap:pretty;
  max-width:36em; }
h2 { font-size:1.22rem; margin:46px 0 4px; padding-top:14px; border-top:1px solid var(--line); }
h3 { font-size:1rem; margin:0 0 4px; }
p { margin:6px 0 12px; max-width:72ch; }
.lead { color:var(--muted); }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(190px,1fr)); gap:12px; margin:22px 0 8px; }
.cards div { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:13px 15px; }
.cards b { display:block; font-size:1.55rem; line-height:1.2; font-weight:650; font-variant-numeric:tabular-nums; }
.cards span { display:block; color:var(--muted); font-size:.84rem; line-height:1.4; }
.scroll { overflow-x:auto; background:var(--card); border:1px solid var(--line); border-radius:10px; margin:12px 0; }
table { border-collapse:collapse; width:100%; font-size:.875rem; font-variant-numeric:tabular-nums; }
caption { caption-side:bottom; text-align:left; padding:8px 12px; color:var(--muted); font-size:.84rem; }
th,td { padding:5px 9px; vertical-align:middle; text-align:right; white-space:nowrap;
  border-bottom:1px solid var(--line); }
th { white-space:normal; font-weight:600; color:var(--muted); vertical-align:bottom; }
th:first-child,td:first-child { text-align:left; position:sticky; left:0; background:var(--card); }
th.l,td.l { text-align:left; }
td small { display:block; font-size:.8em; line-height:1.25; } td:first-child small { font-size:.86em; }
tr.top td { background:var(--tint); font-weight:600; }
tr.oracle td { color:var(--muted); }
tbody tr:last-child td { border-bottom:0; }
td small { color:var(--muted); font-weight:400; }
.group td { border-top:2px solid var(--line); }
.dot { display:inline-block; width:.68em; height:.68em; border-radius:50%; margin-right:.5em; }
.good { color:var(--good); } .bad { color:var(--bad); }
.figures { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr)); gap:14px; margin:12px 0; }
.one { grid-template-columns:minmax(0,1fr); }
figure { margin:0; background:var(--card); border:1px solid var(--line); border-radius:10px; padding:12px 14px;
  break-inside:avoid; min-width:0; }
figure svg { display:block; width:100%; height:auto; }
.wide svg { min-width:760px; } .wide .pan { overflow-x:auto; }
figcaption { color:var(--muted); font-size:.86rem; line-height:1.45; margin-top:8px; max-width:80ch; }
dl { display:grid; grid-template-columns:minmax(8.5em,auto) 1fr; gap:4px 16px; font-size:.9rem; margin:10px 0; }
dt { font-weight:600; } dd { margin:0; color:var(--muted); overflow-wrap:anywhere; }
details { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:10px 16px; margin:10px 0; }
summary { cursor:pointer; font-weight:600; }
code { font-family:ui-monospace,"DejaVu Sans Mono",monospace; font-size:.86em; overflow-wrap:anywhere; }
.warn { border-left:4px solid var(--accent); background:var(--tint); padding:8px 14px; border-radius:6px; }
footer { margin-top:48px; color:var(--muted); font-size:.84rem; }
@media (max-width:560px) { main { padding:18px 12px 40px; } figure { padding:8px; }
  dl { grid-template-columns:1fr; } dd { margin-bottom:6px; } }
@media print { :root { --paper:#fff; --card:#fff; --ink:#000; --muted:#444; --line:#bbb; --tint:#f3f3f3; }
  body { font-size:10.5pt; } main { max-width:none; padding:0; } .scroll { overflow:visible; }
  table { font-size:7.6pt; }
  th,td { padding:3px 4px; white-space:normal; } .wide svg { min-width:0; } h2 { break-after:avoid; } }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>{css}</style></head>
<body><main>
{body}
</main></body></html>
"""
