"""The ingredients of ``egmf clips``: recordings that are made here, labelled by how they were made.

A synthetic voice (espeak-ng) at another pitch, speed and loudness says sentences that tell nothing; one photograph of
a face moves, is upright and bright or tilted and dark. ``activation`` is a number that the voice alone has, ``mood``
needs voice and face. It is an end-to-end check from clips to answers, and says nothing about people.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from egmf_dist.errors import EgmfError
from egmf_media.decode.container import av
from egmf_media.weights import Weights, fetch, weights_folder

ASTRONAUT = Weights(
    "astronaut.png",
    "scikit-image==0.26.0",
    "skimage/data/astronaut.png",
    "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "Eileen Collins, by NASA, public domain",
)
FACE_AT, FACE_SIZE = (224.0, 118.0), 112.0
"""The face in the photograph: its middle and height, in pixels."""
SIZE, FPS = (256, 192), 10
"""Of a clip, in pixels and pictures a second."""
ACTIVATIONS = (-1.0, -0.5, 0.0, 0.5, 1.0)
VOICES = {"en": [f"en-us+{v}" for v in ("m1", "m3", "m7", "f1", "f2", "f4")], "zh": ["cmn+m3", "cmn+f2"]}
SENTENCES = {
    "en": (
        "I will be there at nine.", "The train leaves from platform two.", "She put the keys on the table.",
        "We are having soup tonight.", "He called me in the afternoon.", "The meeting is on the third floor.",
        "There is a letter on your desk.", "They moved to another city.", "I saw them by the river.",
        "The shop closes in an hour.",
    ),
    "zh": (
        "我九点到那里。", "火车从二号站台出发。", "她把钥匙放在桌子上。", "我们今晚喝汤。", "他下午给我打了电话。",
        "会议在三楼。", "你的桌上有一封信。", "商店一小时后关门。",
    ),
}  # fmt: skip
MOODS = {(False, False): "calm", (False, True): "sad", (True, False): "excited", (True, True): "angry"}
"""By whether the voice is active and the head tilted in the dark."""
TASKS = {
    "mood": {
        "name": "mood",
        "kind": "classification",
        "questions": {"en": "Which mood is it?", "zh": "是什么心情？"},
        "labels": [*MOODS.values()],
        "answers": {"en": [*MOODS.values()], "zh": ["平静", "悲伤", "兴奋", "愤怒"]},
    },
    "activation": {
        "name": "activation",
        "kind": "regression",
        "questions": {"en": "How active is the voice?", "zh": "声音有多激动？"},
        "low": -1.0,
        "high": 1.0,
        "step": 0.5,
        "convention": "mosei",
    },
}


@dataclass(frozen=True)
class Made:
    """What a clip is made of."""

    id: str
    split: str
    language: str
    text: str
    voice: str
    activation: float
    pitch: int
    speed: int
    """Words a minute."""
    loudness: int
    tilted: bool
    seed: int

    @property
    def mood(self) -> str | None:
        """Its class; a voice that is neither has none."""
        return None if self.activation == 0 else MOODS[self.activation > 0, self.tilted]


def missing() -> str:
    """Why clips cannot be made here; empty where they can."""
    return (
        ""
        if shutil.which("espeak-ng")
        else "egmf clips: espeak-ng speaks; it is not installed: apt-get install espeak-ng"
    )


def astronaut(folder: Path | None = None) -> np.ndarray:
    """The photograph, fetched by its checksum where it is not here; uint8 RGB ``[512, 512, 3]``.

    Raises:
        MediaError: it cannot be fetched.
    """
    import cv2

    fetch(folder, (ASTRONAUT,))
    data = np.frombuffer(((folder or weights_folder()) / ASTRONAUT.name).read_bytes(), np.uint8)
    return cv2.cvtColor(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB)


def plan(count: int, seed: int) -> list[Made]:
    """What clips there will be; the same for the same numbers."""
    random, found = np.random.default_rng(seed), []
    for number in range(count):
        activation = ACTIVATIONS[(number + number // 20) % len(ACTIVATIONS)]
        language = "zh" if random.random() < 0.25 else "en"
        split = "test" if number % 20 >= 17 else "valid" if number % 20 >= 14 else "train"
        found.append(
            Made(
                id=f"c{number:04d}",
                split=split,
                language=language,
                text=str(random.choice(SENTENCES[language])),
                voice=str(random.choice(VOICES[language])),
                activation=activation,
                pitch=int(np.clip(45 + 30 * activation + random.normal(0, 6), 0, 99)),
                speed=int(np.clip(170 + 55 * activation + random.normal(0, 10), 90, 300)),
                loudness=int(np.clip(95 + 60 * activation + random.normal(0, 8), 15, 190)),
                tilted=bool(random.random() < 0.5),
                seed=int(random.integers(1 << 31)),
            )
        )
    return found


def write_data(folder: Path, clips: list[Made]) -> None:
    """``clips/ID.mp4``, and of each task ``NAME.jsonl`` and ``NAME.yaml``.

    Raises:
        EgmfError: espeak-ng does not speak.
        MediaError: the photograph cannot be fetched.
    """
    photograph = astronaut()
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for made in clips:
        path = folder / "clips" / f"{made.id}.mp4"
        if not path.is_file():
            write_clip(path, made, photograph)
    for name, task in TASKS.items():
        rows = [row for made in clips if (row := _row(made, name)) is not None]
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8"
        )
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(json.dumps(task, ensure_ascii=False, indent=1) + "\n", "utf-8")


def _row(made: Made, task: str) -> dict[str, Any] | None:
    own: dict[str, Any] = {"id": made.id, "split": made.split, "text": made.text, "language": made.language}
    if task == "activation":
        return own | {"value": made.activation}
    return None if made.mood is None else own | {"label": made.mood}


def write_clip(path: Path, made: Made, photograph: np.ndarray) -> None:
    """One clip, seen whole or not at all: H.264 and AAC."""
    sound, rate = spoken(made)
    frames = max(FPS, round(len(sound) / rate * FPS))
    pyav, temporary = av(), path.with_suffix(".tmp.mp4")
    with pyav.open(str(temporary), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "20"})
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        audio = container.add_stream("aac", rate=rate, layout="mono")
        for picture in pictures(made, photograph, frames):
            container.mux(video.encode(pyav.VideoFrame.from_ndarray(picture, format="rgb24")))
        frame = pyav.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    temporary.replace(path)


def spoken(made: Made) -> tuple[np.ndarray, int]:
    """Its voice: float32 ``[n]`` in -1 to 1, and samples a second.

    Raises:
        EgmfError: espeak-ng does not speak.
    """
    command = ["espeak-ng", "-v", made.voice, "-p", str(made.pitch), "-s", str(made.speed), "-a", str(made.loudness)]
    # Words through standard input: nothing of them is an option.
    done = subprocess.run([*command, "--stdout"], input=made.text.encode(), capture_output=True, check=False)
    if done.returncode or not done.stdout.startswith(b"RIFF"):
        reason = " ".join(done.stderr.decode(errors="replace").split())[:200] or f"code {done.returncode}"
        raise EgmfError(f"egmf clips: espeak-ng did not speak with {made.voice}: {reason}")
    rate = int.from_bytes(done.stdout[24:28], "little")
    # The lengths in its header are of a stream that never ends.
    return np.frombuffer(done.stdout[44 : 44 + (len(done.stdout) - 44) // 2 * 2], "<i2").astype(
        np.float32
    ) / 32768, rate


def pictures(made: Made, photograph: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Its face: ``count`` pictures, uint8 RGB ``[height, width, 3]``."""
    import cv2

    random = np.random.default_rng(made.seed)
    side = 1 if random.random() < 0.5 else -1
    roll = side * random.uniform(14, 24) if made.tilted else random.uniform(-4, 4)
    light = random.uniform(0.45, 0.65) if made.tilted else random.uniform(0.9, 1.1)
    scale = random.uniform(0.5, 0.62) * SIZE[1] / FACE_SIZE
    start, drift = random.uniform(-0.06, 0.06, 2), random.uniform(-0.08, 0.08, 2)
    for number in range(count):
        share = number / max(count - 1, 1)
        turned = roll + 2 * np.sin(6 * share)
        matrix: Any = cv2.getRotationMatrix2D(FACE_AT, turned, scale)
        at = np.array(SIZE) * (0.5 + start + drift * share)
        matrix[:, 2] += at - np.array(FACE_AT)
        picture = cv2.warpAffine(photograph, matrix, SIZE, borderMode=cv2.BORDER_REFLECT)
        noisy = picture.astype(np.float32) * light + random.normal(0, 2, picture.shape)
        yield np.clip(noisy, 0, 255).astype(np.uint8)
