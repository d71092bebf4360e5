"""The page about a store: what was decoded, what is wrong with the rest, and what it took."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from amr.datamodules.store.media import Clip
from amr.datamodules.store.report import PrepareReport
from amr.utils.files import atomically
from amr.utils.html import document
from amr.utils.streams import span

_ORDER = ("train", "val", "test", "all")
_SHOWN = 20  # clips named for each reason; report.csv has all


def write_summary(store: Path, report: PrepareReport, clips: Iterable[tuple[Clip, Mapping[str, str]]]) -> None:
    """Write `report.html` in the store: one file that loads nothing.

    Args:
        store: Its folder.
        report: The counts.
        clips: Each with its reasons by modality.
    """
    listed, sound = Counter[str](), Counter[str]()
    named: dict[tuple[str, str], list[str]] = defaultdict(list)
    for clip, reasons in clips:
        listed[clip.split] += 1
        sound[clip.split] += not reasons
        for modality, reason in reasons.items():
            short, _, detail = reason.partition(": ")
            if len(names := named[modality, short]) < _SHOWN:
                names.append(f"{clip.id} ({detail})" if detail else clip.id)
    title = f"{store.name}: {report.ok} of {report.total} clips are sound"
    rows = "".join(
        f'<tr><th scope="row">{escape(split)}</th><td class="num">{count}</td><td class="num">{sound[split]}</td>'
        f'<td class="num">{_percent(sound[split], count)}</td></tr>'
        for split, count in sorted(listed.items(), key=lambda item: _ORDER.index(item[0]))
    )
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(' · '.join(_facts(report)))}</p>",
        '<div class="scroll"><table><thead><tr><th scope="col">split</th><th scope="col" class="num">listed</th>'
        '<th scope="col" class="num">sound</th><th scope="col" class="num">part</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>",
        "<h2>Problems</h2>",
        _problems(report, named) if report.reasons else "<p>None.</p>",
    ]
    with atomically(store / "report.html") as file:
        file.write(document(title, "\n".join(body), _CSS).encode())


_CSS = """
meter { width: clamp(3rem, 15vw, 12rem); height: 1rem; } .num { white-space: nowrap; }
td details { margin: 0; } td summary { padding: 0; } td ul { padding-left: 1.2rem; }
"""


def _facts(report: PrepareReport) -> list[str]:
    """Size of the store, deaths of workers, and the speed of the run that finished the store."""
    facts = [f"{report.bytes / 1e6:,.1f} MB", f"{report.bytes / max(report.total, 1) / 1e3:,.1f} kB a clip"]
    if report.decoded:
        rate = report.decoded / max(report.seconds, 1e-9)
        facts.append(f"the last run decoded {report.decoded} clips in {span(report.seconds)}, {rate:.1f} a second")
    if report.deaths:
        facts.append(f"worker processes died {report.deaths} times")
    return facts


def _problems(report: PrepareReport, named: Mapping[tuple[str, str], list[str]]) -> str:
    """One row per reason, the most frequent first, with the first clips."""
    rows = []
    for (modality, reason), count in report.reasons.most_common():
        names = named[modality, reason]
        more = f"<li>and {count - len(names)} more: see report.csv</li>" if count > len(names) else ""
        clips = "".join(f"<li><code>{escape(name)}</code></li>" for name in names)
        rows.append(
            f'<tr><th scope="row">{escape(modality)}</th><td>{escape(reason)}</td><td class="num">{count}</td>'
            f'<td class="num">{_percent(count, report.total)}</td>'
            f'<td><meter min="0" max="{report.total}" value="{count}">{count} of {report.total}</meter></td>'
            f"<td><details><summary>clips</summary><ul>{clips}{more}</ul></details></td></tr>"
        )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("modality", "reason"))
    head += "".join(f'<th scope="col" class="num">{name}</th>' for name in ("clips", "of all"))
    head += '<th scope="col">as a bar</th><th scope="col">which</th>'
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _percent(count: int, total: int) -> str:
    return f"{100 * count / max(total, 1):.1f} %"
