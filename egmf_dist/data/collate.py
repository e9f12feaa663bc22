"""Samples to a :class:`RaggedBatch`: tokenise, pack, pad the prompt's columns.

A pure function of samples and settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import cast

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from egmf_dist.config import DataConfig
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.errors import EgmfError
from egmf_dist.tasks.answers import AnswerTree, TreeBatch
from egmf_dist.tasks.prompts import answer_index, render_answer, render_prompt
from egmf_shards.sample import FEATURE_MODALITIES, Sample, Turn
from egmf_shards.task import REGRESSION, Task


class Collator:
    """Turns a list of samples into one packed batch.

    Args:
        tokenizer: the backbone's; it must have an end-of-sequence token.
        tasks: the run's tasks by name; their order numbers them.
        languages: the run's languages; their order numbers them.
        dims: feature width of ``audio`` and ``vision``; 0 where the run has none.
        config: what enters the prompt and how long sequences may be.

    Raises:
        EgmfError: the tokenizer has no end-of-sequence token, or two legal answers tokenise alike.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tasks: Mapping[str, Task],
        languages: Sequence[str],
        dims: Mapping[str, int],
        config: DataConfig,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise EgmfError(
                "the backbone's tokenizer has no end-of-sequence token; EGMF trains the answer's end with it"
            )
        self.tokenizer = tokenizer
        self.tasks = dict(tasks)
        self.languages = list(languages)
        self.dims = dict(dims)
        self.config = config
        self.eos = int(tokenizer.eos_token_id)
        self._task_number = {name: i for i, name in enumerate(self.tasks)}
        self._encode = lru_cache(maxsize=65536)(self._encode_uncached)
        self._answers = {
            (name, language): [
                self._encode(render_answer(task, language, i)) for i in range(len(task.legal_answers(language)))
            ]
            for name, task in self.tasks.items()
            for language in task.languages
        }
        self._trees: dict[tuple[str, str], AnswerTree] = {}
        for (name, language), answers in self._answers.items():
            try:
                self._trees[name, language] = AnswerTree.build(answers)
            except ValueError as error:
                raise EgmfError(
                    f"task {name!r} in {language!r}: {error}; this backbone's tokenizer cannot tell them apart"
                ) from error

    def _encode_uncached(self, text: str) -> tuple[int, ...]:
        return (
            tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
            if text
            else ()
        )

    def _clip(self, text: str) -> str:
        ids = self._encode(text)
        limit = self.config.max_text_tokens
        if len(ids) <= limit:
            return text
        # decode gives a list of texts for a list of sequences only; this is one sequence.
        return cast(str, self.tokenizer.decode(list(ids[-limit:])))

    def _clipped(self, sample: Sample) -> Sample:
        values = dict(sample.__dict__)
        values["text"] = self._clip(sample.text)
        values["context"] = tuple(Turn(t.speaker, self._clip(t.text)) for t in sample.context)
        return Sample(**values)

    def _features(self, samples: Sequence[Sample], modality: str) -> list[np.ndarray]:
        dim = self.dims.get(modality, 0)
        out = []
        for sample in samples:
            frames = getattr(sample, modality)
            if frames is None:
                frames = np.zeros((0, dim), np.float32)
            elif frames.shape[1] != dim:
                raise EgmfError(f"sample {sample.id}: {modality} is {frames.shape[1]} wide; this run's is {dim}")
            out.append(average_down(frames, self.config.max_frames))
        return out

    def __call__(self, samples: Sequence[Sample], weights: Sequence[float], score: bool = False) -> RaggedBatch:
        """Pack ``samples``; with ``score`` the prefix trees of their legal answers come along.

        Raises:
            EgmfError: a sample's task, language or feature width is not the run's; names the sample.
        """
        for sample in samples:
            if sample.task not in self.tasks or (sample.task, sample.language) not in self._trees:
                raise EgmfError(
                    f"sample {sample.id}: task {sample.task!r} in {sample.language!r} is not one of this run's tasks"
                )
        samples = [self._clipped(s) for s in samples]
        tasks = [self.tasks[s.task] for s in samples]
        right = [answer_index(s, t) for s, t in zip(samples, tasks, strict=True)]

        text = [self._encode(s.text) for s in samples]
        features = {m: self._features(samples, m) for m in FEATURE_MODALITIES}
        lengths_BM = np.array(
            [[len(text[b]), *(len(features[m][b]) for m in FEATURE_MODALITIES)] for b in range(len(samples))]
        )
        order, position = sample_major(lengths_BM)

        prompts = [
            self._encode(render_prompt(s, t, self.config.context_turns)) for s, t in zip(samples, tasks, strict=True)
        ]
        targets = [(*self._answers[s.task, s.language][i], self.eos) for s, i in zip(samples, right, strict=True)]
        prompt_BL, prompt_mask_BL = pad(prompts, left=True)
        target_BA, target_mask_BA = pad(targets, left=False)
        return RaggedBatch(
            ids=[s.id for s in samples],
            weight_B=torch.tensor(weights, dtype=torch.float32),
            task_B=torch.tensor([self._task_number[s.task] for s in samples]),
            language_B=torch.tensor([self.languages.index(s.language) for s in samples]),
            answer_B=torch.tensor(right),
            value_B=torch.tensor(
                [float(s.value or 0.0) if t.kind == REGRESSION else 0.0 for s, t in zip(samples, tasks, strict=True)]
            ),
            text_ids=torch.tensor([i for ids in text for i in ids], dtype=torch.long),
            audio=torch.from_numpy(np.concatenate(features["audio"])),
            vision=torch.from_numpy(np.concatenate(features["vision"])),
            order_T=torch.from_numpy(order),
            cu_segments=torch.from_numpy(np.concatenate([[0], lengths_BM.reshape(-1).cumsum()]).astype(np.int32)),
            position_T=torch.from_numpy(position),
            joint_length=int(lengths_BM.sum(1).max()),
            prompt_BL=prompt_BL,
            prompt_mask_BL=prompt_mask_BL,
            target_BA=target_BA,
            target_mask_BA=target_mask_BA,
            tree=TreeBatch.stack([self._trees[s.task, s.language] for s in samples]) if score else None,
        )


