"""One look for every picture: colours that colour-blind readers can tell apart, sizes that are readable in a README.

Invariants: no pyplot, so no global state and no window; a picture is written whole or not at all; the same data give
the same bytes.
"""

from __future__ import annotations

import io
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette, which differs in lightness too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#888888"
HEAT = "cividis"
DPI = 110
FONT = 11
# Label keys are English as a rule; a data set of one's own may hold others.
CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "WenQuanYi Micro Hei",
    "Source Han Sans SC",
    "Microsoft YaHei",
    "SimHei",
)


FIRST_CJK = 0x2E80


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches wide and high."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(text: str) -> str:
    """Text that matplotlib draws as it stands: a dollar sign would start a formula, and Chinese characters that no
    installed font holds would all be the same box, so they are written as their code points."""
    if len(families()) == 1:
        text = "".join(c if ord(c) < FIRST_CJK else f"U+{ord(c):X} " for c in text)
    return text.replace("$", r"\$")


@cache
def families() -> list[str]:
    """Fonts in the order of preference: matplotlib's own, then those installed that hold Chinese characters."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in CJK_FONTS if name in installed)]


def tidy(axes: Axes, title: str = "", xlabel: str = "", ylabel: str = "", grid: bool = True) -> None:
    """Titles, a light grid, no box."""
    axes.set_title(plain(title), fontsize=FONT, loc="left")
    axes.set_xlabel(plain(xlabel), fontsize=FONT - 1)
    axes.set_ylabel(plain(ylabel), fontsize=FONT - 1)
    axes.tick_params(labelsize=FONT - 2)
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)


def heat_map(
    axes: Axes, table: np.ndarray, rows: list[str], columns: list[str], text: list[list[str]], top: float
) -> Any:
    """A table of shares in [0, top] as colours with ``text`` in each cell; returns the image for a colour bar."""
    image = axes.imshow(table, cmap=HEAT, vmin=0.0, vmax=top, aspect="auto")
    axes.set_xticks(range(len(columns)), [plain(c) for c in columns])
    axes.set_yticks(range(len(rows)), [plain(r) for r in rows])
    if sum(map(len, columns)) > 45:
        axes.tick_params(axis="x", labelrotation=35)
    size = FONT - 1 if len(columns) <= 8 else FONT - 4
    for i, j in np.ndindex(table.shape):
        # cividis runs from dark blue to light yellow.
        colour = "black" if table[i, j] > 0.55 * top else "white"
        axes.text(j, i, text[i][j], ha="center", va="center", color=colour, fontsize=size)
    return image


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """The picture as the bytes of a PNG."""
    for label in figure.findobj(match=_has_font):
        label.set_fontfamily(families())  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG under a temporary name, then rename it."""
    data = png(figure)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _has_font(artist: object) -> bool:
    return hasattr(artist, "set_fontfamily")
