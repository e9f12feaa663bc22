"""A small causal LM of one's own: byte-level BPE tokenizer and Qwen2 weights, pre-trained for about a minute.

It stands in for a real LLM where none is at hand (the demo, the tests, the real-text recipe) and is loaded through the
same path as any backbone. It must know the answer words, or LoRA can never raise them (weighted F1 0.02), and must not
know which answer belongs where, or the later training would prove nothing: see :mod:`egmf_dist.recipes.tiny_corpus`.

Invariants: the same inputs, settings and step budget give the same weights; the output folder appears whole or not at
all; the caller's random state and thread count are left as they were.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import tokenizers
import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from egmf_dist.errors import EgmfError
from egmf_dist.recipes.tiny_corpus import Document, batches, read_sources
from egmf_shards import MAX_CONTEXT_TURNS

PAD, EOS = "<pad>", "<eos>"
PAD_ID, EOS_ID = 0, 1
MAX_POSITIONS = 1024
SMALLEST_VOCABULARY = 300
"""256 bytes, two special tokens, and a few merges."""
IGNORED = -100
LEARNING_RATE = 4e-3
"""At width 128 and 2e-3 it had not always learnt in 400 steps which question asks for which answers."""
WARMUP_STEPS = 20
LINE_EVERY = 100
"""Steps between two lines of progress where there is no terminal."""


@dataclass(frozen=True)
class TinySettings:
    """Size and training of the small model."""

    vocab_size: int = 640
    """The most tokens. The default suits the demo: written Chinese has no spaces, so a vocabulary that is large for its
    text merges neighbouring words (on the demo's text a Chinese cue word is in one or two tokens of 640, in 40 to 65 of
    2000, most of them too rare to be learnt). Real text wants 2000 to 4000."""
    hidden: int = 128
    """Width of the model."""
    layers: int = 4
    """Transformer blocks."""
    heads: int = 4
    """Attention heads; two of them share keys and values at a time."""
    batch: int = 32
    max_tokens: int = 512
    learning_rate: float = 0.0
    """Peak; 0 for :data:`LEARNING_RATE`, and less of it where the model is wider than 128: that wants smaller steps."""

    def __post_init__(self) -> None:
        if not self.learning_rate:
            rate = LEARNING_RATE * min(1.0, TinySettings.hidden / max(self.hidden, 1))
            object.__setattr__(self, "learning_rate", rate)
        rules = [
            (self.vocab_size >= SMALLEST_VOCABULARY, "vocab_size", self.vocab_size, f"{SMALLEST_VOCABULARY} or more"),
            (self.heads >= 2 and self.heads % 2 == 0, "heads", self.heads, "even: two heads share keys and values"),
            (
                self.hidden >= 1 and self.hidden % (2 * max(self.heads, 1)) == 0,
                "hidden",
                self.hidden,
                f"a multiple of twice the heads ({self.heads}): rotary positions turn pairs",
            ),
            (self.layers >= 1, "layers", self.layers, "1 or more"),
            (self.batch >= 1, "batch", self.batch, "1 or more"),
            (2 <= self.max_tokens <= MAX_POSITIONS, "max_tokens", self.max_tokens, f"2 to {MAX_POSITIONS}"),
        ]
        for holds, name, value, right in rules:
            if not holds:
                raise EgmfError(f"tiny backbone: {name} is {value}; it must be {right}")


def train_tiny_backbone(
    text: Path | Sequence[Path],
    out: Path,
    settings: TinySettings | None = None,
    *,
    steps: int = 400,
    seconds: float | None = None,
    seed: int = 0,
    context_turns: int = 3,
    threads: int | None = None,
) -> dict[str, Any]:
    """Train tokenizer and model and save both in Hugging Face format.

    Args:
        text: folders of shards (their training split is read), plain text files (one document a line), or both.
        out: the folder to make; ``backbone.json`` in it says where the model comes from.
        settings: size and training of the model; None: the demo's.
        steps: optimiser steps, of 32 documents each.
        seconds: stop after this long even if steps are left. The weights then depend on the machine's speed.
        seed: of initialisation, order and shuffling.
        context_turns: preceding turns in a prompt; use the later training's ``data.context_turns``.
        threads: PyTorch threads; None leaves the process's setting (``OMP_NUM_THREADS``).

    Returns:
        What ``backbone.json`` holds.

    Raises:
        EgmfError: ``out`` exists, a source is missing, empty or of no known kind, a setting is out of range.
        ShardError: a folder of shards is broken.
    """
    settings = settings or TinySettings()
    if steps < 1 or (seconds is not None and seconds <= 0):
        raise EgmfError(f"tiny backbone: steps is {steps}, seconds is {seconds}; 1 or more, and above 0, are needed")
    if not 0 <= context_turns <= MAX_CONTEXT_TURNS:
        raise EgmfError(f"tiny backbone: context_turns is {context_turns}; it must be 0 to {MAX_CONTEXT_TURNS}")
    out = Path(out)
    if out.exists():
        raise EgmfError(f"{out} exists; name another folder for the backbone, or remove it first")
    documents, sources = read_sources(
        [Path(text)] if isinstance(text, str | Path) else [Path(t) for t in text], context_turns
    )
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    threads_before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        # fork_rng: the caller's random numbers are not ours to move.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tokenizer = train_tokenizer(documents, settings.vocab_size)
            model, history = pretrain(documents, tokenizer, settings, steps, seconds, seed)
        record = {
            "sources": sources,
            "split": "train",
            "answers": "shuffled among samples of the same task and language, anew every epoch",
            "context_turns": context_turns,
            "documents": len(documents),
            "steps": len(history),
            "seconds": seconds,
            "seed": seed,
            "first_loss": history[0],
            "final_loss": sum(history[-20:]) / len(history[-20:]),
            "parameters": sum(p.numel() for p in model.parameters()),
            "settings": asdict(settings) | {"vocab_size": len(tokenizer)},
            "versions": {m.__name__: str(m.__version__) for m in (torch, transformers, tokenizers)},
        }
        save(model, tokenizer, record, partial)
        partial.rename(out)
    finally:
        torch.set_num_threads(threads_before)
        shutil.rmtree(partial, ignore_errors=True)
    return record


def train_tokenizer(documents: Sequence[Document], vocab_size: int) -> Qwen2Tokenizer:
    """Byte-level BPE over prompts and answers: any text can be written with it, none is ever unknown.

    It splits and normalises (NFC) as Qwen2 does, because ``AutoTokenizer`` loads every folder of a Qwen2 model as a
    ``Qwen2Tokenizer``, whatever class was saved: another splitting would be silently replaced by Qwen2's.
    """
    qwen2 = Qwen2Tokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = qwen2.normalizer
    tokenizer.pre_tokenizer = qwen2.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [d.prompt for d in documents] + [d.answer for d in documents if d.answer]
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    learnt = json.loads(tokenizer.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learnt["merges"]]  # declared as list[str]; pairs are what the library takes
    # split_special_tokens: an utterance that contains "<eos>" is text, not an end of sequence. unk_token: Qwen2's
    # default would be one token more than the model has; no text is unknown, so it is never used.
    return Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=merges,
        unk_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=MAX_POSITIONS,
        split_special_tokens=True,
    )


def pretrain(
    documents: Sequence[Document],
    tokenizer: Qwen2Tokenizer,
    settings: TinySettings,
    steps: int,
    seconds: float | None,
    seed: int,
) -> tuple[Qwen2ForCausalLM, list[float]]:
    """A Qwen2 model trained as a causal LM; the global random state must be seeded before.

    Returns:
        The model (fp32) and every step's loss (mean nats per token).
    """
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=3 * settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads // 2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    started = time.monotonic()
    history: list[float] = []
    with _progress(steps) as show:
        for rows in batches(documents, tokenizer, settings.batch, settings.max_tokens, seed):
            spent = len(history) / steps
            if seconds is not None:
                spent = max(spent, (time.monotonic() - started) / seconds)
            if spent >= 1:
                break
            warmup = min(1.0, (len(history) + 1) / WARMUP_STEPS)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * warmup * (1 - 0.9 * spent)
            ids_BL, labels_BL = pad_rows(rows)
            # No attention mask: padding stands on the right, where no real token looks.
            loss = model(input_ids=ids_BL, labels=labels_BL, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            history.append(float(loss.detach()))
            show(len(history), history[-1])
    model.eval()
    return model, history


def save(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, record: dict[str, Any], folder: Path) -> None:
    """Write the Hugging Face files and ``backbone.json`` into a new folder.

    Not ``model.save_pretrained``: it imports DeepSpeed (seconds and a warning, for a model that never saw it), draws a
    progress bar of its own and leaves weights that only their owner may read.
    """
    folder.mkdir(parents=True)
    tensors = {name: t.contiguous() for name, t in model.state_dict().items() if name != "lm_head.weight"}  # tied
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "backbone.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def pad_rows(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, int64 ``[batch, longest]``, padded on the right; padding is no label."""
    longest = max(len(row) for row in rows)
    ids_BL = torch.full((len(rows), longest), PAD_ID)
    labels_BL = torch.full((len(rows), longest), IGNORED)
    for b, row in enumerate(rows):
        ids_BL[b, : len(row)] = labels_BL[b, : len(row)] = torch.tensor(row)
    return ids_BL, labels_BL


class Show(Protocol):
    """Takes the number of steps done and the last loss."""

    def __call__(self, step: int, loss: float) -> None: ...


@contextmanager
def _progress(steps: int) -> Iterator[Show]:
    """A bar on a terminal, one line per :data:`LINE_EVERY` steps otherwise; on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:

        def line(step: int, loss: float) -> None:
            if step % LINE_EVERY == 0 or step == steps:
                console.print(f"tiny backbone: step {step} of {steps}, loss {loss:.3f}", highlight=False)

        yield line
        return
    columns = (
        TextColumn("tiny backbone"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=steps, loss=float("nan"))

        def advance(step: int, loss: float) -> None:
            progress.update(bar, completed=step, loss=loss)

        yield advance
