"""quality.json as a web page: one self-contained HTML file, no script, everything escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from pad_dist.dataset.quality import NOTEWORTHY

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid #d0d7de; }
table { border-collapse: collapse; } td, th { padding: .1rem .9rem .1rem 0; text-align: left; vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; } .wide { width: 24rem; }
.bar { background: #4078c0; height: .8rem; min-width: 1px; margin-top: .25rem; }
.moved { background: #fff8c5; padding: .1rem .8rem; } .note { color: #57606a; }
code { overflow-wrap: anywhere; }
"""


def quality_page(quality: dict[str, Any], name: str) -> str:
    """The page as HTML.

    Args:
        quality: content of quality.json.
        name: what the title calls the version.
    """
    lengths, popularity, text = quality["history_length"], quality["popularity"], quality["text"]
    title = f"Data quality of version {escape(name)}"
    sections = [
        f"<h1>{title}</h1>",
        _drift(quality["drift"]),
        "<h2>Counts</h2>",
        _table(("", ""), ((_words(key), count) for key, count in quality["counts"].items())),
        "<h2>Rejected rows</h2>",
        _rejected(quality["rejected"]),
        "<h2>History length</h2>",
        _quantiles(lengths["quantiles"], "events per user"),
        _bars("events", "users", lengths["histogram"]),
        "<h2>Item popularity</h2>",
        _quantiles(popularity["quantiles"], "training events per active item"),
        f"<p>{popularity['top_1_percent']:.1%} of the training events fall on the top 1 % of the active items, "
        f"{popularity['top_10_percent']:.1%} on the top 10 %.</p>",
        _bars("training events", "items", popularity["histogram"]),
        "<h2>Frequency bins</h2>",
        _table(("bin", "items", "training events"), ((b["bin"], b["items"], b["events"]) for b in quality["bins"])),
        "<h2>Texts</h2>",
        f"<p>{text['share_of_items']:.1%} of the active items have a text of their own, "
        f"and {text['share_of_events']:.1%} of the training events are on them.</p>",
        _quantiles(text["quantiles"], "characters per text"),
    ]
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(sections) + "\n</body></html>\n"
    )


def _drift(drift: dict[str, Any] | None) -> str:
    if drift is None:
        return '<p class="note">The first version: there is none before to compare with.</p>'
    lines = "".join(f"<li>{escape(line)}</li>" for line in drift["moved"])
    said = f"<ul>{lines}</ul>" if lines else "<p>Nothing moved much.</p>"
    note = f"Told here: shares, relative changes and distances (0 equal, 1 nothing shared) above {NOTEWORTHY:g}."
    turnover = drift["turnover"] or {}
    return "\n".join(
        [
            "<h2>Since the version before</h2>",
            f'<div class="moved">{said}</div><p class="note">{note}</p>',
            _table(("", "before", "now"), ((_words(key), *pair) for key, pair in drift["counts"].items())),
            _table(("", ""), ((_words(key), value) for key, value in turnover.items())),
            _table(("distance of", ""), drift["distances"].items()),
        ]
    )


def _rejected(rejected: dict[str, Any]) -> str:
    if not rejected:
        return "<p>None.</p>"
    rows = []
    for reason, part in rejected.items():
        samples = "<br>".join(f"<code>{escape(sample)}</code>" for sample in part["samples"])
        rows.append(f"<tr><td>{escape(reason)}</td>{_cell(part['rows'])}<td>{samples}</td></tr>")
    return "<table><tr><th>reason</th><th>rows</th><th>such as</th></tr>" + "".join(rows) + "</table>"


def _bars(what: str, counted: str, histogram: Sequence[Sequence[int]]) -> str:
    """One row and bar per bucket that is not empty."""
    longest = max((count for _, _, count in histogram), default=1)
    rows = []
    for first, last, count in histogram:
        label = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        bar = f'<td class="wide"><div class="bar" style="width: {100 * count / longest:.1f}%"></div></td>'
        rows.append(f"<tr>{_cell(label)}{_cell(count)}{bar}</tr>")
    return f"<table><tr><th>{escape(what)}</th><th>{escape(counted)}</th></tr>" + "".join(rows) + "</table>"


def _quantiles(values: dict[str, float], what: str) -> str:
    if not values:
        return "<p>None.</p>"
    return "<p>" + escape(f"{what}: " + ", ".join(f"{name} {_text(value)}" for name, value in values.items())) + "</p>"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    number = ' class="number"' if isinstance(value, int | float) else ""
    return f"<td{number}>{escape(_text(value))}</td>"


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if isinstance(value, float) else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")
