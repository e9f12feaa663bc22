"""Samples to a :class:`RaggedBatch`: tokenise, standardise, pack.

A pure function of samples and settings; it can be sent to another process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from egmf_dist.config import Config
from egmf_dist.data.answers import AnswerTree, has_distances, most_answers
from egmf_dist.data.batch import RaggedBatch
from egmf_dist.data.others import OtherModalities, boundaries
from egmf_dist.data.prompt_ids import Limits, PromptEncoder, PromptIds
from egmf_dist.data.prompts import Piece, answer_index, answer_mark, prompt_pieces, render_answer
from egmf_dist.data.rows import Asked, Rows, nothing, one_a_row, pack
from egmf_dist.data.standardise import Standardisation
from egmf_dist.data.streams import Streams, inputs_of, modalities_of
from egmf_dist.errors import EgmfError
from egmf_shards import REGRESSION, FeatureInput, Sample, Task

MIN_ROOM = 8
"""A prompt must have room for its question and this many more tokens."""


class Spoken(NamedTuple):
    """Where one utterance stands among the tokens, by characters of the utterance.

    Of a tokenizer that knows no offsets every token is the whole utterance's.
    """

    prompt: np.ndarray
    """int64: which of the prompt's ids hold some of it."""
    prompt_places: np.ndarray
    """int64 ``[ids, 2]``: begin and end of what each of them holds."""
    text_places: np.ndarray
    """int64 ``[Tt, 2]``: the same of the text that the fusion reads."""


