"""The HTML of a preview: everything in one document, every text of a record escaped."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any, Protocol

from vltool.data.drawing import Picture
from vltool.data.geometry import KINDS, Kind
from vltool.data.record import Object
from vltool.data.survey import Survey
from vltool.data.tokens import Piece
from vltool.errors import Where

MARK = '<meta name="generator" content="vltool check --preview">'
"""What tells a preview from any other page; near its beginning."""

NAMES: dict[Kind, str] = {"bbox_2d": "box", "poly": "polygon", "line": "polyline"}
PLURALS: dict[Kind, str] = {"bbox_2d": "boxes", "poly": "polygons", "line": "polylines"}
LONGEST_LABEL = 32
"""Characters of a description that are written on a picture; its caption has all of them."""
BINS = 32
"""Bars of the histogram of lengths."""


class Remark(Protocol):
    """A finding, as far as a page shows it."""

    @property
    def id(self) -> str:
        """The rule's."""

    @property
    def severity(self) -> str:
        """error, warning or note."""

    @property
    def what(self) -> str:
        """What was found."""

    @property
    def where(self) -> Where | None:
        """Its file and line."""

    @property
    def remedy(self) -> str:
        """What to do about it."""


@cache
def _asset(name: str) -> str:
    return files("vltool.run").joinpath(name).read_text(encoding="utf-8").strip()


def _allowed(text: str) -> str:
    """The source expression of a Content-Security-Policy that admits one inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def head(*, files: int, shown: int, remarks: Sequence[Remark]) -> str:
    """The document up to its first file: what was found in all, and the bar of filters."""
    css, script = _asset("preview.css"), _asset("preview.js")
    policy = f"default-src 'none'; img-src data:; style-src {_allowed(css)}; script-src {_allowed(script)}"
    counted = Counter((remark.severity, remark.id) for remark in remarks)
    order = ("error", "warning", "note")
    rows = "".join(
        f'<tr><td class="count">{count:,}</td><td><span class="{severity}">{severity}</span></td>'
        f"<td><code>{escape(rule)}</code></td></tr>"
        for (severity, rule), count in sorted(counted.items(), key=lambda item: (order.index(item[0][0]), -item[1]))
    )
    found = f'<table class="findings">{rows}</table>' if rows else '<p class="good">No findings.</p>'
    toggles = "".join(
        f'<label class="kind-{kind}"><input type="checkbox" data-kind="{kind}" checked> {PLURALS[kind]}</label>'
        for kind in KINDS
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{MARK}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>Records as they are trained on</title>
<style>{css}</style>
</head>
<body>
<header>
<h1>Records as they are trained on</h1>
<p class="lead">{shown:,} records shown, of {files} {"file" if files == 1 else "files"}.
Hover, tap or focus an object to see what it is called.</p>
{found}
</header>
<nav aria-label="filters">
<label class="search">Filter <input type="search" id="filter" placeholder="text, file:line, rule …"></label>
{toggles}
<label><input type="checkbox" id="found"> with findings only</label>
<label><input type="checkbox" id="names"> descriptions on pictures</label>
<label><input type="checkbox" id="cuts"> token boundaries</label>
<output id="left" aria-live="polite"></output>
</nav>
<main>
"""


def foot() -> str:
    """The end of the document."""
    return f"</main>\n<script>{_asset('preview.js')}</script>\n</body>\n</html>\n"


def file_head(
    *, name: str, label: str, records: int, bad: int, shown: int, survey: Survey, max_length: int | None,
    prompted: bool,
) -> str:  # fmt: skip
    """The beginning of a file's section: its numbers, its kinds of geometry, its lengths.

    max_length: None without a tokenizer. prompted: whether there is a user's prompt.
    """
    title = f"{escape(name)}{f' <small>{escape(label)}</small>' if label else ''}"
    objects = sum(survey.kinds.values())
    of = "" if survey.looked_at == records else f" of {survey.looked_at:,} spread over the file"
    facts = [
        ("records", f"{records:,}"), ("with findings", f"{bad:,}"), ("shown", f"{shown:,}"),
        (f"objects{of}", f"{objects:,}"),
        *((PLURALS[kind], f"{survey.kinds[kind]:,}") for kind in KINDS if survey.kinds.get(kind)),
    ]  # fmt: skip
    tiles = "".join(f"<div><dt>{escape(what)}</dt><dd>{value}</dd></div>" for what, value in facts)
    lengths = ""
    if max_length is not None and survey.lengths:
        lengths = _histogram(survey.lengths, max_length, of)
    elif max_length is None:
        lengths = '<p class="hint">No tokenizer is known here, so nothing is counted: name a recipe with --recipe.</p>'
    if not prompted:
        lengths += '<p class="hint">No prompt is known here: it stands in a recipe, too.</p>'
    return (
        f'<section class="file">\n<h2>{title}</h2>\n'
        f'<div class="numbers"><dl class="tiles">{tiles}</dl>{lengths}</div>\n'
    )


