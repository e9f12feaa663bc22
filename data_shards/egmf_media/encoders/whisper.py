"""A missing transcript, by any Whisper in Hugging Face format: what was said, in which language, by which model.

Refused on silence, and where the text repeats itself: what Whisper says where nobody speaks.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from egmf_media.decode.sound import RATE, read_sound
from egmf_media.encoders.encoder import CHUNK, one_torch_thread
from egmf_media.encoders.model import EncoderModel, open_model
from egmf_media.errors import AbsentError, MediaError
from egmf_media.limits import Limits
from egmf_media.messages import one_line

VERSION = 1
REPEATED = 2.4
"""Bytes of a text by those of its zlib compression, from which it repeats itself (Radford et al. 2022, section 4.5)."""


@dataclass(frozen=True)
class Transcript:
    """What was said."""

    text: str
    language: str
    """``en``, ``zh``, ...; empty where the model knows one language alone."""
    model: str
    """The name that was given, and the first digits of its files' hash."""


class Transcriber:
    """Clips to words, on the CPU, greedily, 30 seconds at a time.

    Args:
        name: a folder in Hugging Face format, or a name on the hub.

    Raises:
        MediaError: it is no Whisper, or not there.
    """

    def __init__(self, name: str) -> None:
        self.model: EncoderModel = open_model(name)
        if self.model.kind != "whisper":
            raise MediaError(f"{name}: is a {self.model.kind}; a Whisper is needed for transcripts")
        hashed = json.dumps([VERSION, dict(self.model.weights)], sort_keys=True).encode()
        self.sha256 = hashlib.sha256(hashed).hexdigest()
        self.name = f"{name} ({self.sha256[:12]})"

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        import torch
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        try:
            processor = WhisperProcessor.from_pretrained(str(self.model.folder))
            whisper = WhisperForConditionalGeneration.from_pretrained(
                str(self.model.folder), dtype=torch.float32, use_safetensors=True
            )
        except Exception as error:  # of whatever kind a damaged file makes transformers raise
            raise MediaError(f"{self.model.folder}: cannot be loaded: {one_line(error)}") from error
        whisper.generation_config.max_length = None  # max_new_tokens says it
        return processor, whisper.eval()

    def read(self, path: Path, limits: Limits) -> Transcript:
        """The words of a clip.

        Raises:
            AbsentError: there is no sound, it is silent, nothing was said, or the text repeats itself.
            MediaError: the clip or the model cannot be read.
        """
        sound = read_sound(path, limits)
        chunks = [sound.samples[first : first + CHUNK * RATE] for first in range(0, len(sound.samples), CHUNK * RATE)]
        with one_torch_thread():
            language = self._language(chunks[0])
            text = " ".join(filter(None, (self._words(chunk, language) for chunk in chunks)))
        if not text:
            raise AbsentError("nothing was said")
        data = text.encode()
        if len(data) / len(zlib.compress(data)) > REPEATED:
            raise AbsentError("its transcript repeats itself, as where nobody speaks")
        return Transcript(text, language, self.name)

    def _given(self, x: np.ndarray) -> Any:
        return self._parts[0](x, sampling_rate=RATE, return_tensors="pt").input_features

    def _language(self, x: np.ndarray) -> str:
        import torch

        processor, whisper = self._parts
        if not getattr(whisper.generation_config, "lang_to_id", None):
            return ""
        with torch.inference_mode():
            token = whisper.detect_language(self._given(x))
        return str(processor.tokenizer.convert_ids_to_tokens(token.tolist())[0]).strip("<|>")

    def _words(self, x: np.ndarray, language: str) -> str:
        import torch

        processor, whisper = self._parts
        how = {"language": language, "task": "transcribe"} if language else {}
        with torch.inference_mode():
            # Of its positions four are the prompt's: start, language, task, no timestamps.
            most = min(224, whisper.config.max_target_positions - 4)
            found = whisper.generate(
                self._given(x), do_sample=False, num_beams=1, max_new_tokens=most, return_timestamps=False, **how
            )
        return " ".join(str(processor.batch_decode(found, skip_special_tokens=True)[0]).split())
