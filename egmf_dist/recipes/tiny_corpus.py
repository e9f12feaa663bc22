"""What the tiny backbone reads: prompts of the training split with the answers shuffled, or plain text.

Invariants: only the training split is read; within a task and language the answers' frequencies stay exactly as they
are, and each epoch deals them to the samples anew, so that no pairing is left to be learnt; prompt and answer are
tokenized apart, as the training does it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from egmf_dist.data.prompts import answer_index, render_answer, render_prompt
from egmf_dist.data.run_data import check_targets
from egmf_dist.errors import EgmfError
from egmf_shards import Sample, ShardSet, Task

BUCKET_BATCHES = 16
"""Batches are cut from this many batches' worth of shuffled documents, sorted by length, so little is padding."""


@dataclass(frozen=True)
class Document:
    """One text to read; an answer, where there is one, will be exchanged with others of its group."""

    prompt: str
    answer: str = ""
    group: tuple[str, str] | None = None
    """Task and language; None for plain text, which has no answer."""


def read_sources(paths: Sequence[Path], context_turns: int) -> tuple[list[Document], list[dict[str, Any]]]:
    """Every document of shard folders (training split) and text files, and one line of provenance for each source."""
    if not paths:
        raise EgmfError("tiny backbone: no text; give folders of shards or text files")
    documents: list[Document] = []
    sources: list[dict[str, Any]] = []
    for path in paths:
        if path.is_dir():
            shards = ShardSet.open([path], "train")
            check_targets(shards, "train")
            read = render_documents(((shards[i], shards.tasks) for i in range(len(shards))), context_turns)
            sources.append({"shards": str(path), "index_hash": shards.index_hash, "documents": len(read)})
        elif path.is_file():
            read = plain_documents(path)
            sources.append({"text": str(path), "documents": len(read)})
        else:
            raise EgmfError(
                f"{path}: no such file or folder; give a folder of shards or a text file, one document a line"
            )
        documents += read
    return documents, sources


def plain_documents(path: Path) -> list[Document]:
    """The lines of a UTF-8 text file that are not blank.

    Raises:
        EgmfError: the file is not UTF-8 or holds no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise EgmfError(f"{path}: not a UTF-8 text file ({error.reason} at byte {error.start})") from error
    documents = [Document(line.strip()) for line in lines if line.strip()]
    if not documents:
        raise EgmfError(f"{path}: holds no text; one document a line is needed")
    return documents


def render_documents(samples: Iterable[tuple[Sample, Mapping[str, Task]]], context_turns: int) -> list[Document]:
    """Samples in the prompts' format, each with its true answer, which :func:`shuffled_answers` takes away again."""
    documents = []
    for sample, tasks in samples:
        task = tasks[sample.task]
        answer = render_answer(task, sample.language, answer_index(sample, task))
        documents.append(Document(render_prompt(sample, task, context_turns), answer, (task.name, sample.language)))
    return documents


def shuffled_answers(documents: Sequence[Document], seed: int, epoch: int) -> list[str]:
    """For each document an answer from its group, each used once: a uniform permutation per group and epoch."""
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, document in enumerate(documents):
        if document.group is not None:
            places[document.group].append(i)
    answers = [""] * len(documents)
    for group in sorted(places):
        shuffled = [documents[i].answer for i in places[group]]
        random.Random(f"answers {seed} {epoch} {group}").shuffle(shuffled)
        for i, answer in zip(places[group], shuffled, strict=True):
            answers[i] = answer
    return answers


def batches(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, batch: int, max_tokens: int, seed: int
) -> Iterator[list[list[int]]]:
    """Batches of token ids without end, epoch after epoch; every document ends in end-of-sequence.

    Rows of a batch are of similar length, at most ``max_tokens``: a prompt keeps its end, plain text is cut in pieces.
    """
    eos = [int(tokenizer.eos_token_id)]
    prompts = tokenizer([d.prompt for d in documents], add_special_tokens=False)["input_ids"]
    words = sorted({d.answer for d in documents})
    answer_ids = {w: tokenizer(w, add_special_tokens=False)["input_ids"] if w else [] for w in words}
    epoch = 0
    while True:
        rows: list[list[int]] = []
        for document, prompt, answer in zip(documents, prompts, shuffled_answers(documents, seed, epoch), strict=True):
            row = prompt + answer_ids[answer] + eos
            if document.group is None:
                rows += [row[i : i + max_tokens] for i in range(0, len(row), max_tokens)]
            else:
                rows.append(row[-max_tokens:])
        chance = random.Random(f"order {seed} {epoch}")
        chance.shuffle(rows)
        for start in range(0, len(rows), BUCKET_BATCHES * batch):
            bucket = sorted(rows[start : start + BUCKET_BATCHES * batch], key=len)
            cut = [bucket[i : i + batch] for i in range(0, len(bucket), batch)]
            chance.shuffle(cut)
            yield from cut
        epoch += 1