class Collator:
    """Turns a list of samples into one packed batch.

    Args:
        tokenizer: the backbone's.
        tasks: the run's tasks by name; their order numbers them.
        languages: the run's languages; their order numbers them.
        streams: the run's feature streams and their widths.
        config: its sections ``data`` and ``prompt``: what enters the prompt, how it is laid out and how long it may be;
            and ``objective.number``: which answers follow a regression's in training.
        limits: the backbone's.
        standardisations: by the key of each feature input how it is standardised; none where it is missing.

    Attributes:
        answers: per task and language every legal answer's token ids, in order.
        alone: each of them as a tree of its own.
        numbers: of the tasks whose legal answers are all read in training, in each language their tree.
        packed: several samples share a row of the LLM, which then takes a mask of four dimensions; right for a
            backbone that was seen to honour one. Else each has a row of its own.

    Raises:
        EgmfError: two legal answers tokenise alike, or a question does not fit the prompt's limit.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tasks: Mapping[str, Task],
        languages: Sequence[str],
        streams: Streams,
        config: Config,
        limits: Limits,
        standardisations: Mapping[str, Standardisation] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.tasks = dict(tasks)
        self.languages = list(languages)
        self.streams = {name: tuple(widths) for name, widths in streams.items()}
        self.inputs, modalities = inputs_of(streams), modalities_of(streams)
        self._modality_of = [0, *(modalities.index(own.stream) for own in self.inputs)]
        self._modalities = len(modalities)
        self.config = config
        self.limits = limits
        self.standardisations = dict(standardisations or {})
        self.packed = False
        self._task_number = {name: i for i, name in enumerate(self.tasks)}
        encoder = PromptEncoder(tokenizer, limits.vocabulary, config.data.max_text_tokens, 0)
        self.answers: dict[tuple[str, str], list[list[int]]] = {}
        self.numbers: dict[tuple[str, str], AnswerTree] = {}
        self._tree_bytes: dict[tuple[str, str], float] = {}
        for name, task in self.tasks.items():
            for language in task.languages:
                count = len(task.legal_answers(language))
                texts = [render_answer(task, language, i, limits.chat is None) for i in range(count)]
                mark = answer_mark(language) if limits.chat is None else limits.chat.opening
                self.answers[name, language] = [encoder.following(mark, text) for text in texts]
                try:
                    tree = AnswerTree.build(self.answers[name, language])
                except ValueError as error:
                    raise EgmfError(
                        f"task {name!r} in {language!r}: {error}; this backbone's tokenizer cannot tell them apart"
                    ) from error
                if has_distances(task, config.objective):
                    self.numbers[name, language] = tree
                    a_token = len("".join(texts).encode()) / sum(map(len, self.answers[name, language]))
                    self._tree_bytes[name, language] = a_token * len(tree.tokens)
        self._most_answers = most_answers(self.tasks.values())
        self.alone = {key: [AnswerTree.build([ids]) for ids in answers] for key, answers in self.answers.items()}
        limit = self._prompt_limit(encoder)
        apart = config.prompt.pseudo_tokens == "before_utterance"
        self._encoder = PromptEncoder(tokenizer, limits.vocabulary, config.data.max_text_tokens, limit, apart)

    def _prompt_limit(self, encoder: PromptEncoder) -> int:
        """The most tokens of a prompt, by the setting and by the positions that the longest answer leaves."""
        longest = max(len(ids) for answers in self.answers.values() for ids in answers)
        limit, reason = self.config.data.max_prompt_tokens, "data.max_prompt_tokens"
        if self.limits.columns is not None and self.limits.columns - longest < limit:
            limit, reason = self.limits.columns - longest, "the backbone's longest position"
        for name, task in self.tasks.items():
            for language in task.languages:
                empty = Sample("", "", language, name, "", "", ())
                pieces = prompt_pieces(empty, task, 0, marked=self.limits.chat is None)
                question = len(encoder.plain("".join(piece.text for piece in pieces)))
                if question + MIN_ROOM > limit:
                    raise EgmfError(
                        f"task {name!r} in {language!r}: its question takes {question} tokens, {reason} leaves "
                        f"{max(limit, 0)} for a prompt; at least {question + MIN_ROOM} are needed: raise it, shorten "
                        "the question, or take a backbone with more positions"
                    )
        return limit

    @property
    def prompt_limit(self) -> int:
        """The most tokens of a prompt."""
        return self._encoder.limit

    def _features(self, samples: Sequence[Sample], own: FeatureInput) -> list[np.ndarray]:
        known, out = self.standardisations.get(own.key), []
        for sample in samples:
            frames = sample.features.get(own.stream)
            if frames is None or frames.shape[1] != own.dim:
                frames = np.zeros((0, own.dim), np.float32)
            frames = average_down(frames, self.limits.stream_tokens)
            out.append(frames if known is None else known.apply(frames))
        return out

    def _check(self, sample: Sample) -> None:
        if sample.task not in self.tasks or (sample.task, sample.language) not in self.answers:
            raise EgmfError(
                f"sample {sample.id}: task {sample.task!r} in {sample.language!r} is not one of this run's tasks"
            )
        for stream, frames in sample.features.items():
            widths = self.streams.get(stream, ())
            if frames.shape[1] not in widths:
                wanted = " or ".join(map(str, widths)) or "none"
                raise EgmfError(f"sample {sample.id}: {stream} is {frames.shape[1]} wide; this run's is {wanted}")

    def prompt_bytes(self, sample: Sample) -> int:
        """Bytes of a sample's prompt in UTF-8: what its tokens are about in proportion to, in any language."""
        return sum(len(piece.text.encode()) for piece in self._pieces(sample))

    def row_bytes(self, sample: Sample) -> float:
        """What a training sample's tokens in the LLM's rows are about in proportion to: the bytes of its prompt, and of
        all legal numbers where they are read."""
        key, prompt = (sample.task, sample.language), self.prompt_bytes(sample)
        if key not in self.numbers:
            return prompt
        return prompt + self._tree_bytes[key] if self.packed else prompt * len(self.alone[key])

    def _pieces(self, sample: Sample) -> list[Piece]:
        """A sample's prompt in words, as the settings say."""
        stepped = self.config.prompt.context == "stepped"
        turns, marked = self.config.data.context_turns, self.limits.chat is None
        return prompt_pieces(sample, self.tasks[sample.task], turns, stepped, marked)

    def spoken(self, sample: Sample) -> Spoken:
        """Which tokens of a sample are its utterance's."""
        pieces = self._pieces(sample)
        text = next(number for number, piece in enumerate(pieces) if piece.kind == "text")
        first, length = sum(len(piece.text) for piece in pieces[:text]), len(pieces[text].text)
        places = self._encoder.placed(pieces)[1] - first
        # A token may hold the end of the speaker's name as well, or the line break behind the text.
        own = np.flatnonzero((places[:, 0] < length) & (np.maximum(places[:, 1], places[:, 0] + 1) > 0))
        found = Spoken(own, places[own].clip(0, length), self._encoder.text_places(sample.text))
        if not self.tokenizer.is_fast:
            for apart in found[1:]:
                apart[:] = 0, length
        return found

    def asked(self, prompt: PromptIds, source: int, answers: AnswerTree | None, owners: Sequence[int]) -> Asked:
        """A prompt with what may follow it, for :meth:`rows`; see :class:`egmf_dist.data.rows.Asked`."""
        context = (*self.limits.start, *prompt.ids[: prompt.before])
        return Asked(context, [*prompt.ids[prompt.before :], *self.limits.after], source, answers, owners)

    def rows(self, asked: Sequence[Asked], padding: int = 0) -> Rows:
        """Sequences in rows: packed, or one a row behind ``padding`` more columns of padding."""
        pseudo_tokens, eos = self.limits.pseudo_tokens, self.limits.eos
        if self.packed:
            return pack(asked, pseudo_tokens, eos)
        return one_a_row(asked, pseudo_tokens, eos, padding)

    def __call__(self, samples: Sequence[Sample], weights: Sequence[float]) -> RaggedBatch:
        """Pack ``samples`` and their right answers, or all legal numbers of a regression (``objective.number``).

        Raises:
            EgmfError: a sample's task, language, stream or feature width is not the run's, or it has no target; names
                the sample.
        """
        for sample in samples:
            if not sample.has_target:
                raise EgmfError(f"sample {sample.id}: has no target; a label or a value is needed here")
        batch = self.unanswered(samples, weights)
        tasks = [self.tasks[s.task] for s in samples]
        right = [answer_index(s, t) for s, t in zip(samples, tasks, strict=True)]
        values = [float(s.value or 0.0) if t.kind == REGRESSION else 0.0 for s, t in zip(samples, tasks, strict=True)]
        asked = [
            one
            for b, (prompt, s, i) in enumerate(zip(batch.prompts, samples, right, strict=True))
            for one in self._answered(prompt, b, (s.task, s.language), i)
        ]
        rows = self.rows(asked)
        tokens = batch.tokens + int((rows.end_RC > 0).sum())
        return batch._replace(answer_B=torch.tensor(right), value_B=torch.tensor(values), rows=rows, tokens=tokens)

    def _answered(self, prompt: PromptIds, b: int, key: tuple[str, str], right: int) -> list[Asked]:
        """A training sample's sequences, one but where all legal numbers are read by a backbone that takes no tree."""
        alone = self.alone[key]
        if not self.numbers:
            return [self.asked(prompt, b, alone[right], [b])]
        owners = range(b * self._most_answers, b * self._most_answers + len(alone))
        if key not in self.numbers:
            return [self.asked(prompt, b, alone[right], [owners[right]])]
        if self.packed:
            return [self.asked(prompt, b, self.numbers[key], owners)]
        return [self.asked(prompt, b, tree, [owner]) for tree, owner in zip(alone, owners, strict=True)]

    def unanswered(self, samples: Sequence[Sample], weights: Sequence[float]) -> RaggedBatch:
        """Pack ``samples`` with their prompts and without an answer, for a scorer that lays out all of them.

        Raises:
            EgmfError: see :meth:`__call__`; a target is not needed.
        """
        for sample in samples:
            self._check(sample)
        text = self._encoder.texts([s.text for s in samples])
        features = [self._features(samples, own) for own in self.inputs]
        inputs: list[list[Any]] = [text, *features]
        lengths_BI = np.array([[len(rows[b]) for rows in inputs] for b in range(len(samples))])
        # A sample has each stream in one width at most, and the widths of a stream are neighbours.
        order, position = sample_major(lengths_BI)
        lengths_BM = np.zeros((len(samples), self._modalities), lengths_BI.dtype)
        for modality, lengths_B in zip(self._modality_of, lengths_BI.T, strict=True):
            lengths_BM[:, modality] += lengths_B
        return RaggedBatch(
            ids=[s.id for s in samples],
            weight_B=torch.tensor(weights, dtype=torch.float32),
            task_B=torch.tensor([self._task_number[s.task] for s in samples]),
            language_B=torch.tensor([self.languages.index(s.language) for s in samples]),
            answer_B=torch.zeros(len(samples), dtype=torch.long),
            value_B=torch.zeros(len(samples)),
            text_ids=torch.tensor([i for ids in text for i in ids], dtype=torch.long),
            features=tuple(torch.from_numpy(np.concatenate(rows)) for rows in features),
            modalities=self._modalities,
            order_T=torch.from_numpy(order),
            cu_segments=boundaries(lengths_BM.flat),
            position_T=torch.from_numpy(position),
            joint_length=int(lengths_BM.sum(1).max()),
            others=OtherModalities.of(lengths_BM),
            prompts=self._encoder.prompts([self._pieces(sample) for sample in samples]),
            rows=nothing(),
            tokens=len(order),
        )


