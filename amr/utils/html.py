"""The frame of every page that amr writes: one HTML file that loads nothing, readable on a phone, in light and dark."""

import base64
import hashlib
from html import escape

CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
CSS = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #57606a; --line: #d0d7de; --page: #fff; --card: #f6f8fa;
  --edge: rgb(20 22 26 / .22); }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --soft: #9da7b3; --line: #3a424c; --page: #0d1117; --card: #161b22;
    --edge: rgb(255 255 255 / .24); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 1rem; color: var(--text); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
.finding { font-size: 1.1rem; font-weight: 600; }
a.save { display: inline-block; padding: .15rem .7rem; border: 1px solid var(--line); border-radius: 6px;
  color: var(--text); background: var(--card); text-decoration: none; }
p, ul, dl { max-width: 75ch; } dt { font-weight: 600; } dd { margin: 0 0 .5rem 1rem; }
code, pre { font: .875em/1.5 ui-monospace, monospace; }
pre { padding: .75rem; overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.scroll { overflow-x: auto;  /* shaded at the right where more is hidden; the left is the row's head, which stays */
  background: linear-gradient(270deg, var(--page) 45%, transparent) 100% 0 / 48px 100% no-repeat local,
    linear-gradient(270deg, var(--edge), transparent) 100% 0 / 16px 100% no-repeat scroll; }
.soft, caption { color: var(--soft); }
table { border-collapse: collapse; margin: .5rem 0; font-size: .93rem; }
caption { text-align: left; font-size: .9rem; padding-bottom: .4rem; }
th, td { padding: .35rem .65rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; } tbody th { font-weight: 600; }
.num { text-align: right; font-variant-numeric: tabular-nums; } .num span { white-space: nowrap; }
tbody .text { min-width: 5.5rem; }
th.group { text-align: center; border-bottom: 1px solid var(--line); }
.notes { border-left: 4px solid #e69f00; padding: .25rem 0 .25rem 2rem; margin: 1rem 0; }
.plots { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: .5rem; }
figure img { display: block; width: 100%; height: auto; }
@media (prefers-color-scheme: dark) {  /* white paper becomes black, hues stay */
  figure { background: #000; } figure img { filter: invert(1) hue-rotate(180deg); }
}
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid; }
th button::after { content: " ↕"; color: var(--soft); font-weight: 400; }
th[aria-sort=ascending] button::after { content: " ↑"; } th[aria-sort=descending] button::after { content: " ↓"; }
tbody th[scope=row] { position: sticky; left: 0; background: var(--page); }
@media print {
  body { max-width: none; font-size: 10pt; } .scroll { overflow: visible; } th button::after, .save { display: none; }
  tr, figure { break-inside: avoid; }
}
details { margin: .5rem 0; } summary { cursor: pointer; padding: .25rem 0; }
@media (max-width: 600px) {
  body { font-size: 15px; padding: .75rem; } table { font-size: .87rem; } th, td { padding: .3rem .25rem; }
  tbody .text { overflow-wrap: anywhere; } tbody td.text { min-width: 3.5rem; }
  caption { max-width: calc(100vw - 1.5rem); }
}
"""


def document(title: str, body: str, css: str = "", script: str = "") -> str:
    """A page that loads nothing, in the project's one look.

    Args:
        title: Text.
        body: HTML.
        css: Further styles.
        script: The only script that the page's policy lets run; empty for none.
    """
    policy, code = CSP, ""
    if script:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        code = f"\n<script>{script}</script>"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{CSS}{css}</style>
</head>
<body>
<main>
{body}
</main>{code}
</body>
</html>
"""
