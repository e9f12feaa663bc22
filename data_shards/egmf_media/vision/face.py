"""``face``: the largest face five times a second. Points of its mesh, openings, how the head is turned, its box.

YuNet finds faces, MediaPipe's face mesh puts 468 points on the largest, both through OpenCV. Frame k is what was seen
at second k / rate; one without a face is zeros with ``face`` 0, so that places stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from egmf_media.decode.container import DECODING
from egmf_media.decode.pictures import read_pictures
from egmf_media.errors import AbsentError, MediaError
from egmf_media.limits import Limits
from egmf_media.specification import PICTURES, Specification
from egmf_media.vision.points import ANGLES, CHOSEN, OPENINGS, angles, normalised, openings
from egmf_media.weights import DETECTOR, FACE, MESH, missing, weights_folder

VERSION = 1
RATE = 5.0
LONGEST = 640
"""Pixels of a picture's longer side, from which the mesh's crop is taken."""
DETECTED_AT = 320
"""Of the picture in which faces are looked for."""
SCORE, OVERLAP, MOST = 0.6, 0.3, 50
CROP, MARGIN = 192, 1.5
BOX = ("x", "y", "side")
"""Of the face: its middle by the picture's width and height, its longer side by the picture's height."""
COLUMNS = (
    *(f"p{n}_{axis}" for n in CHOSEN for axis in "xyz"),
    *(name for name, _, _ in OPENINGS),
    *ANGLES,
    *BOX,
    "score",
    "mesh",
    "face",
)
"""Names of a frame's numbers. ``score`` is the detector's, ``mesh`` how sure the mesh is of a face, ``face`` 1."""


@dataclass(frozen=True)
class Found:
    """A face in a picture."""

    box: np.ndarray
    """float32 ``[4]``: left, top, width, height in pixels."""
    eyes: np.ndarray
    """float32 ``[2, 2]``: the person's right and left eye, x and y."""
    score: float
    count: int
    """How many faces there were."""


