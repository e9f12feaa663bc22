"""What was extracted of many clips, as one picture; and one clip as the extractors hear and see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egmf_dist.errors import EgmfError
from egmf_dist.style import COLOURS, FONT, GREY, new_figure, plain, save, tidy
from egmf_media.audio.prosody import COLUMNS, prosody
from egmf_media.decode.sound import Sound
from egmf_media.extract import ABSENT, FAILED, OK
from egmf_media.vision.face import Seen

STATUSES = {OK: COLOURS[2], ABSENT: GREY, FAILED: COLOURS[1]}
"""What becomes of a clip and stream, and its colour."""
REASONS = 8
"""That a table names; rarer ones are counted together."""
MOMENTS = 8
"""Of a clip that its picture shows."""


def coverage(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of a report: by stream the clips by status and reason, and for video the frames with a face.

    Args:
        lines: of :func:`egmf_media.batch.run.read_report`.
    """
    found: dict[str, Any] = {}
    for line in lines:
        own = found.setdefault(
            str(line["stream"]), {"status": Counter(), "reasons": Counter(), "seconds": 0.0, "counts": Counter()}
        )
        own["status"][line["status"]] += 1
        if line["status"] != OK:
            own["reasons"][f"{line['status']}: {str(line.get('reason', ''))[:60]}"] += 1
        own["seconds"] += float(line.get("seconds", 0.0)) if line["status"] == OK else 0.0
        for name in ("frames", "frames_with_face", "frames_with_several", "bad_packets", "clipped"):
            own["counts"][name] += int(line.get(name, 0))
    return found


def coverage_text(found: Mapping[str, Any]) -> str:
    """The same as a table for a terminal."""
    rows = [f"{'stream':<12}{'ok':>8}{'absent':>8}{'failed':>8}{'seconds':>10}"]
    for stream, own in found.items():
        counts = "".join(f"{own['status'][status]:>8}" for status in STATUSES)
        rows.append(f"{stream:<12}{counts}{own['seconds']:>10.1f}")
        frames = own["counts"]["frames"]
        if frames:
            with_face, several = own["counts"]["frames_with_face"], own["counts"]["frames_with_several"]
            shares = f"with a face {with_face / frames:.1%}, with several {several / frames:.1%}"
            rows.append(f"  of {frames} frames {shares}")
        if own["counts"]["bad_packets"]:
            rows.append(f"  packets that could not be decoded: {own['counts']['bad_packets']}")
        reasons = own["reasons"].most_common()
        rows += [f"  {count} {reason}" for reason, count in reasons[:REASONS]]
        if len(reasons) > REASONS:
            rows.append(f"  {sum(count for _, count in reasons[REASONS:])} for {len(reasons) - REASONS} other reasons")
    return "\n".join(rows)


def write_coverage(found: Mapping[str, Any], path: Path) -> Path:
    """Draw :func:`coverage` as bars.

    Raises:
        EgmfError: ``path`` is no PNG, or cannot be written.
    """
    figure = new_figure(8, 1.4 + 0.6 * len(found))
    axes = figure.add_subplot()
    for row, own in enumerate(found.values()):
        left, total = 0.0, max(sum(own["status"].values()), 1)
        for status, colour in STATUSES.items():
            share = own["status"][status] / total
            label = status if row == 0 else None
            axes.barh(row, share, left=left, color=colour, label=label, edgecolor="white", height=0.6)
            if share > 0.04:
                axes.text(left + share / 2, row, str(own["status"][status]), ha="center", va="center", color="white")
            left += share
    axes.set_yticks(range(len(found)), [plain(stream) for stream in found])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=FONT - 2)
    tidy(axes, "clips by stream", "share of the clips")
    return _saved(figure, path)


def write_clip(title: str, sound: Sound | str, seen: Sequence[Seen] | str, path: Path) -> Path:
    """One clip: moments with the face and mesh that features are of, and sound with energy and pitch.

    Args:
        title: of the picture.
        sound: what was heard, or why nothing was.
        seen: what was seen, or why nothing was.
        path: a PNG.

    Raises:
        EgmfError: ``path`` is no PNG, or cannot be written.
    """
    figure = new_figure(12, 6.4)
    figure.suptitle(plain(title), fontsize=FONT + 1)
    grid = figure.add_gridspec(3, MOMENTS, height_ratios=[2.2, 1, 1])
    if isinstance(seen, str):
        _said(figure.add_subplot(grid[0, :]), f"no faces: {seen}")
    else:
        for place, moment in enumerate(seen[:MOMENTS]):
            _moment(figure.add_subplot(grid[0, place]), moment)
    if isinstance(sound, str):
        _said(figure.add_subplot(grid[1:, :]), f"no sound: {sound}")
    else:
        _heard(figure.add_subplot(grid[1, :]), figure.add_subplot(grid[2, :]), sound)
    return _saved(figure, path)


def _moment(axes: Axes, moment: Seen) -> None:
    axes.set_axis_off()
    faces = {0: "no face", 1: ""}.get(moment.count, f"{moment.count} faces")
    axes.set_title(f"{moment.second:.1f} s {faces}".strip(), fontsize=FONT - 2)
    if moment.image is None:
        axes.text(0.5, 0.5, "nothing seen", ha="center", va="center", fontsize=FONT - 2)
        return
    axes.imshow(moment.image[..., ::-1])
    if moment.points is not None and moment.box is not None:
        axes.plot(*moment.points.T, ".", color=COLOURS[5], markersize=0.8)
        x, y, width, height = moment.box
        axes.plot([x, x + width, x + width, x, x], [y, y, y + height, y + height, y], color=COLOURS[4], linewidth=1)


def _heard(wave: Axes, curves: Axes, sound: Sound) -> None:
    t = np.arange(len(sound.samples)) / sound.rate
    step = max(1, len(t) // 4000)
    wave.plot(t[::step], sound.samples[::step], color=COLOURS[0], linewidth=0.6)
    wave.set_xlim(0, t[-1])
    tidy(wave, f"sound from {sound.counts.get('offset', 0.0):.2f} s, RMS {sound.counts.get('rms', 0.0):.4f}")
    features = prosody(sound)
    column = {name: features[:, number] for number, name in enumerate(COLUMNS)}
    middle = (np.arange(len(features)) + 0.5) / 10
    curves.plot(middle, column["energy_mean"], color=COLOURS[0], label="log energy")
    pitch = curves.twinx()
    hertz = np.where(column["voiced"] > 0.3, 27.5 * 2 ** (column["f0_mean"] / 12), np.nan)
    pitch.plot(middle, hertz, ".", color=COLOURS[1], label="pitch, Hz")
    curves.set_xlim(0, t[-1])
    tidy(curves, "energy (line) and pitch (points)", "seconds", "log energy")
    pitch.set_ylabel("Hz", fontsize=FONT - 1)


def _said(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, plain(text[:160]), ha="center", va="center", fontsize=FONT)


def _saved(figure: Figure, path: Path) -> Path:
    if path.suffix.lower() != ".png":
        raise EgmfError(f"{path}: the picture is a PNG; name a file that ends in .png")
    try:
        return save(figure, path)
    except OSError as error:
        raise EgmfError(f"{path}: cannot be written ({error.strerror})") from error