def average_down(frames: np.ndarray, limit: int) -> np.ndarray:
    """At most ``limit`` frames: neighbours are averaged in equal groups. ``[frames, dim]`` float32 to the same."""
    if len(frames) <= limit:
        return np.ascontiguousarray(frames, dtype=np.float32)
    starts = np.linspace(0, len(frames), limit, endpoint=False).astype(np.int64)
    counts = np.diff(np.append(starts, len(frames)))
    return (np.add.reduceat(frames, starts, axis=0) / counts[:, None]).astype(np.float32)


def sample_major(lengths_BM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How modality-major tokens become sample-major.

    Args:
        lengths_BM: tokens of each (sample, modality) segment.

    Returns:
        Rows of the modality-major concatenation in sample-major order, and each token's place in its segment; both
        int64 ``[T]``.
    """
    modality_start = np.concatenate([[0], lengths_BM.sum(0).cumsum()[:-1]])
    start_BM = modality_start + lengths_BM.cumsum(0) - lengths_BM
    rows = [np.arange(s, s + n) for s, n in zip(start_BM.reshape(-1), lengths_BM.reshape(-1), strict=True)]
    places = [np.arange(n) for n in lengths_BM.reshape(-1)]
    return np.concatenate(rows).astype(np.int64), np.concatenate(places).astype(np.int64)


def pad(rows: Sequence[Sequence[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack id rows of different length, padded with 0: ids int64 and a bool mask, both ``[B, longest]``."""
    longest = max(len(r) for r in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for b, row in enumerate(rows):
        columns = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[b, columns] = torch.tensor(row, dtype=torch.long)
        mask[b, columns] = True
    return ids, mask
