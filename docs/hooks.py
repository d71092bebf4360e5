"""What mkdocs does to each page before it is rendered."""

import re
from typing import Any

_FENCE = re.compile(r" *(```|~~~)")
_ITEM = re.compile(r"(?:[-*+]|1[.)]) ")  # CommonMark lets an ordered list follow a line of text only if it begins at 1


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts a blank line before a list that follows a line of text.

    Python-Markdown makes one paragraph of both without it. CommonMark does not, so GitHub shows a list.
    """
    lines: list[str] = []
    fenced = listed = False
    for line in markdown.split("\n"):
        item = not fenced and bool(_ITEM.match(line))
        if item and not listed and lines and lines[-1].strip():
            lines.append("")
        fenced ^= bool(_FENCE.match(line))
        listed = item or (listed and bool(line.strip()))  # an item's further lines belong to the list
        lines.append(line)
    return "\n".join(lines)
