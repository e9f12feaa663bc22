"""An explanation as one picture: its words shaded, a strip for each modality, bars for what was taken away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from egmf_dist.style import COLOURS, FONT, GREY, HEAT, families, new_figure, plain

if TYPE_CHECKING:
    from egmf_dist.inference.explanation import Explanation, Modality, Without

FOR, AGAINST = COLOURS[:2]
WIDTH, LEFT, RIGHT = 10.0, 1.3, 0.75
"""Inches: the picture's, and its margins."""
_LINE, _BAR, _EXPERT, _STRIP, _TITLE = 0.36, 0.3, 0.17, 0.5, 0.34
_MOST_LABELS, _MOST_CHARACTERS, _MOST_LINES = 32, 100, 12


class _Page:
    """Axes from top to bottom, in inches; the height is known at the end."""

    def __init__(self) -> None:
        self.figure = new_figure(WIDTH, 1.0)
        self.figure.set_layout_engine("none")
        self._axes: list[tuple[Axes, float, float]] = []
        self.at = 0.1

    def axes(self, height: float, gap: float = 0.0) -> Axes:
        """The next one, ``gap`` below."""
        self.at += gap
        made = self.figure.add_axes((0, 0, 1, 1), label=str(len(self._axes)))
        made.spines[:].set_visible(False)
        made.tick_params(labelsize=FONT - 3, length=0)
        self._axes.append((made, self.at, height))
        self.at += height
        return made

    def text(self, text: str, size: float, height: float = _TITLE, x: float = 0.0, **how: Any) -> None:
        """A line."""
        axes = self.axes(height)
        axes.set_axis_off()
        axes.text(x, 0.3, plain(text), fontsize=size, transform=axes.transAxes, **how)

    def done(self) -> Figure:
        """Everything in its place."""
        whole = self.at + 0.1
        self.figure.set_size_inches(WIDTH, whole)
        width = (WIDTH - LEFT - RIGHT) / WIDTH
        for axes, top, height in self._axes:
            axes.set_position((LEFT / WIDTH, 1 - (top + height) / whole, width, height / whole))
        return self.figure


def explanation_figure(explanation: Explanation) -> Figure:
    """Draw an explanation; nothing of a modality that is absent."""
    page = _Page()
    title = f"{shortened(explanation.answer.id, 30)}  {shortened(explanation.headline(), 70)}"
    page.text(title, FONT + 1, weight="bold", x=-0.12)
    if explanation.words:
        _draw_words(page, explanation)
    for modality in explanation.modalities:
        _draw_modality(page, modality, explanation.answer.diagnostics.get("modalities", {}))
    if explanation.without:
        _draw_without(page, explanation)
    page.text(explanation.footline(), FONT - 3, color=GREY, x=-0.12)
    return page.done()


def _draw_words(page: _Page, explanation: Explanation) -> None:
    """The utterance, wrapped, each word shaded by its attribution."""
    words, renderer = explanation.words, FigureCanvasAgg(page.figure).get_renderer()
    font, inches = FontProperties(family=families(), size=FONT), (WIDTH - LEFT - RIGHT)
    top = explanation.largest
    page.text(f"words: blue speaks for the answer, orange against it; the deepest is {top:.3f} nats", FONT - 1)
    gap, x, line, placed = 0.1, 0.0, 0, []
    for word in words:
        text = plain(word.text)
        width = renderer.get_text_width_height_descent(text, font, False)[0] / page.figure.dpi
        if x > 0 and x + width > inches:
            x, line = 0.0, line + 1
        placed.append((x, line, text, word.attribution))
        x += width + gap
    lines = min(line + 1, _MOST_LINES)
    axes = page.axes(_LINE * lines)
    axes.set(xlim=(0, inches), ylim=(lines, 0), xticks=[], yticks=[])
    for x, line, text, attribution in placed:
        if line < lines:
            box = {"boxstyle": "round,pad=0.15", "facecolor": shade(attribution, top), "edgecolor": "none"}
            axes.text(x, line + 0.5, text, fontsize=FONT, va="center", bbox=box)
    if line >= lines:
        page.text(f"and {sum(own[1] >= lines for own in placed)} more words", FONT - 3, color=GREY)


