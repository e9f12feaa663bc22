"""What a GPU machine found, as one HTML page that needs nothing else.

    python -m egmf_kernels.bench.report DIR

DIR holds ``results.json`` (of gpu_check.py) or ``check/results.json`` and, where there was one, ``step/step.json`` (of
egmf_step.py); the page is ``DIR/report.html``. Unfinished results are drawn as far as they came.
"""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[dict[str, Any]]
COLOURS = {"eager": "#b8b8b8", "padded": "#d9c27e", "compile": "#5b8fc9", "fused": "#2f8f5b"}
STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 } td, th { padding: .15rem .6rem; border-bottom: 1px solid #ddd }
th { text-align: left } td.n { text-align: right; font-variant-numeric: tabular-nums } .red { color: #b00020 }
.green { color: #2f8f5b } h2 { margin-top: 2rem } .panels { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 0 } figcaption { font-weight: 600 } svg text { font: 11px system-ui, sans-serif; fill: #222 }
"""
LABEL, BAR, ROOM = 180, 260, 16
"""Pixels: of a bar's name, of the longest bar, from one bar to the next."""


def page(results: dict[str, Any], step: dict[str, Any] | None) -> str:
    """The whole page."""
    parts = [
        f"<h1>{_text(results['label'])}</h1>",
        f"<p>{_text(results['machine'])}; {_text(_versions(results))}; commit {_text(results['commit'])}; "
        f"{_text(results['date'])}; tiles: {_text(results['table'])}</p>",
        _verdict(results),
    ]
    if results["targets"]:
        parts += ["<h2>Targets</h2>", _targets(results["targets"])]
    if results.get("hammer"):
        parts += ["<h2>The same step many times</h2>", _hammers(results["hammer"])]
    rows = [row for row in results["rows"] if row["ms"]]
    for direction in ("forward", "both"):
        for shape, title in (("model", "The model's shapes"), ("stream", "Streams that no cache holds")):
            chosen = [row for row in rows if row["shape"] == shape and row["direction"] == direction]
            if chosen:
                what = "forward" if direction == "forward" else "forward and backward"
                parts += [f"<h2>{title}: microseconds, {what}</h2>", _panels(chosen)]
    large = [row for row in rows if row["shape"] == "stream" and row["implementation"] == "fused" and row["gb_per_s"]]
    if large and results["ceilings"]:
        parts += ["<h2>Share of the measured roofline, large streams</h2>", _roofline(large)]
    if results.get("launches"):
        parts += ["<h2>Every launch</h2>", _launches(results["launches"])]
    if step is not None:
        parts += ["<h2>A training step</h2>", _step(step)]
    parts += ["<h2>Notes</h2>", _items([*results["notes"], *results["left_out"]])]
    title = _text(results["label"])
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return "\n".join([head, *parts, "</html>", ""])


def _text(value: Any) -> str:
    return html.escape(str(value))


def _versions(results: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in results["versions"].items())


def _items(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; numbers stand to the right."""
    top = "".join(f"<th>{_text(head)}</th>" for head in heads)
    body = "".join(f"<tr>{''.join(f'<td{_number(cell)}>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _number(cell: Any) -> str:
    return ' class="n"' if isinstance(cell, int | float) or str(cell).replace(".", "").isdigit() else ""


def _verdict(results: dict[str, Any]) -> str:
    """Whether everything is correct, in one line, and what is not."""
    checked = results["correctness"]
    red = results["red"]
    state = "all correct" if results["correct"] else "not all correct" if red else "not complete"
    colour = "green" if results["correct"] else "red"
    line = f'<p class="{colour}"><b>{state}</b>: {len(checked)} cases checked, {len(red)} red'
    return f"{line}{'' if results['complete'] else '; the run did not come to its end'}</p>{_items(red) if red else ''}"


def _targets(targets: Rows) -> str:
    words = {None: "open", True: "met", False: "missed"}
    rows = [
        (t["name"], t["target"], "-" if t["value"] is None else f"{t['value']:.2f}", words[t["met"]]) for t in targets
    ]
    return _table(("target", "", "reached", ""), rows)


def _hammers(found: Rows) -> str:
    rows = [
        (h["operator"], h["width"], h["tokens"], h["runs"], "equal" if h["equal"] else f"moved: {h['moved']}")
        for h in found
    ]
    return _table(("operator", "width", "tokens", "runs", "bits"), rows)


def _panels(rows: Rows) -> str:
    """A panel for each shape, in it a group of bars for each operator and layout."""
    shapes = list(dict.fromkeys((row["width"], row["tokens"], row["batch"]) for row in rows))
    drawn = []
    for width, tokens, batch in shapes:
        here = [row for row in rows if (row["width"], row["tokens"], row["batch"]) == (width, tokens, batch)]
        bars = []
        for operator, layout in dict.fromkeys((row["operator"], row["layout"]) for row in here):
            name = operator if layout == "ragged" else f"{operator}, {layout}"
            group = [row for row in here if (row["operator"], row["layout"]) == (operator, layout)]
            bars += [
                (name if not place else "", 1e3 * row["ms"], f"{1e3 * row['ms']:.1f} {row['implementation']}",
                 COLOURS.get(row["implementation"], "#999"))
                for place, row in enumerate(group)
            ]  # fmt: skip
        drawn.append(_figure(f"width {width}, {tokens} tokens, {batch} samples", bars))
    return f'<div class="panels">{"".join(drawn)}</div>'


def _roofline(rows: Rows) -> str:
    """What the fused operators reach, a panel a direction."""
    drawn = []
    for direction in ("forward", "backward"):
        bars = [
            (f"{row['operator']} {row['width']}", row["percent_of_roofline"], f"{row['percent_of_roofline']:.0f} %",
             COLOURS["fused"])
            for row in rows
            if row["direction"] == direction and row["layout"] == "ragged"
        ]  # fmt: skip
        drawn.append(_figure(direction, bars, longest=100.0))
    return f'<div class="panels">{"".join(drawn)}</div>'


def _figure(title: str, bars: Sequence[tuple[str, float, str, str]], longest: float = 0.0) -> str:
    """Horizontal bars of name, length, text and colour."""
    scale = BAR / max([longest, *(bar[1] for bar in bars)], default=1.0)
    shapes = []
    for place, (name, length, text, colour) in enumerate(bars):
        y = place * ROOM
        shapes.append(f'<text x="{LABEL - 6}" y="{y + 12}" text-anchor="end">{_text(name)}</text>')
        shapes.append(
            f'<rect x="{LABEL}" y="{y + 2}" width="{length * scale:.1f}" height="{ROOM - 4}" fill="{colour}"/>'
        )
        shapes.append(f'<text x="{LABEL + length * scale + 4:.1f}" y="{y + 12}">{_text(text)}</text>')
    size = f'width="{LABEL + BAR + 110}" height="{len(bars) * ROOM + 4}"'
    return f"<figure><figcaption>{_text(title)}</figcaption><svg {size}>{''.join(shapes)}</svg></figure>"


def _launches(found: Rows) -> str:
    rows = [
        (case["operator"], case["width"], case["tokens"], case["layout"], one["kernel"],
         "-" if one["us"] is None else one["us"], " x ".join(map(str, one["grid"])))
        for case in found
        for one in case["launches"]
    ]  # fmt: skip
    return _table(("operator", "width", "tokens", "layout", "kernel", "us", "grid"), rows)


def _step(step: dict[str, Any]) -> str:
    """Each width's times, the kernels' share, waits and what does not repeat."""
    stages = step["stages"]
    parts = []
    for name, value in stages.items():
        if not isinstance(value, dict) or "failed" in value:
            parts.append(f"<p>{_text(name)}: {_text(value)}</p>")
        elif name.startswith("times"):
            rows = [
                (kernels, what, own["wall_ms"], own["host_ms"], own["peak_mib"] or "-")
                for kernels, by_part in value.items()
                for what, own in by_part.items()
            ]
            parts.append(f"<h3>{_text(name)}</h3>" + _table(("kernels", "part", "ms", "host ms", "peak MiB"), rows))
        elif name.startswith("profile"):
            share = (
                f"kernels {value['kernels_us']} of {value['device_us']} us on the device, {value['kernels_percent']} %"
            )
            parts.append(f"<p>{_text(name)}: {_text(share)}</p>" + _table(("us", "times", "kernel"), value["ours"]))
        elif name.startswith("waits"):
            parts.append(f"<p>{_text(name)}: {value['waits']}</p>{_items(value['where'])}")
        elif name.startswith("repeats"):
            names = ", ".join(value["outside the language model"]) or "none outside the language model"
            parts.append(f"<p>{_text(name)}: {value['moved']} of {value['of']} gradients move: {_text(names)}</p>")
        elif name.startswith("agree"):
            worst = ", ".join(f"{what} {error:.1e}" for what, error in value["worst"][:4])
            right = "right" if value["right"] else "WRONG"
            parts.append(f"<p>{_text(name)}: {right}; loss {value['loss']}; worst {_text(worst)}</p>")
    return "\n".join(parts)


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into ``folder``.

    Raises:
        OSError: there is no ``results.json``, or the page cannot be written.
        ValueError: a file is no JSON.
    """
    places = [folder / "results.json", folder / "check" / "results.json"]
    source = next((place for place in places if place.is_file()), places[0])
    results = json.loads(source.read_text(encoding="utf-8"))
    step = folder / "step" / "step.json"
    found = json.loads(step.read_text(encoding="utf-8")) if step.is_file() else None
    out = folder / "report.html"
    out.write_text(page(results, found), encoding="utf-8")
    return out


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1:
        print("usage: python -m egmf_kernels.bench.report DIR", file=sys.stderr)
        return 2
    try:
        print(write_report(Path(given[0])))
    except (OSError, ValueError, KeyError) as problem:
        print(f"no report of {given[0]}: {type(problem).__name__}: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