class Face:
    """The extractor.

    Args:
        folder: of the weights; None: the user's cache.
        rate: frames a second.
    """

    def __init__(self, folder: Path | None = None, rate: float = RATE) -> None:
        if not 0 < rate <= 60:
            raise MediaError(f"face: rate is {rate}; frames a second, above 0 and at most 60, are needed")
        self.folder = folder or weights_folder()
        self.rate = float(rate)
        self.specification = Specification(
            "face",
            VERSION,
            PICTURES,
            self.rate,
            len(COLUMNS),
            DECODING,
            {"longest": LONGEST, "detected_at": DETECTED_AT, "score": SCORE, "crop": CROP, "margin": MARGIN},
            {one.name: one.sha256 for one in FACE},
        )

    @property
    def missing(self) -> str:
        """Why it cannot be used here."""
        try:
            import cv2
        except ImportError:
            return "faces need OpenCV: pip install 'egmf-dist[media]'"
        if int(cv2.__version__.split(".")[0]) != 4:
            return f"faces need OpenCV 4.12 to 4.x, here is {cv2.__version__}: pip install 'egmf-dist[media]'"
        return missing(FACE, self.folder)

    @cached_property
    def _detector(self) -> Any:
        import cv2

        return cv2.FaceDetectorYN.create(str(self.folder / DETECTOR.name), "", (320, 320), SCORE, OVERLAP, MOST)

    @cached_property
    def _mesh(self) -> Any:
        import cv2

        return cv2.dnn.readNetFromTFLite(str(self.folder / MESH.name))

    def extract(self, path: Path, limits: Limits, counts: dict[str, Any]) -> np.ndarray:
        """float32 ``[frames, dim]``; ``counts`` is filled.

        Raises:
            AbsentError: the clip has no video, or no frame of it a face.
            MediaError: it cannot be read.
        """
        counts |= {"frames": 0, "frames_with_face": 0, "frames_with_several": 0}
        rows: list[np.ndarray] = []
        nothing = np.zeros(len(COLUMNS), np.float32)
        several = False
        with one_thread():
            for picture in read_pictures(path, limits, self.rate, LONGEST, counts):
                if picture.image is None:
                    row, several = nothing, False
                elif not picture.same:
                    found = self.find(picture.image)
                    several = found is not None and found.count > 1
                    row = nothing if found is None else self.describe(picture.image, found)
                rows.append(row)
                counts["frames"] += 1
                counts["frames_with_face"] += bool(row[-1])
                counts["frames_with_several"] += several
        if not counts["frames_with_face"]:
            raise AbsentError("no face in any frame", counts)
        return np.stack(rows)

    def find(self, image: np.ndarray) -> Found | None:
        """The face of the largest area times score.

        Args:
            image: uint8 BGR ``[height, width, 3]``.
        """
        import cv2

        height, width = image.shape[:2]
        scale = min(1.0, DETECTED_AT / max(width, height))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
        self._detector.setInputSize(size)
        faces = self._detector.detect(small)[1]
        if faces is None:
            return None
        best = faces[np.argmax(faces[:, 2] * faces[:, 3] * faces[:, 14])]
        stretch = np.array([width / size[0], height / size[1]], np.float32)
        box = (best[:4].reshape(2, 2) * stretch).ravel()
        return Found(box, best[4:8].reshape(2, 2) * stretch, float(best[14]), len(faces))

    def points(self, image: np.ndarray, found: Found) -> tuple[np.ndarray, float, float]:
        """The mesh: float32 ``[468, 3]`` in the crop's pixels, how sure it is of a face, by how many degrees it was
        turned upright."""
        import cv2

        across = found.eyes[1] - found.eyes[0]
        turned = float(np.degrees(np.arctan2(across[1], across[0])))
        middle = found.box[:2] + found.box[2:] / 2
        side = float(found.box[2:].max()) * MARGIN
        matrix: Any = cv2.getRotationMatrix2D((float(middle[0]), float(middle[1])), turned, CROP / max(side, 1.0))
        matrix[:, 2] += CROP / 2 - middle
        crop = cv2.warpAffine(image, matrix, (CROP, CROP))
        self._mesh.setInput(cv2.dnn.blobFromImage(crop.astype(np.float32) / 255, swapRB=True))
        points, sure = self._mesh.forward(["conv2d_21", "conv2d_31"])
        return points.reshape(468, 3), float(1 / (1 + np.exp(-float(sure.ravel()[0])))), turned

    def describe(self, image: np.ndarray, found: Found) -> np.ndarray:
        """float32 ``[dim]`` of a face in a picture."""
        points, sure, turned = self.points(image, found)
        height, width = image.shape[:2]
        middle = found.box[:2] + found.box[2:] / 2
        box = [middle[0] / width, middle[1] / height, found.box[2:].max() / height, found.score, sure, 1.0]
        parts = [normalised(points).ravel(), openings(points), angles(points, turned), np.array(box, np.float32)]
        return np.concatenate(parts)


@dataclass(frozen=True)
class Seen:
    """One moment of a clip, to be looked at."""

    second: float
    image: np.ndarray | None
    """uint8 BGR ``[height, width, 3]``; None: nothing was seen."""
    box: np.ndarray | None = None
    """float32 ``[4]``: left, top, width, height of the face that features are of."""
    points: np.ndarray | None = None
    """float32 ``[468, 2]``: the mesh in the picture."""
    count: int = 0
    """Faces."""


def look(face: Face, path: Path, limits: Limits, most: int) -> list[Seen]:
    """Moments of a clip, evenly spread, with what is found in them.

    Raises:
        AbsentError, MediaError: as :meth:`Face.extract`.
    """
    with one_thread():
        count = sum(1 for _ in read_pictures(path, limits, face.rate, 32, {}))
        wanted = {round(place) for place in np.linspace(0, count - 1, min(most, count))}
        seen = []
        for number, picture in enumerate(read_pictures(path, limits, face.rate, LONGEST, {})):
            if number in wanted:
                seen.append(_seen(face, picture.second, picture.image))
    return seen


def _seen(face: Face, second: float, image: np.ndarray | None) -> Seen:
    found = None if image is None else face.find(image)
    if image is None or found is None:
        return Seen(second, image)
    points, _, turned = face.points(image, found)
    # Back from the crop, which was turned around the box's middle and made CROP pixels wide.
    side = float(found.box[2:].max()) * MARGIN
    centred = (points[:, :2] - CROP / 2) * side / CROP
    a = np.radians(turned)
    back = centred @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) + found.box[:2] + found.box[2:] / 2
    return Seen(second, image, found.box, back.astype(np.float32), found.count)


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV in one thread, so that its last bits do not hang on the machine; as it was afterwards."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
