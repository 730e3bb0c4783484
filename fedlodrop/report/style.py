"""Appearance of the report. A Python module, because a Flower app bundle carries no .css files."""

from optimizer.plots import PALETTE, PURPLE, VERMILION

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
GLYPHS = "●■◆▲✚✖★"  # the same shapes as characters, for bars
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SAT_OUT, FAILED, LIMIT = VERMILION, PURPLE, VERMILION

__all__ = ["CSS", "DASHES", "FAILED", "GLYPHS", "LIMIT", "PALETTE", "SAT_OUT", "SYMBOLS"]

CSS = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1a1d23;--soft:#565d69;--line:#d9dde4;--grid:#e4e7ec;
--accent:#00598c;--good:#00724f;--warn:#9c4300;--mark:#fff4e8;--row:#f3f5f8}
@media (prefers-color-scheme:dark){:root{--page:#101216;--card:#181b21;--ink:#e8eaee;--soft:#a3abb8;--line:#333944;
--grid:#2a2f38;--accent:#7cc4f2;--good:#4fd0a5;--warn:#ffab6b;--mark:#30241a;--row:#1f232b}}
@media print{:root{--page:#fff;--card:#fff;--ink:#000;--soft:#333;--line:#bbb;--grid:#ddd;--accent:#000;--good:#000;
--warn:#000;--mark:#fff;--row:#fff;color-scheme:light}}
*{box-sizing:border-box}
html{scroll-padding-top:3.4rem}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",
"Liberation Sans",sans-serif;font-variant-numeric:tabular-nums}
header,main,footer{max-width:1240px;margin:0 auto;padding:0 1.25rem}
header{padding-top:1.6rem}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .3rem;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:0 0 .8rem;letter-spacing:-.005em}
h3{font-size:1rem;margin:0 0 .35rem}
h4{font-size:.95rem;margin:0 0 .3rem}
p{margin:.3rem 0 .8rem;max-width:80ch}
.lead,figcaption,.note{color:var(--soft)}
.lead{overflow-wrap:anywhere;max-width:none}
figcaption,.note{font-size:.86rem;max-width:85ch}
a{color:var(--accent)}
.skip{position:absolute;left:-999px}
.skip:focus{left:1rem;top:.5rem;background:var(--card);padding:.5rem;z-index:9}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px;border-radius:3px}
nav{position:sticky;top:0;z-index:5;background:var(--page);border-bottom:1px solid var(--line);margin-top:1rem}
nav ul{display:flex;gap:.1rem 1.1rem;list-style:none;margin:0 auto;max-width:1240px;padding:.55rem 1.25rem;flex-wrap:wrap;
scrollbar-width:thin;font-size:.9rem}
nav a{text-decoration:none;white-space:nowrap;padding:.15rem 0}
nav a:hover{text-decoration:underline}
section{margin:2.2rem 0}
.run{margin:0;border-top:1px solid var(--line)}
.run>summary{overflow-wrap:anywhere}
.compare header{padding-top:.8rem}
.compare section{margin:1rem 0}
.compare h2{margin:0 0 .3rem;font-size:1.15rem}
.compare .charts{grid-template-columns:repeat(3,minmax(0,1fr));margin:.3rem 0}
.compare .charts>.chart:only-child{grid-column:auto}
.compare .chart{padding:.45rem .6rem}
.compare .chart>h3{padding-right:0;margin:0}
.compare figcaption{font-size:.78rem;line-height:1.35}
.compare .controls{padding:0 .7rem .25rem;margin:.3rem 0;gap:0 1rem;font-size:.86rem}
.compare .controls .key{margin:0}
.compare .chart:not(:hover):not(:focus-within) .modebar{visibility:hidden}
.compare thead th{white-space:normal}
.compare .scroll.all table{font-size:.79rem}
.compare .scroll.all th,.compare .scroll.all td{padding:.14rem .4rem;min-width:0}
.compare .scroll.all tbody th{min-width:15rem}
.compare .warning{padding:.2rem .7rem;margin:.25rem 0;font-size:.86rem}
.compare #solver,.compare #cost{display:inline-block;width:calc(50% - .5rem);vertical-align:top}
.compare #solver{margin-right:1rem}
.compare section:is([id=solver],[id=cost]) .charts{grid-template-columns:repeat(2,minmax(0,1fr))}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:.8rem;margin:0}
.cards>div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.75rem .9rem}
.cards dt{font-size:.82rem;color:var(--soft);line-height:1.3}
.cards dd{margin:.2rem 0 0}
.cards .v{font-size:1.45rem;font-weight:650;line-height:1.25;letter-spacing:-.01em}
.cards .d{font-size:.82rem;color:var(--soft);line-height:1.35}
.charts{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:1rem;margin:.8rem 0}
.chart{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.85rem .9rem .8rem;
min-width:0;break-inside:avoid}
.chart.wide,.charts>.chart:only-child{grid-column:1/-1}
.chart>h3,.chart>h4{padding-right:9.5rem;min-height:1.5em}
.plot{position:relative;width:100%}
.plot .modebar-container{top:-2.1rem!important;right:-.3rem!important}
.plot:empty::before{content:"drawing…";position:absolute;inset:0;display:grid;place-items:center;color:var(--soft)}
.plot.broken::before{content:"This chart needs a browser with JavaScript and DecompressionStream; the tables hold its numbers."}
.controls{border:1px solid var(--line);border-radius:10px;background:var(--card);padding:.45rem .9rem .6rem;margin:.5rem 0;
display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;font-size:.92rem}
.controls legend{padding:0 .35rem;color:var(--soft);font-size:.84rem}
.controls label{display:inline-flex;align-items:center;gap:.4rem;min-height:1.75rem;cursor:pointer}
.controls input{accent-color:var(--accent);width:1rem;height:1rem;margin:0}
.controlrow{display:flex;flex-wrap:wrap;gap:0 1rem}
.key{display:inline-flex;align-items:center;gap:.35rem;margin-right:1rem;white-space:nowrap}
.key i{display:inline-grid;place-items:center;width:1.1em;height:1.1em;border-radius:2px;border:1px solid var(--line);
font:700 .8em/1 system-ui,sans-serif;color:#fff}
.scroll{overflow:auto;max-height:30rem;border:1px solid var(--line);border-radius:10px;background:var(--card);margin:.6rem 0}
.scroll.all{max-height:none}
table{border-collapse:collapse;font-size:.87rem;width:100%}
caption{text-align:left;padding:.55rem .75rem;color:var(--soft);font-size:.84rem}
th,td{padding:.32rem .75rem;text-align:right;border-top:1px solid var(--line);white-space:nowrap;font-weight:400}
thead th{position:sticky;top:0;background:var(--card);font-weight:600;border-top:0;box-shadow:0 1px 0 var(--line);
vertical-align:bottom}
tbody tr:nth-child(even){background:var(--row)}
th.w,td.w{text-align:left}
td.w{white-space:normal;min-width:9rem;overflow-wrap:anywhere}
td.w:last-child:not(:nth-child(2)){min-width:15rem}
tbody th{font-weight:600}
tbody th.w{white-space:normal;min-width:6rem}
details{margin:.6rem 0}
summary{cursor:pointer;color:var(--accent);padding:.25rem 0;font-size:.93rem}
pre{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.8rem .9rem;overflow:auto;margin:.5rem 0;
font:.84rem/1.5 ui-monospace,"Cascadia Mono","DejaVu Sans Mono",Menlo,monospace}
pre.command{white-space:pre-wrap;overflow-wrap:anywhere}
.status{display:inline-block;border:1px solid currentColor;border-radius:99px;padding:.02rem .6rem;font-size:.84rem;
font-weight:600;color:var(--good)}
.status.open{color:var(--warn)}
.warning{background:var(--mark);border-left:4px solid var(--warn);padding:.55rem .9rem;border-radius:4px;
overflow-wrap:anywhere;max-width:none}
footer{color:var(--soft);font-size:.84rem;padding-bottom:2rem}
.plot .xtick text,.plot .ytick text,.plot .y2tick text,.plot .xtitle,.plot .ytitle,.plot .cbaxis text,.plot .cbtitle text,
.plot .infolayer .legend text,.plot .annotation text{fill:var(--ink)!important}
.plot .gridlayer path{stroke:var(--grid)!important}
.plot .xlines-above,.plot .ylines-above,.plot path.xtick,.plot path.ytick,.plot .cbaxis path{stroke:var(--soft)!important}
.plot .xlines-above,.plot .ylines-above{fill:none!important}
@media screen and (max-width:820px){.charts,.compare .charts,.compare section[id][id][id] .charts{
grid-template-columns:minmax(0,1fr)}
.compare #solver,.compare #cost{width:100%}
header,main,footer{padding-left:.8rem;padding-right:.8rem}
nav{position:static}
nav ul{padding-left:.8rem}.cards{grid-template-columns:repeat(auto-fit,minmax(150px,1fr))}.chart{padding:.7rem .5rem}
.cards .v{font-size:1.25rem}}
.key svg{flex:none}
@media print{body{font-size:10.5pt}nav,.skip,.controls[data-axis],.modebar{display:none!important}
header,main,footer{max-width:none;padding:0}.charts{display:block}
.compare .charts{display:grid;grid-template-columns:1fr 1fr}.compare #solver,.compare #cost{width:100%}
.chart,.cards>div{border-color:#999;margin-bottom:.6rem;break-inside:avoid}
.scroll{max-height:none;overflow:visible;border:0}table{font-size:7.5pt}
th,td{padding:.1rem .3rem;white-space:normal!important;min-width:0!important;overflow-wrap:normal!important}
thead th{position:static}pre{white-space:pre-wrap;font-size:8pt;border:0;padding:0}h2,h3,summary{break-after:avoid}
.cards{grid-template-columns:repeat(4,1fr)}}
@media print{.compare .scroll.all table{font-size:6pt}.compare .scroll.all th,.compare .scroll.all td{padding:.05rem .12rem}}
@media (prefers-reduced-motion:reduce){*{transition:none!important;animation:none!important}}
"""