def file_foot() -> str:
    """The end of a file's section."""
    return "</section>\n"


def _histogram(lengths: Sequence[int], limit: int, of: str) -> str:
    """Bars of how many records are how long, from 0 to the longest or the limit, which is marked."""
    top = max(*lengths, limit, 1)
    width = max(1, -(-top // BINS))
    counts = Counter(min(length // width, BINS - 1) for length in lengths)
    tallest = max(counts.values())
    bars = "".join(
        f'<rect x="{20 * i + 1}" y="{100 - height:.1f}" width="18" height="{height:.1f}"'
        f"{' class=over' if i * width > limit else ''}><title>{i * width:,} to {(i + 1) * width - 1:,} tokens: "
        f"{count:,} records</title></rect>"
        for i, count in sorted(counts.items())
        for height in [max(3.0, 96 * count / tallest)]
    )
    mark = 20 * min(BINS, limit / width)
    ordered = sorted(lengths)
    told = f"{ordered[0]:,} to {ordered[-1]:,} tokens a record{of}, half of them at most {ordered[len(ordered) // 2]:,}"
    over = sum(length > limit for length in lengths)
    fate = f"{over:,} over the limit of {limit:,}" if over else f"none over the limit of {limit:,}"
    return (
        f'<figure class="lengths"><svg viewBox="0 0 {20 * BINS} 104" preserveAspectRatio="none" role="img" '
        f'aria-label="histogram of lengths">{bars}<path class="axis" d="M0 100.5H{20 * BINS}"/>'
        f'<path class="limit" d="M{mark:.1f} 0V104"/></svg>'
        f"<figcaption>{told}; {fate} (the dashed line).</figcaption></figure>"
    )


def figure(
    shown: Picture, objects: Sequence[Object], *, title: str, tokens: int | None = None, row_tokens: int | None = None,
    dropped: int = 0,
) -> str:  # fmt: skip
    """A picture with its objects over it.

    tokens: the image's; row_tokens: the whole row's; each None where it is not known. dropped: objects that an
    augmentation took away.
    """
    facts = [title, f"{shown.full_width} × {shown.full_height}"]
    if tokens is not None:
        facts.append(f"{tokens:,} image tokens{'' if row_tokens is None else f' of {row_tokens:,}'}")
    facts += [f"{dropped} dropped"] if dropped else []
    scale_x, scale_y = shown.width / shown.full_width, shown.height / shown.full_height
    drawn = "".join(_drawn(number, item, scale_x, scale_y, shown.width) for number, item in enumerate(objects, start=1))
    data = base64.b64encode(shown.jpeg).decode()
    return (
        f'<figure class="picture"><div class="frame"><img loading="lazy" width="{shown.width}" '
        f'height="{shown.height}" alt="{escape(title)}" src="data:image/jpeg;base64,{data}">'
        f'<svg viewBox="0 0 {shown.width} {shown.height}" role="group" aria-label="objects">{drawn}</svg></div>'
        f"<figcaption><span>{escape(' · '.join(facts))}</span><b></b></figcaption></figure>"
    )


def _drawn(number: int, item: Object, scale_x: float, scale_y: float, width: int) -> str:
    """One object's outline over a dark casing, with its number beside its first corner."""
    points = [(x * scale_x, y * scale_y) for x, y in item.points]
    if item.kind == "bbox_2d":
        (left, top), (right, bottom) = points
        points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + ("" if item.kind == "line" else "Z")
    x, y = points[0] if item.kind == "line" else (min(p[0] for p in points), min(p[1] for p in points))
    if item.kind == "poly":  # its topmost corner, as the corner of its box may lie on another object
        x, y = min(points, key=lambda point: (point[1], point[0]))
    name = escape(item.desc)
    short = escape(item.desc if len(item.desc) <= LONGEST_LABEL else item.desc[: LONGEST_LABEL - 1] + "…")
    # What begins in the right half would run out of the picture; it ends at its border, a line below the number.
    aside = (
        f'x="{width}" dx="-.25em" dy="2.1em" text-anchor="end"' if x > width / 2 else f'x="{x:.1f}" dx="1.6em" dy="1em"'
    )
    return (
        f'<g class="{item.kind}" data-o="{number}"><title>{number}: {name}</title><path class="casing" d="{path}"/>'
        f'<path d="{path}"/><text x="{x:.1f}" y="{y:.1f}" dx=".25em" dy="1em">{number}</text>'
        f'<text class="name" y="{y:.1f}" {aside}>{short}</text></g>'
    )


def card(
    *, number: int, where: Where, name: str, objects: Sequence[Object], remarks: Sequence[Remark],
    figures: Sequence[str], variants: Sequence[str], messages: list[dict[str, Any]] | None,
    pieces: Sequence[Piece] | None, max_length: int, raw: str | None,
) -> str:  # fmt: skip
    """One record: pictures, objects, texts, tokens, findings.

    messages: None for a record that cannot be trained on; then `raw` is how it stands in the file.
    pieces: its row token by token; None where that is not known.
    """
    kinds = " ".join(dict.fromkeys(item.kind for item in objects))
    listed = "".join(
        f'<li class="{item.kind}"><button type="button" data-o="{i}"><span>{i}</span>{escape(item.desc)} '
        f"<small>{NAMES[item.kind]}</small></button></li>"
        for i, item in enumerate(objects, start=1)
    )
    found = "".join(
        f'<li><span class="{remark.severity}">{remark.severity}</span> <code>{escape(remark.id)}</code> '
        f"{escape(remark.what)}{f'<br><small>{escape(remark.remedy)}</small>' if remark.remedy else ''}</li>"
        for remark in remarks
    )
    parts = [
        f'<ul class="remarks">{found}</ul>' if found else "",
        f'<ol class="objects">{listed}</ol>' if listed else "",
        "".join(map(_message, messages or ())),
        f'<h4>as it stands in the file</h4><pre class="raw">{escape(raw)}</pre>' if raw is not None else "",
        _row(pieces, max_length) if pieces is not None else "",
    ]
    pictures = "".join(figures) or '<p class="none">no picture</p>'
    augmented = f'<div class="variants">{"".join(variants)}</div>' if variants else ""
    return (
        f'<article id="r{number}" tabindex="-1" data-kinds="{kinds}"{" data-found" if remarks else ""}>\n'
        f'<h3><a href="#r{number}">{escape(_place(where))}</a> <small>{escape(name)}</small></h3>\n'
        f'<div class="body"><div class="pictures">{pictures}'
        f"{augmented}</div>\n"
        f'<div class="texts">{"".join(parts)}</div></div>\n</article>\n'
    )


def _place(where: Where) -> str:
    return f"{where.file.rpartition('/')[2]}:{where.line}"


def _message(message: dict[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, list):
        shown = "".join(
            '<span class="image">image</span>' if item["type"] == "image" else escape(item["text"]) for item in content
        )
    else:
        shown = escape(content)
    return f'<h4>{escape(message["role"])}</h4><pre class="{escape(message["role"])}">{shown}</pre>'


def _row(pieces: Sequence[Piece], max_length: int) -> str:
    """Counts of a row, and the row itself with its labels marked."""
    total = sum(piece.tokens for piece in pieces)
    image = sum(piece.tokens for piece in pieces if piece.image)
    learnt = sum(piece.tokens for piece in pieces if piece.supervised)
    shown, before = [], False
    for piece in pieces:
        if piece.supervised != before:
            shown.append("<mark>" if piece.supervised else "</mark>")
            before = piece.supervised
        text = escape(piece.text).replace("\n", "<u>↵</u>\n")
        if piece.image:
            text = f'<span class="image">{text} ×{piece.tokens}</span>'
        shown.append(f"<i>{text}</i>")
    shown.append("</mark>" if before else "")
    over = ' class="over"' if total > max_length else ""
    return (
        f'<p class="tokens"><b{over}>{total:,}</b> of {max_length:,} tokens: <b>{image:,}</b> of images, '
        f"<b>{total - image:,}</b> of text, <b>{learnt:,}</b> supervised</p>"
        f'<details><summary>training row, supervised tokens marked</summary><pre class="row">{"".join(shown)}</pre>'
        "</details>"
    )
