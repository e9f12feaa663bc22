"""A trained model from Python: ``load(FOLDER).predict([...])``.

Needs torch, transformers, PEFT and safetensors, and neither DeepSpeed nor Ray nor a reader of shards.
"""

from __future__ import annotations

import html
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from egmf_dist import distributed
from egmf_dist.build import build_egmf, read_backbone
from egmf_dist.errors import EgmfError
from egmf_dist.inference.clip import ClipFeatures, ClipReader, check_files
from egmf_dist.inference.explain import STEPS, Reading, explain
from egmf_dist.inference.explanation import Explanation
from egmf_dist.inference.portable import Portable, is_portable, load_weights, read_portable
from egmf_dist.inference.predictions import calibrations_of, predictions
from egmf_dist.inference.scorer import Scorer, choose_scorer, score
from egmf_dist.inference.utterance import Answer, Utterance, answer_of, as_samples, as_utterance
from egmf_dist.metrics.calibration import Calibration
from egmf_dist.model.precision import cast, dtype_of
from egmf_shards import CLASSIFICATION, Sample

RUN_SETTINGS = "config.yaml"
"""A folder with this file is a run's."""
Asked = str | Mapping[str, Any] | Utterance


class Model:
    """A trained EGMF that answers its tasks' questions about utterances.

    Attributes:
        tasks: its questions by name (:class:`egmf_shards.Task`): legal answers, languages.
        languages: in which they can be asked.
        streams: the feature streams it can use, and how wide each may be; none of them is needed.
        specifications: by feature input how its features were made in training, where that is known.
        device: where it computes.
        batch_size: samples at once, as it was evaluated.
        clips: what makes features of recordings for it (:class:`egmf_dist.inference.clip.ClipReader`).
        about: where it comes from: step, score, seed, the backbone's identity.
    """

    def __init__(self, portable: Portable, device: torch.device, dtype: torch.dtype) -> None:
        config = portable.config
        self.tasks, self.languages = dict(portable.data.tasks), list(portable.data.languages)
        self.streams = {name: tuple(widths) for name, widths in portable.data.streams.items()}
        self.specifications = dict(portable.data.specifications)
        self.clips = ClipReader(self.specifications, self.streams)
        self.device, self.about = device, dict(portable.description)
        self._modalities = portable.data.modalities
        self._evaluation = config.evaluation
        self._calibrations = calibrations_of(portable.description)
        self.batch_size = config.evaluation.batch_size
        self._capabilities, self._collator = read_backbone(config, portable.data)
        with torch.random.fork_rng():  # the caller's random numbers are not ours to move
            self._model = build_egmf(config, self._capabilities, portable.data)
        load_weights(self._model, portable)
        cast(self._model, dtype)
        self._model = self._model.to(device).eval()
        self._scorer: Scorer | None = None

    def predict(
        self,
        utterances: Asked | Iterable[Asked] = (),
        *,
        clip: str | Path | None = None,
        tasks: Sequence[str] | None = None,
        batch_size: int | None = None,
    ) -> list[Answer]:
        """Answer every question about every utterance, in their order.

        Args:
            utterances: texts, mappings of :class:`Utterance`'s fields (``{"text": ..., "speaker": ..., "context":
                [("Ross", "Hi!")], "features": {"audio": "a.npy"}}``), or :class:`Utterance`; one or several. A mapping
                may name a ``clip``.
            clip: a recording of the one utterance, or of nothing that is said in words: features are extracted from
                it as they were for training.
            tasks: which questions; None for all that are asked in the utterance's language.
            batch_size: samples at once; None: as the model was evaluated.

        Raises:
            EgmfError: an utterance cannot be used; names it.
        """
        if clip is not None:
            utterances = [_with_clip(utterances, clip)]
        if isinstance(utterances, str | Mapping | Utterance):
            utterances = [utterances]
        return list(self.stream(utterances, tasks=tasks, batch_size=batch_size))

    def stream(
        self, utterances: Iterable[Asked], *, tasks: Sequence[str] | None = None, batch_size: int | None = None
    ) -> Iterator[Answer]:
        """The same one after another, a batch of utterances in memory at a time."""
        self.check_tasks(tasks)
        size = self.batch_size if batch_size is None else batch_size
        if size < 1:
            raise EgmfError(f"batch_size is {size}; it must be 1 or more")
        waiting: list[Sample] = []
        for number, given in enumerate(utterances):
            waiting += self.samples(as_utterance(given, number), number, tasks)
            while len(waiting) >= size:
                yield from self.answer(waiting[:size], size)
                del waiting[:size]
        yield from self.answer(waiting, size)

    def check_tasks(self, tasks: Sequence[str] | None) -> None:
        """Refuse a question that the model does not know.

        Raises:
            EgmfError: names it.
        """
        unknown = [name for name in tasks or () if name not in self.tasks]
        if unknown:
            raise EgmfError(f"the model has no task {unknown[0]!r}; it has {', '.join(self.tasks)}")

    def samples(
        self,
        utterance: Utterance,
        number: int,
        tasks: Sequence[str] | None = None,
        extracted: ClipFeatures | None = None,
    ) -> list[Sample]:
        """An utterance as one sample for each question; ``number`` names it where it has no id.

        ``extracted`` is what another process has made of its clip already (``clips.found``).

        Raises:
            EgmfError: it cannot be used.
        """
        chosen = {name: task for name, task in self.tasks.items() if tasks is None or name in tasks}
        check_files(utterance, self.specifications, f"utterance {utterance.id or number}")
        if utterance.clip is None and extracted is None:
            return as_samples(utterance, number, chosen, self.languages, self.streams)
        found = extracted or self.clips.read(Path(utterance.clip or ""), utterance)
        plain = as_samples(replace(utterance, features=found.features), number, chosen, self.languages, self.streams)
        return [found.noted(sample) for sample in plain]

    def answer(self, samples: Sequence[Sample], batch_size: int | None = None) -> list[Answer]:
        """The answers to samples of :meth:`samples`, in their order."""
        size = batch_size or self.batch_size
        batches = (samples[first : first + size] for first in range(0, len(samples), size))
        with distributed.alone():  # inside a group, too: nobody else answers these
            return [answer for batch in batches for answer in self._answers(batch)]

    def explain(self, utterance: Asked, task: str | None = None, *, steps: int = STEPS) -> Explanation:
        """Why one question about one utterance is answered so.

        It takes ``steps`` backward passes and a prediction for each modality; the model is not changed.

        Args:
            utterance: see :meth:`predict`.
            task: the question; None: the first that is asked in the utterance's language.
            steps: of integrated gradients; with more the attributions' sum is nearer to what they explain
                (:attr:`egmf_dist.inference.explanation.Explanation.completeness_error`).

        Raises:
            EgmfError: the utterance cannot be used, or there is no such task.
        """
        tasks = None if task is None else [task]
        self.check_tasks(tasks)
        return self.explain_sample(self.samples(as_utterance(utterance, 0), 0, tasks)[0], steps)

    def explain_sample(self, sample: Sample, steps: int = STEPS) -> Explanation:
        """The same of a sample of :meth:`samples`."""
        if self._scorer is None:
            self._scorer = self._choose([sample])
        with torch.inference_mode(False):
            calibration = self._calibrations.get(sample.task, Calibration())
            return explain(self.answer, self._model, self._scorer, sample, steps, calibration.temperature)

    def gates(self, sample: Sample) -> dict[str, dict[str, dict[str, np.ndarray]]]:
        """What the fusion says of each token of a sample of :meth:`samples`: one pass, without the LLM.

        Returns:
            By modality that is there, level and column float32 ``[tokens]``, as
            :attr:`egmf_dist.inference.explanation.Modality.gates`; empty for a model that does not fuse.
        """
        if self._scorer is None:
            self._scorer = self._choose([sample])
        with distributed.alone(), torch.no_grad():
            return Reading(self._model, self._scorer, sample).gates_by_modality()

    def _answers(self, samples: Sequence[Sample]) -> list[Answer]:
        if self._scorer is None:
            self._scorer = self._choose(samples)
        scores, cut = score(self._scorer, self._model, samples, [1.0] * len(samples), self.device)
        rows = predictions(samples, self.tasks, scores, self._model.diagnostics, cut)
        return [
            answer_of(row, sample, self.tasks[sample.task], self._modalities, self._calibrations.get(sample.task))
            for row, sample in zip(rows, samples, strict=True)
        ]

    def _choose(self, samples: Sequence[Sample]) -> Scorer:
        """By the longest text of each question among the first that are asked."""
        longest: dict[tuple[str, str], Sample] = {}
        for sample in samples:
            key = sample.task, sample.language
            if key not in longest or len(sample.text) > len(longest[key].text):
                longest[key] = sample
        chosen = choose_scorer(
            self._evaluation, self._model, self._capabilities, self._collator, [*longest.values()], device=self.device
        )
        return chosen.scorer

    def __repr__(self) -> str:
        lines = [f"EGMF on {self._capabilities.architecture}, {self.device}"]
        for name, task in self.tasks.items():
            legal = ", ".join(task.labels) if task.kind == CLASSIFICATION else f"{task.low} to {task.high}"
            lines.append(f"  {name} ({', '.join(task.languages)}): {legal}")
        streams = ", ".join(f"{name} {' or '.join(map(str, widths))}" for name, widths in self.streams.items())
        lines.append(f"  reads text{f' and {streams} numbers a frame' if streams else ''}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def _with_clip(utterances: Asked | Iterable[Asked], clip: str | Path) -> Utterance:
    """One utterance, or none in words, with its recording.

    Raises:
        EgmfError: there are several.
    """
    several = [utterances] if isinstance(utterances, str | Mapping | Utterance) else list(utterances)
    several = [one for one in several if one != ""]
    if len(several) > 1:
        raise EgmfError("predict: clip is a recording of one utterance; several name theirs, as {'clip': ...}")
    if several and not isinstance(several[0], str):
        return replace(as_utterance(several[0], 0), clip=clip)
    text = str(several[0]) if several else ""
    return as_utterance(Utterance(text, clip=clip, id=Path(clip).stem), 0)


def load(
    folder: str | Path,
    *,
    backbone: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    trust_code: bool = False,
) -> Model:
    """A trained model out of a folder that ``egmf export`` wrote, or a run's best adapter.

    Args:
        folder: that, or the run's.
        backbone: where the LLM lies now; None: where it lay, or inside the folder.
        device: None: a GPU where there is one.
        dtype: None: what it was trained in.
        trust_code: code that the folder names may run (modules of one's own, an LLM's own files); look at it before.

    Raises:
        EgmfError: the folder is none or damaged, the LLM is another than it was trained with, or code would run that
            nobody trusts.
    """
    folder = Path(folder)
    if not is_portable(folder) and (folder / RUN_SETTINGS).is_file():
        from egmf_dist.inference.export import export
        from egmf_dist.run.folder import Run

        with tempfile.TemporaryDirectory() as temporary:
            whole = Path(temporary, "model")
            export(Run(folder), whole, backbone=backbone)
            return load(whole, backbone=backbone, device=device, dtype=dtype, trust_code=trust_code)
    portable = read_portable(folder, backbone, trust_code)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Model(portable, chosen, dtype or dtype_of(portable.config.training.precision))
