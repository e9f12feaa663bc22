"""Some sixty clips of every kind through the batch: each as stated, none harms another, memory stays bounded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from clip_matrix import MATRIX, fits

from egmf_media.batch.listing import list_clips
from egmf_media.batch.run import How, extract_many
from egmf_media.decode.container import DECODING
from egmf_media.decode.pictures import read_pictures
from egmf_media.extract import extract_one
from egmf_media.limits import Limits
from egmf_media.specification import PICTURES, Specification
from egmf_media.vision.face import Face


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("matrix")
    for row in MATRIX:
        row.make(folder / row.name)
    # Two of one name and different endings need ids of their own.
    lines = [json.dumps({"id": row.name, "clip": row.name}) for row in MATRIX]
    (folder / "clips.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


class Light:
    """Pictures without a model: how light each is."""

    specification = Specification("light", 1, PICTURES, 5.0, 1, DECODING)
    missing = ""

    def extract(self, path, limits, counts):
        found = list(read_pictures(path, limits, 5.0, 320, counts))
        return np.array([[-1.0 if p.image is None else p.image.mean()] for p in found], np.float32)


def test_every_clip_becomes_what_is_stated(clips, tmp_path):
    assert len(MATRIX) >= 40
    weights = not Face().missing
    summary = extract_many(
        list_clips(clips / "clips.jsonl"),
        {"audio": {"extractor": "prosody"}, "vision": {"extractor": "face"}},
        tmp_path / "out",
        How(processes=2),
    )
    lines = [json.loads(line) for line in (tmp_path / "out" / "report.jsonl").read_text().splitlines()]
    found = {(line["id"], line["stream"]): line for line in lines}
    assert [*found] == [(row.name, stream) for row in MATRIX for stream in ("audio", "vision")]
    wrong = []
    for row in MATRIX:
        for stream, expected in (("audio", row.audio), ("vision", row.vision)):
            line = found[row.name, stream]
            if stream == "vision" and not weights and not line.get("reason", "").startswith("is "):
                expected = "absent: face_detection_yunet"
            if not fits(expected, line["status"], line.get("reason", "")):
                wrong.append((row.name, stream, expected, line))
            assert "\n" not in line.get("reason", "")
            file = tmp_path / "out" / stream / f"{row.name}.npy"
            assert file.is_file() == (line["status"] == "ok")
            if line["status"] == "ok":
                array = np.load(file)
                assert array.dtype == np.float32
                assert np.isfinite(array).all()
    assert not wrong
    assert 0 < summary.peak < 600 * 2**20, f"{summary.peak / 2**20:.0f} MiB"
    assert summary.failed == sum(line["status"] == "failed" for line in lines)


def test_every_video_is_decoded_as_stated_without_a_model(clips):
    wrong = []
    for row in MATRIX:
        outcome = extract_one(clips / row.name, Light(), Limits())
        expected = "ok" if row.vision.startswith("absent: no face") else row.vision
        if not fits(expected, outcome.status, outcome.reason):
            wrong.append((row.name, expected, outcome.status, outcome.reason))
    assert not wrong


def test_the_last_clips_seconds_are_right_whatever_the_container_says(clips):
    for name, seconds in (("browser.webm", 2), ("moved.ts", 2), ("10-minutes.mkv", 600), ("late-sound.mkv", 2)):
        outcome = extract_one(clips / name, Light(), Limits())
        assert outcome.array is not None
        assert abs(outcome.counts["seconds"] - seconds) < 0.05
        assert len(outcome.array) == seconds * 5