def average_down(frames: np.ndarray, limit: int) -> np.ndarray:
    """At most ``limit`` frames: neighbours are averaged in equal groups. ``[frames, dim]`` float32 to the same."""
    if len(frames) <= limit:
        return np.ascontiguousarray(frames, dtype=np.float32)
    starts = np.linspace(0, len(frames), limit, endpoint=False).astype(np.int64)
    counts = np.diff(np.append(starts, len(frames)))
    return (np.add.reduceat(frames, starts, axis=0) / counts[:, None]).astype(np.float32)


def sample_major(lengths_BI: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How input-major tokens (all of the text, all of the first feature input, ...) become sample-major.

    Args:
        lengths_BI: tokens of each (sample, input) segment.

    Returns:
        Rows of the input-major concatenation in sample-major order, and each token's place in its segment; both
        int64 ``[T]``.
    """
    input_start = np.concatenate([[0], lengths_BI.sum(0).cumsum()[:-1]])
    start_BI = input_start + lengths_BI.cumsum(0) - lengths_BI
    rows = [np.arange(s, s + n) for s, n in zip(start_BI.reshape(-1), lengths_BI.reshape(-1), strict=True)]
    places = [np.arange(n) for n in lengths_BI.reshape(-1)]
    return np.concatenate(rows).astype(np.int64), np.concatenate(places).astype(np.int64)
