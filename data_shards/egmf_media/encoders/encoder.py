"""``encoder``: hidden states of any Hugging Face encoder of speech or pictures, averaged to a rate.

Computed on the CPU in fp32 with one thread, so that training and use are the same bits. The last number of a frame says
what share of it was heard, or whether a picture was seen; a frame of neither is zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from egmf_media.decode.container import DECODING
from egmf_media.decode.pictures import read_pictures
from egmf_media.decode.sound import RATE, Sound, read_sound
from egmf_media.encoders.model import EncoderModel, open_model
from egmf_media.errors import AbsentError, MediaError
from egmf_media.limits import Limits
from egmf_media.messages import one_line
from egmf_media.specification import PICTURES, SOUND, Specification
from egmf_media.vision.face import LONGEST, Face, one_thread
from egmf_media.weights import DETECTOR, missing

VERSION = 1
CHUNK = 30
"""Seconds of sound that are encoded together: what Whisper reads."""
MARGIN = 1.5
"""A face's crop, by the longer side of its box."""


class Encoder:
    """The extractor.

    Args:
        model: a folder in Hugging Face format, or a name on the hub.
        layers: which hidden states are averaged; -1 is the last.
        rate: frames a second; None: 10 of sound, 5 of pictures.
        crop: of pictures, ``face`` (the largest) or ``frame``.
        pooling: of a picture's tokens, ``mean`` or ``first``.

    Raises:
        MediaError: it is no encoder, or a setting does not fit it.
    """

    def __init__(
        self,
        model: str,
        layers: Sequence[int] = (-1,),
        rate: float | None = None,
        crop: str = "face",
        pooling: str = "mean",
    ) -> None:
        self.model: EncoderModel = open_model(model)
        sound = self.model.reads == SOUND
        self.rate = float(rate or (10.0 if sound else 5.0))
        if not 0 < self.rate <= 50:
            raise MediaError(f"encoder: rate is {rate}; frames a second, above 0 and at most 50, are needed")
        count = self.model.layers
        wrong = [n for n in layers if isinstance(n, bool) or not isinstance(n, int) or not -count <= n < count]
        if not layers or wrong:
            raise MediaError(f"encoder: layers are {list(layers)}; numbers from {-count} to {count - 1} are needed")
        if crop not in ("face", "frame") or pooling not in ("mean", "first"):
            raise MediaError(f"encoder: crop is {crop!r} and pooling {pooling!r}; face or frame, mean or first")
        self.layers, self.crop, self.pooling = sorted({n % count for n in layers}), crop, pooling
        parameters: dict[str, Any] = {"model_type": self.model.kind, "layers": self.layers}
        weights = dict(self.model.weights)
        if sound:
            parameters |= {"chunk": CHUNK, "sample_rate": RATE}
        else:
            parameters |= {"crop": crop, "pooling": pooling, "size": self.model.size, "margin": MARGIN}
            weights |= {DETECTOR.name: DETECTOR.sha256} if crop == "face" else {}
        self.specification = Specification(
            "encoder", VERSION, self.model.reads, self.rate, self.model.width + 1, DECODING, parameters, weights, model
        )

    @property
    def missing(self) -> str:
        """Why it cannot be used here."""
        return missing([DETECTOR]) if self.model.reads == PICTURES and self.crop == "face" else ""

    @cached_property
    def _encoder(self) -> Any:
        import torch
        from transformers import AutoModel

        try:
            whole = AutoModel.from_pretrained(
                str(self.model.folder), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
        except Exception as error:  # of whatever kind a damaged file makes transformers raise
            raise MediaError(f"{self.model.folder}: cannot be loaded: {one_line(error)}") from error
        part = whole.get_encoder() if self.model.kind == "whisper" else getattr(whole, "vision_model", whole)
        return part.eval()

    @cached_property
    def _prepare(self) -> Any:
        from transformers import AutoFeatureExtractor

        return AutoFeatureExtractor.from_pretrained(str(self.model.folder))

    @cached_property
    def _face(self) -> Face:
        return Face()

    def extract(self, path: Path, limits: Limits, counts: dict[str, Any]) -> np.ndarray:
        """float32 ``[frames, dim]``; ``counts`` is filled.

        Raises:
            AbsentError: the clip does not have the modality, or no frame a face.
            MediaError: it cannot be read, or the encoder cannot be loaded.
        """
        with one_torch_thread():
            if self.model.reads == SOUND:
                sound = read_sound(path, limits)
                counts |= sound.counts
                return self._of_sound(sound)
            return self._of_pictures(path, limits, counts)

    def _of_sound(self, sound: Sound) -> np.ndarray:
        rows = max(1, round(len(sound.samples) / RATE * self.rate))
        total, number = np.zeros((rows, self.model.width)), np.zeros(rows)
        for first in range(0, len(sound.samples), CHUNK * RATE):
            x = sound.samples[first : first + CHUNK * RATE]
            states = self._states_of_sound(np.pad(x, (0, max(0, RATE // 10 - len(x)))))
            # Whisper's input is padded to its full length; of others the frames are spread over what there is.
            spread = CHUNK if self.model.kind == "whisper" else max(len(x), RATE // 10) / RATE
            middle = (np.arange(len(states)) + 0.5) / len(states) * spread
            place = ((first / RATE + middle) * self.rate).astype(int)
            kept = (middle < max(len(x) / RATE, 1 / self.rate)) & (place < rows)
            place = place[kept]
            np.add.at(total, place, states[kept])
            np.add.at(number, place, 1)
        heard = self._heard(sound, rows)
        means = total / np.maximum(number, 1)[:, None]
        return np.column_stack([np.where(heard[:, None] > 0, means, 0), heard]).astype(np.float32)

    def _heard(self, sound: Sound, rows: int) -> np.ndarray:
        edges = np.minimum(np.round(np.arange(rows + 1) * RATE / self.rate).astype(int), len(sound.samples))
        there = np.zeros(len(sound.samples) + 1)
        for first, last in sound.heard:
            there[first + 1 : last + 1] = 1
        summed = np.cumsum(there)
        return np.asarray((summed[edges[1:]] - summed[edges[:-1]]) / np.maximum(np.diff(edges), 1))

    def _states_of_sound(self, x: np.ndarray) -> np.ndarray:
        import torch

        given = self._prepare(x, sampling_rate=RATE, return_tensors="pt")
        name = "input_features" if "input_features" in given else "input_values"
        with torch.inference_mode():
            found = self._encoder(given[name], output_hidden_states=True)
            return self._chosen(found.hidden_states)[0].numpy()

    def _chosen(self, states: Any) -> Any:
        return sum(states[n] for n in self.layers) / len(self.layers)

    def _of_pictures(self, path: Path, limits: Limits, counts: dict[str, Any]) -> np.ndarray:
        counts |= {"frames": 0, "frames_with_face": 0, "frames_with_several": 0}
        nothing = np.zeros(self.model.width + 1, np.float32)
        rows: list[np.ndarray] = []
        row = nothing
        with one_thread():
            for picture in read_pictures(path, limits, self.rate, LONGEST, counts):
                if picture.image is None:
                    row = nothing
                elif not picture.same:
                    image = self._image(picture.image, counts)
                    row = nothing if image is None else np.append(self._state_of_picture(image), np.float32(1))
                rows.append(row)
                counts["frames"] += 1
                counts["frames_with_face"] += self.crop == "face" and bool(row[-1])
        if not any(own[-1] for own in rows):
            raise AbsentError("no face in any frame" if self.crop == "face" else "no picture", counts)
        return np.stack(rows)

    def _image(self, image: np.ndarray, counts: dict[str, Any]) -> np.ndarray | None:
        """A picture as the encoder wants it; float32 RGB ``[3, size, size]``."""
        import cv2

        side = self.model.size
        if self.crop == "face":
            found = self._face.find(image)
            if found is None:
                return None
            counts["frames_with_several"] += found.count > 1
            middle, longer = found.box[:2] + found.box[2:] / 2, float(found.box[2:].max()) * MARGIN
        else:
            height, width = image.shape[:2]
            middle, longer = np.array([width / 2, height / 2]), float(min(width, height))
        native = max(1, round(longer))
        matrix: Any = np.array([[1, 0, native / 2 - middle[0]], [0, 1, native / 2 - middle[1]]], np.float64)
        crop = cv2.warpAffine(image, matrix, (native, native))
        how = cv2.INTER_AREA if native > side else cv2.INTER_LINEAR
        crop = cv2.resize(crop, (side, side), interpolation=how)[..., ::-1].astype(np.float32) / 255
        said = self.model.preprocessing
        mean, deviation = (np.asarray(said.get(name, [0.5] * 3), np.float32) for name in ("image_mean", "image_std"))
        return np.ascontiguousarray(((crop - mean) / deviation).transpose(2, 0, 1), np.float32)

    def _state_of_picture(self, image: np.ndarray) -> np.ndarray:
        """Of one: a batch's size would change the last bits of its products."""
        import torch

        with torch.inference_mode():
            found = self._encoder(pixel_values=torch.from_numpy(image)[None], output_hidden_states=True)
            states = self._chosen(found.hidden_states)[0]
            return np.asarray((states[0] if self.pooling == "first" else states.mean(0)).numpy())


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch in one thread, so that its last bits do not hang on the machine; as it was afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