def _draw_modality(page: _Page, modality: Modality, weights: Any) -> None:
    """Its tokens' attributions as bars, and below them what the fusion says of each."""
    tokens, name = len(modality.attributions), modality.name
    read = f"{modality.frames} {'tokens' if modality.labels else 'frames'}"
    read += f" in {tokens} groups" if tokens < modality.frames else ""
    title = (
        f"{name}: {read}, attribution {modality.attribution:+.3f} nats{' through the fusion' * bool(modality.labels)}"
    )
    page.text(title + (f", weight {weights[name]:.2f}" if name in weights else ""), FONT - 1, height=_TITLE + 0.05)
    bars, top = page.axes(_STRIP), modality.largest
    bars.bar(
        range(tokens), modality.attributions, 0.9, color=[FOR if n > 0 else AGAINST for n in modality.attributions]
    )
    bars.axhline(0, color=GREY, linewidth=0.6)
    ends = sorted({min(0.0, float(modality.attributions.min())), max(0.0, float(modality.attributions.max()))})
    # Where nearly all is of one sign, the other's half would be empty.
    shown = [end for end in ends if abs(end) > 0.25 * top]
    bars.set(ylim=(ends[0] - 0.05 * top, ends[-1] + 0.05 * top), yticks=shown, yticklabels=[f"{n:.2g}" for n in shown])
    strips = [bars]
    for level, columns in modality.gates.items():
        strips.append(page.axes(_EXPERT * len(columns), gap=0.06))
        table = np.array([*columns.values()], np.float64)
        image = strips[-1].imshow(table, cmap=HEAT, vmin=0, vmax=max(1.0, float(table.max())), aspect="auto")
        strips[-1].set_yticks(range(len(columns)), [plain(column) for column in columns])
        _key(strips[-1], level, image.get_clim())
    for axes in strips:
        axes.set(xlim=(-0.5, tokens - 0.5), xticks=[])
    if modality.labels and tokens <= _MOST_LABELS and sum(map(len, modality.labels)) <= _MOST_CHARACTERS:
        strips[-1].set_xticks(range(tokens), [plain(label) for label in modality.labels])
        page.at += 0.2
    elif tokens > 1:
        strips[-1].set_xticks([0, tokens - 1], ["1", str(tokens)])
        page.at += 0.2


def _key(axes: Axes, level: str, limits: tuple[float, float]) -> None:
    """What the darkest and the lightest colour mean, on the right."""
    text = f"{level}\n{limits[0]:g} dark\n{limits[1]:g} light"
    axes.text(1.01, 0.5, plain(text), fontsize=FONT - 5, va="center", transform=axes.transAxes, color=GREY)


def _draw_without(page: _Page, explanation: Explanation) -> None:
    """A bar for what each thing taken away does to the answer's log-probability."""
    page.text("taken away: change of the answer's log-probability, in nats", FONT - 1, height=_TITLE + 0.05)
    without = explanation.without
    changes = np.nan_to_num([own.change for own in without], neginf=-1e3)
    axes, top = page.axes(_BAR * len(without)), max(float(np.abs(changes).max()), 1e-12)
    axes.barh(range(len(without)), changes, 0.7, color=[FOR if n < 0 else AGAINST for n in changes])
    axes.axvline(0, color=GREY, linewidth=0.6)
    low, high = min(0.0, float(changes.min())), max(0.0, float(changes.max()))
    # Room for the words beside the bars.
    axes.set(xlim=(low - 0.9 * top * (low < 0), high + 0.9 * top * (high > 0 or low == 0)), xticks=[])
    axes.set_yticks(range(len(without)), [plain(own.what) for own in without])
    axes.set_ylim(len(without) - 0.5, -0.5)
    for place, (own, change) in enumerate(zip(without, changes, strict=True)):
        side = "right" if change < 0 else "left"
        axes.annotate(
            plain(shortened(_then(own), 50)), (change, place), (-4 if change < 0 else 4, 0), textcoords="offset points",
            ha=side, va="center", fontsize=FONT - 3,
        )  # fmt: skip


def _then(own: Without) -> str:
    """What is answered without it."""
    if own.value_change is not None:
        return f"{own.change:+.3f}; value {own.answer.value:.3f} ({own.value_change:+.3f})"
    return f"{own.change:+.3f}; {own.answer.answer} ({own.answer.probability:.3f})"


def shortened(text: str, most: int) -> str:
    """At most so many characters, its end left out."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def shade(attribution: float, top: float) -> Sequence[float]:
    """From white at 0 to a colour at ``top``: which speaks for the answer, or against it."""
    share = 0.75 * min(abs(attribution) / top, 1.0)
    return [1 - share + share * part for part in to_rgb(FOR if attribution > 0 else AGAINST)]
