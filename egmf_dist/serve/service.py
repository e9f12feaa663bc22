"""What answers: the model in its thread, clips in processes of their own, a bounded queue before both.

Nothing here knows HTTP; :mod:`egmf_dist.serve.app` does.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile

from egmf_dist.errors import EgmfError
from egmf_dist.inference.clip import ClipFeatures
from egmf_dist.inference.model import Model, load
from egmf_dist.inference.predict import row_of
from egmf_dist.inference.utterance import Answer, Utterance
from egmf_dist.serve.answer import MOMENTS, explained, gates_by_time, shown, variants
from egmf_dist.serve.batching import Batcher
from egmf_dist.serve.metrics import Metrics
from egmf_dist.serve.question import Question
from egmf_dist.serve.settings import FRAMES, UPLOADS_A_PLACE, RefusedError, Serving
from egmf_media.batch.standing import Extracted, Recipe, Standing
from egmf_media.errors import AbsentError, MediaError
from egmf_media.preview import Preview
from egmf_media.synthetic import write_clip
from egmf_shards import CLASSIFICATION, Sample
from egmf_shards.importers.repairs import shape_without_axes_of_1

EXAMPLE_SECONDS, EXAMPLE_SIZE = 3.0, (320, 240)
EXAMPLE_WORDS = {"en": "I did not expect that.", "zh": "我没有想到。"}
_PLACE = "egmf-serve-"
log = logging.getLogger("egmf.serve")


class Service:
    """A model that is asked by many at once.

    Args:
        model: that answers; its thread alone touches it from now on.
        serving: bounds.

    Raises:
        EgmfError: its features cannot be extracted here, or a bound cannot be meant.
        MediaError: processes for clips cannot be begun.
    """

    def __init__(self, model: Model, serving: Serving) -> None:
        serving.check()
        self.model, self.serving, self.metrics = model, serving, Metrics()
        self.stopping = False
        self.running = 0
        """Requests that are not answered yet."""
        self._taken = self._uploading = 0
        self._mean = 1.0
        self._folder = tempfile.TemporaryDirectory(prefix=_PLACE)
        self.folder = Path(self._folder.name)
        self._standing: Standing | None = None
        try:
            seconds = max(0.5, min(EXAMPLE_SECONDS, 0.9 * serving.max_seconds))
            self.example = write_clip(self.folder / "example.mp4", seconds, EXAMPLE_SIZE).read_bytes()
            self.why_no_clips = self._begin_decoders()
            self._size = size = serving.batch or model.batch_size
            self._batcher = Batcher(lambda samples: model.answer(samples, size), size, self.metrics.batch.observe)
        except BaseException:
            self.close()
            raise
        self._threads = ThreadPoolExecutor(serving.decoders, "egmf-decode")
        self.rates = {key.rpartition("_")[0]: float(made["rate"]) for key, made in model.specifications.items()}

    @classmethod
    def open(cls, path: str | Path, serving: Serving) -> Service:
        """The service of a run, or of a folder that ``egmf export`` wrote; it has answered once when it is there.

        Raises:
            EgmfError, MediaError: as the class, and the model cannot be loaded.
        """
        serving.check()
        service = cls(load(path, backbone=serving.backbone), serving)
        try:
            service.warm()
        except BaseException:
            service.close()
            raise
        return service

    def _begin_decoders(self) -> str:
        """Why no clip can be taken; empty where one can."""
        try:
            plan = self.model.clips.plan()
            if not plan:
                self.model.clips.wanted(Utterance("a"))
        except EgmfError as error:
            if self.serving.transcribe is not None:
                raise
            return str(error)
        limits = self.serving.limits
        recipe = Recipe(plan, limits, self.serving.max_memory, self.folder / "example.mp4", self.serving.transcribe)
        self._standing = Standing(recipe, self.serving.decoders)
        return ""

    def warm(self) -> None:
        """Answer once, so that how answers are scored is chosen and the first who asks need not wait."""
        language = self.model.languages[0]
        utterance = Utterance(EXAMPLE_WORDS.get(language, "..."), language=language)
        self._batcher.submit(self.model.samples(utterance, 0)).result()

    def close(self) -> None:
        """End processes and thread, and remove what lies in the folder."""
        if self._standing is not None:
            self._standing.close()
        if hasattr(self, "_batcher"):
            self._batcher.close()
        if hasattr(self, "_threads"):
            self._threads.shutdown(wait=False, cancel_futures=True)
        self._folder.cleanup()

    def about(self) -> dict[str, Any]:
        """What a page must know: tasks, languages, streams, bounds."""
        model = self.model
        return {
            "tasks": {
                name: {
                    "kind": task.kind,
                    "languages": list(task.languages),
                    "questions": dict(task.questions),
                    **({} if task.kind == CLASSIFICATION else {"low": task.low, "high": task.high}),
                }
                for name, task in model.tasks.items()
            },
            "languages": list(model.languages),
            "streams": {name: list(widths) for name, widths in model.streams.items()},
            "made_by": {key: f"{made['extractor']} {made['version']} ({made['sha256'][:12]})"
                        for key, made in model.specifications.items()},
            "model": {name: model.about[name] for name in ("trained", "seed") if name in model.about},
            "clips": not self.why_no_clips,
            "why_no_clips": self.why_no_clips,
            "transcribes": self.serving.transcribe is not None,
            "max_bytes": self.serving.max_bytes,
            "max_seconds": self.serving.max_seconds,
            "example_words": EXAMPLE_WORDS,
        }  # fmt: skip

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """A body comes in.

        Raises:
            RefusedError: too many do already, or the queue is full, so that it would come in for nothing.
        """
        if self._taken >= self.serving.max_queue or self._uploading >= UPLOADS_A_PLACE * self.serving.max_queue:
            raise self._busy()
        self._uploading += 1
        try:
            yield
        finally:
            self._uploading -= 1

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place of the queue.

        Raises:
            RefusedError: all are taken.
        """
        if self._taken >= self.serving.max_queue:
            raise self._busy()
        self._taken += 1
        self.metrics.queue.set(self._taken)
        begin = time.monotonic()
        try:
            yield
        finally:
            self._taken -= 1
            self.metrics.queue.set(self._taken)
            self._mean += 0.1 * (time.monotonic() - begin - self._mean)

    def _busy(self) -> RefusedError:
        retry = min(60, max(1, math.ceil(self._mean)))
        return RefusedError(429, f"{self.serving.max_queue} utterances wait already; come again in {retry} s", retry)

    async def answer(self, question: Question) -> dict[str, Any]:
        """The row of one question.

        Raises:
            EgmfError: the utterance or its clip cannot be used.
            RefusedError: the queue is full.
        """
        with self.place():
            return await self._answer(question)

    async def answer_lines(self, asked: Sequence[Question | str]) -> list[dict[str, Any]]:
        """A row for each line, with an ``error`` where there is no answer; together they take one place.

        Raises:
            RefusedError: the queue is full.
        """
        rows: list[dict[str, Any]] = []
        with self.place():
            # A batch at a time, so that others' questions come in between.
            for first in range(0, len(asked), self._size):
                rows += await asyncio.gather(*map(self._row, asked[first : first + self._size], count(first)))
        return rows

    async def _row(self, asked: Question | str, place: int) -> dict[str, Any]:
        if isinstance(asked, str):
            return {"id": place, "error": asked}
        try:
            return await self._answer(asked)
        except EgmfError as error:
            return {"id": asked.utterance.id, "error": str(error)}
        except RefusedError:
            raise
        except Exception as error:  # one line's, not the whole body's
            log.error("line %s of a body failed", place, exc_info=error)
            return {"id": asked.utterance.id, "error": "the server failed at this line; its log says why"}

    async def _answer(self, question: Question) -> dict[str, Any]:
        extracted, clip = None, None
        self.model.check_tasks(question.tasks)
        self._check_frames(question.utterance)
        if question.clip is not None:
            extracted, clip = await self._extract(question)
        # Words may be long and features wide: checking them is not done between other people's requests.
        samples = await asyncio.to_thread(self.model.samples, question.utterance, 0, question.tasks, extracted)
        if question.explain:
            return await self._explain(question.utterance.id, samples, clip)
        answers, _ = await asyncio.wrap_future(self._batcher.submit(samples))
        return row_of(question.utterance.id, answers)

    def _check_frames(self, utterance: Utterance) -> None:
        """Refuse more frames than the longest clip would have: a model without a small ``model.max_stream_tokens``
        attends over all of them, in memory of their square."""
        for stream, array in utterance.features.items():
            rate = self.rates.get(stream)
            most = FRAMES if rate is None else math.ceil(self.serving.max_seconds * rate) + 1
            frames = _frames(array)
            if frames > most:
                raise EgmfError(f"has {frames} frames of {stream[:40]}; at most {most} are taken")

    async def transcribe(self, upload: UploadFile) -> dict[str, str]:
        """``text``, ``language`` and ``model`` of what is said in a clip; without words the ``reason``.

        Raises:
            EgmfError: the clip cannot be used.
            RefusedError: the queue is full, or nothing here transcribes.
        """
        standing = self._standing
        if standing is None or self.serving.transcribe is None:
            raise RefusedError(404, "nothing transcribes here: egmf serve --transcribe MODEL")
        with self.place():
            async with self._lying(upload) as path:
                loop = asyncio.get_running_loop()
                try:
                    text, language, model = await loop.run_in_executor(self._threads, standing.transcribe, path)
                except AbsentError as error:
                    return {"text": "", "reason": str(error)}
                except MediaError as error:
                    raise EgmfError(f"the clip {error}") from error
        return {"text": text, "language": language, "model": model}

    async def _extract(self, question: Question) -> tuple[ClipFeatures, Preview | None]:
        standing = self._standing
        if standing is None:
            raise EgmfError(self.why_no_clips)
        assert question.clip is not None
        wanted = self.model.clips.wanted(question.utterance)
        begin = time.monotonic()
        async with self._lying(question.clip) as path:
            loop = asyncio.get_running_loop()
            show = MOMENTS if question.explain else 0
            try:
                found: Extracted = await loop.run_in_executor(self._threads, standing.extract, path, wanted, show)
            except MediaError as error:
                raise RefusedError(503, str(error), 1) from error
        self.metrics.decode.observe(time.monotonic() - begin)
        for stream, outcome in found.outcomes.items():
            self.metrics.streams.labels(stream, outcome.status).inc()
        return self.model.clips.found("the clip", question.utterance, found.outcomes), found.preview

    @asynccontextmanager
    async def _lying(self, upload: UploadFile) -> AsyncIterator[Path]:
        """An upload as a file of a name of ours, for as long as a process reads it."""
        path = self.folder / f"{secrets.token_hex(16)}.clip"
        copying = asyncio.ensure_future(asyncio.to_thread(_copied, upload, path))
        try:
            await asyncio.shield(copying)
            yield path
        finally:
            await asyncio.wait({copying})  # given up meanwhile, it would make the file when that was removed
            path.unlink(missing_ok=True)

    async def _explain(self, name: Any, samples: list[Sample], clip: Preview | None) -> dict[str, Any]:
        """A row with more: ``explained`` by task, ``gates`` by stream, ``clip``."""
        tried = [variants(sample) for sample in samples]
        every = [*samples, *(sample for own in tried for _, _, sample in own)]
        answers, gates = await asyncio.wrap_future(self._batcher.submit(every, lambda: self.model.gates(samples[0])))
        row = row_of(name, answers[: len(samples)])
        others: Iterator[Answer] = iter(answers[len(samples) :])
        row["explained"] = {
            sample.task: explained(whole, [(way, modality, next(others)) for way, modality, _ in own])
            for sample, whole, own in zip(samples, answers, tried, strict=False)
        }
        row["gates"] = gates_by_time(gates, samples[0], self.rates)
        row["clip"] = None if clip is None else shown(clip)
        return row


def _copied(upload: UploadFile, path: Path) -> None:
    upload.file.seek(0)
    with open(path, "xb") as file:
        shutil.copyfileobj(upload.file, file, 1 << 20)


def _frames(array: Any) -> int:
    """How many frames there are in lists that are to become an array, axes of 1 aside; one that is nested otherwise in
    places is refused as no array later."""
    shape: list[int] = []
    while isinstance(array, list):
        shape.append(len(array))
        array = array[0] if array else None
    shape = [*shape_without_axes_of_1(shape)]
    return shape[0] if len(shape) > 1 else 1
