"""Dialogues of MELD's lengths in generated words, and a backbone of random weights to read them.

What a training step costs depends on lengths and shapes alone, so nothing need be fetched. The same settings and seed
give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egmf_dist.config import BackboneConfig
from egmf_dist.errors import EgmfError
from egmf_shards import MAX_CONTEXT_TURNS, Sample, ShardWriter, Turn
from egmf_shards.importers.meld import TASK

DATASET = "dialogues"
TURNS = (1, 1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 24)
"""Utterances of a dialogue in MELD's training split: the quantiles of 0, 5, ... 100 %."""
WORDS = (1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 16, 18, 21, 24, 28, 93)
"""Tokens of an utterance there by Gemma 3's tokenizer: the same quantiles."""
AUDIO_DIM, VISION_DIM = 74, 35
"""COVAREP and Facet, as CMU-MOSEI has them."""
FRAMES = (10, 80)
"""Frames of a clip, uniform: one to eight seconds at ten a second."""
_VALIDATION = 8
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_WORDS = [c + v + d for c in _CONSONANTS for v in _VOWELS for d in _CONSONANTS]
_PEOPLE = ["Ada Byron", "Alan Mathison", "Grace Murray", "Kurt Friedrich", "Emmy Amalie", "Claude Elwood"]


def generate(samples: int, split: str, frames: tuple[int, int] = FRAMES, seed: int = 0) -> Iterator[Sample]:
    """``samples`` utterances, dialogue after dialogue; the last one ends where they do."""
    rng = np.random.default_rng([seed, len(split)])
    quantiles = np.linspace(0, 1, len(TURNS))
    made = dialogue = 0
    while made < samples:
        people = rng.permutation(_PEOPLE)[:3].tolist()
        turns: list[Turn] = []
        for _ in range(round(float(np.interp(rng.random(), quantiles, TURNS)))):
            if made == samples:
                return
            count = round(float(np.interp(rng.random(), quantiles, WORDS)))
            turn = Turn(str(rng.choice(people)), " ".join(rng.choice(_WORDS, size=count)))
            yield Sample(
                id=f"{split}-{made:06d}",
                text=turn.text,
                language="en",
                task=TASK.name,
                dataset=DATASET,
                split=split,
                modalities=("text", "audio", "vision"),
                label=str(rng.choice(TASK.labels)),
                speaker=turn.speaker,
                dialogue=f"{split}-{dialogue:05d}",
                turn=len(turns),
                context=tuple(turns[-MAX_CONTEXT_TURNS:]),
                features={
                    name: rng.standard_normal((int(rng.integers(*frames, endpoint=True)), dim), dtype=np.float32)
                    for name, dim in (("audio", AUDIO_DIM), ("vision", VISION_DIM))
                },
            )
            turns.append(turn)
            made += 1
        dialogue += 1


def write_dialogues(folder: Path, samples: int, frames: tuple[int, int] = FRAMES) -> None:
    """``samples`` training utterances, and a few for validation, as shards in a new folder; each stream of a clip has
    from ``frames[0]`` to ``frames[1]`` frames."""
    streams = {"audio": AUDIO_DIM, "vision": VISION_DIM}
    with ShardWriter(folder, DATASET, [TASK], streams) as writer:
        for split, count in (("train", samples), ("valid", _VALIDATION)):
            for sample in generate(count, split, frames):
                writer.write(sample)


def write_backbone(folder: Path, layers: int, like: str | None = None) -> str:
    """A causal LM of random weights in Hugging Face format in a new folder.

    Args:
        folder: to make.
        layers: how many of its layers it has.
        like: folder or hub id of a model whose shape and tokenizer it gets; None: Gemma 3 270M's shape (width 640,
            262,144 words) and a token a word.

    Returns:
        What it is, in words.

    Raises:
        EgmfError: ``like`` is no causal LM, or has fewer layers.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from egmf_dist.model.backbone import load_backbone_config, load_tokenizer

    if like is None:
        config, tokenizer, name = _gemma(), _tokenizer(), "Gemma 3 270M"
    else:
        source = BackboneConfig(path=like)
        config, tokenizer, name = load_backbone_config(source), load_tokenizer(source), like
    text = config.get_text_config()
    if not 1 <= layers <= text.num_hidden_layers:
        raise EgmfError(f"--layers is {layers}; {name} has {text.num_hidden_layers}: it must be 1 to that")
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    torch.manual_seed(0)
    disable_progress_bar()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    return f"{name}'s shape, {layers} layers, {count:,.0f} M random weights"


def _gemma() -> Any:
    """Gemma 3 270M's published configuration."""
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        layer_types=[("full" if i % 6 == 5 else "sliding") + "_attention" for i in range(18)],
        max_position_embeddings=32768,
    )


def _tokenizer() -> Any:
    """A token a word, a line break and a sign of punctuation each one, too."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    known = [*special, *_words([*_WORDS, *_PEOPLE, *TASK.questions.values(), *TASK.labels, "Answer:"]), "\n"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\n|[^\w\s]"), "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _words(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(word for text in [*texts, "[]"] for word in re.findall(r"\w+|[^\w\s]", text)))
