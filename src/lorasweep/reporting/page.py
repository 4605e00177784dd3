"""The HTML page: one file, no network. Figures are JSON in it; a short script draws them one after another.

plotly.js lies in the page once, compressed; the browser unpacks it. Tables and texts are there at once, also where
scripts are off. Neighbours: `plotly_page` (figures), `tables`, `cost` (what is placed), `__init__` (who calls).
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass, field

from lorasweep.reporting import plotly_page
from lorasweep.reporting.pictures import Picture


@dataclass
class Section:
    """A part of the page. `body` is HTML; `pictures` follow it, two abreast where there is room."""

    key: str
    title: str
    body: str = ""
    pictures: list[Picture] = field(default_factory=list)


STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #e3e8ee; --good: #167d3f; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0; background: #f6f8fa; }
header, main { max-width: 1280px; margin: 0 auto; padding: 0 1.2rem; }
header { padding-top: 1.6rem; } h1 { margin: 0; font-size: 1.7rem; } .sub { color: var(--soft); margin: .2rem 0 0; }
nav { position: sticky; top: 0; z-index: 2; background: #f6f8fa; border-bottom: 1px solid var(--line); }
nav div { max-width: 1280px; margin: 0 auto; padding: .5rem 1.2rem; display: flex; gap: 1.2rem; flex-wrap: wrap; }
nav a { color: #2f6fb2; text-decoration: none; font-size: .9rem; }
section { background: #fff; border: 1px solid var(--line); border-radius: 8px; margin: 1.2rem 0; padding: 1rem 1.2rem; }
section { scroll-margin-top: 3rem; } h2 { font-size: 1.15rem; margin: 0 0 .6rem; } code { font-size: .85em; }
.facts { display: flex; gap: 2.4rem; flex-wrap: wrap; }
.facts div { font-size: 1.5rem; font-weight: 600; max-width: 22rem; }
.facts span { display: block; font-size: .82rem; font-weight: 400; color: var(--soft); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 1.2rem; }
figure { margin: 0; min-width: 0; scroll-margin-top: 3rem; } figure.wide { grid-column: 1 / -1; }
figure h3 { font-size: .95rem; margin: .4rem 0 0; } figcaption { font-size: .82rem; color: var(--soft); }
.plot { height: 340px; } .plot p { color: var(--soft); padding: 2rem; }
.scroll { overflow: auto; max-height: 560px; } table { border-collapse: collapse; font-size: .84rem; }
th, td { padding: .28rem .6rem; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th { border-bottom: 2px solid #c9d1da; position: sticky; top: 0; background: #fff; cursor: pointer; }
td { border-bottom: 1px solid var(--line); } td.text { text-align: left; }
tr.best td { background: #e8f6ec; font-weight: 600; } tr.failed td { color: #a3332a; } tr.pruned td { color: #8a6d00; }
tr.running td { color: #22728a; }
dl { margin: 0; } dt { font-weight: 600; } dd { margin: 0 0 .7rem; color: var(--soft); }
@media print { nav { display: none; } section { break-inside: avoid-page; } .scroll { max-height: none; } }
"""

# Draws the figures in the order of the page and yields to the browser in between, so that the page answers at once.
# The promise it leaves in `window.drawn` is for tests and printers: it resolves when the last one stands.
SCRIPT = """
const place = (key) => document.querySelector('#' + CSS.escape(key) + ' .plot');
const say = (text) => document.querySelectorAll('.plot').forEach((one) => {
  if (!one.querySelector('svg')) one.innerHTML = '<p>' + text + '</p>';
});
async function unpack() {
  const packed = atob(document.getElementById('plotly').textContent.trim());
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  const script = document.createElement('script');
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}
// the button that plotly offers for sharing would send the data to its makers' server
const config = {displaylogo: false, responsive: true, displayModeBar: 'hover', modeBarButtonsToRemove:
  ['sendChartToCloud', 'sendDataToCloud', 'select2d', 'lasso2d', 'zoomIn2d', 'zoomOut2d', 'autoScale2d']};
window.drawn = (async () => {
  const figures = JSON.parse(document.getElementById('figures').textContent);
  if (!figures.length) return;
  if (!window.DecompressionStream) {
    say('This browser is too old to draw here (it lacks DecompressionStream); the PNG files hold the same pictures.');
    return;
  }
  await unpack();
  for (const [key, figure] of figures) {
    try {
      await Plotly.newPlot(place(key), figure.data, figure.layout, config);
      place(key).dataset.drawn = 'yes';
    } catch (error) {
      place(key).innerHTML = '<p>This browser cannot draw this one (' + String(error).replace(/</g, '&lt;') +
        '); the PNG file of the same name can be opened instead.</p>';
    }
    await new Promise((resume) => setTimeout(resume));
  }
})();
document.querySelectorAll('th').forEach((head) => head.addEventListener('click', () => {
  const at = [...head.parentNode.children].indexOf(head), body = head.closest('table').tBodies[0];
  const down = head.dataset.down = head.dataset.down === 'yes' ? 'no' : 'yes';
  const value = (row) => {
    const text = row.children[at].textContent, number = parseFloat(text.replace(/,/g, ''));
    return [text === '' ? 2 : isNaN(number) ? 1 : 0, isNaN(number) ? text : number];
  };
  const order = (one, other) => {
    const [a, x] = value(one), [b, y] = value(other);
    return a - b || (down === 'yes' ? 1 : -1) * (x > y ? 1 : x < y ? -1 : 0);
  };
  body.append(...[...body.rows].sort(order));
}));
"""


def render(title: str, subtitle: str, sections: list[Section]) -> str:
    """The page as text; `title` and `subtitle` are plain text, the sections' bodies are HTML."""
    shown = [section for section in sections if section.body or section.pictures]
    figures = [[picture.key, plotly_page.figure(picture)] for section in shown for picture in section.pictures]
    links = "".join(f'<a href="#{section.key}">{html.escape(section.title)}</a>' for section in shown)
    name, policy = html.escape(title), "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline';"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"{policy} script-src 'unsafe-inline' 'unsafe-eval'\">"
        f"<title>{name}</title><style>{STYLE}</style></head><body>"
        f'<header><h1>{name}</h1><p class="sub">{html.escape(subtitle)}</p></header><nav><div>{links}</div></nav>'
        f"<main>{''.join(_section(section) for section in shown)}</main>"
        f'<script type="application/json" id="figures">{in_script(figures)}</script>'
        + (f'<script type="text/plain" id="plotly">{plotly_page.script()}</script>' if figures else "")
        + f"<script>{SCRIPT}</script></body></html>"
    )


def in_script(value: object) -> str:
    """JSON that can stand inside a <script> element: no text in it can end the element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")


def _section(section: Section) -> str:
    pictures = "".join(_figure(picture) for picture in section.pictures)
    inside = f'<div class="pictures">{pictures}</div>' if pictures else ""
    return f'<section id="{section.key}"><h2>{html.escape(section.title)}</h2>{section.body}{inside}</section>'


def _figure(picture: Picture) -> str:
    from lorasweep.reporting.pictures import Parallel

    wide = ' class="wide"' if isinstance(picture, Parallel) or picture.key == "objective" else ""
    return (
        f'<figure id="{picture.key}"{wide}><h3>{html.escape(picture.title)}</h3><div class="plot"></div>'
        f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
    )
