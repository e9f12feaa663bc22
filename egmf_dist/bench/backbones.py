"""A backbone of random weights in a published model's shape, to read what :mod:`egmf_dist.bench.dialogues` says.

What a step costs depends on shapes alone, so no weight need be fetched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from egmf_dist.bench.dialogues import NUMBERS, PEOPLE, TASK, WORDS_SAID
from egmf_dist.config import BackboneConfig
from egmf_dist.errors import EgmfError


def write_shape(folder: Path, name: str) -> None:
    """Configuration and tokenizer of a published shape in a new folder, without weights.

    Args:
        folder: to make.
        name: among :data:`SHAPES` or :data:`SMALL`.
    """
    config = {**SHAPES, **SMALL}[name][1]()
    config.save_pretrained(folder)
    _tokenizer(config.model_type).save_pretrained(folder)


class Made(NamedTuple):
    """A backbone that was written."""

    title: str
    layer_weights: int
    """Of the matrices in its layers: embeddings and output layer are not among them."""


def write_backbone(folder: Path, layers: int, like: str) -> Made:
    """A causal LM of random weights in Hugging Face format in a new folder.

    Args:
        folder: to make.
        layers: how many of its layers it has.
        like: name among :data:`SHAPES` or :data:`SMALL`, with a token a word; or folder or hub id of a model
            whose shape and tokenizer it gets.

    Returns:
        What it is.

    Raises:
        EgmfError: ``like`` is no causal LM, or has fewer layers.
    """
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D
    from transformers.utils.logging import disable_progress_bar

    from egmf_dist.model.backbone import load_backbone_config, load_tokenizer

    known = {**SHAPES, **SMALL}
    if like in known:
        name, make = known[like]
        config = make()
        tokenizer = _tokenizer(config.model_type)
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
    # Numbers for seven billion weights take minutes on one core and none on a GPU.
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    head = model.get_output_embeddings()
    matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    return Made(
        f"{name}'s shape, {layers} layers, {count:,.0f} M random weights", sum(int(m.numel()) for m in matrices)
    )


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


def _mistral() -> Any:
    """Mistral 7B v0.3's published configuration."""
    from transformers import MistralConfig

    return MistralConfig(
        vocab_size=32768,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        sliding_window=None,
    )


def _qwen(width: int, between: int, layers: int, heads: tuple[int, int], vocabulary: int, tied: bool) -> Any:
    """Qwen 2.5's published configurations."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=between,
        num_hidden_layers=layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        max_position_embeddings=32768,
        tie_word_embeddings=tied,
    )


SHAPES: dict[str, tuple[str, Callable[[], Any]]] = {
    "gemma3-270m": ("Gemma 3 270M", _gemma),
    "mistral-7b": ("Mistral 7B", _mistral),
    "qwen2.5-0.5b": ("Qwen 2.5 0.5B", partial(_qwen, 896, 4864, 24, (14, 2), 151936, True)),
    "qwen2.5-7b": ("Qwen 2.5 7B", partial(_qwen, 3584, 18944, 28, (28, 4), 152064, False)),
    "qwen2.5-32b": ("Qwen 2.5 32B", partial(_qwen, 5120, 27648, 64, (40, 8), 152064, False)),
    "qwen2.5-72b": ("Qwen 2.5 72B", partial(_qwen, 8192, 29568, 80, (64, 8), 152064, False)),
}
"""Names of published shapes: what a person calls the model, and its configuration."""
SMALL: dict[str, tuple[str, Callable[[], Any]]] = {
    "2-layers-of-64": ("2 layers of 64", partial(_qwen, 64, 256, 2, (2, 1), 4096, True)),
    "2-layers-of-512": ("2 layers of 512", partial(_qwen, 512, 2048, 2, (8, 4), 4096, True)),
    "6-layers-of-256": ("6 layers of 256", partial(_qwen, 256, 1024, 6, (4, 2), 4096, True)),
    "8-layers-of-384": ("8 layers of 384", partial(_qwen, 384, 1536, 8, (6, 2), 4096, True)),
}
"""Shapes that nobody published, for a CPU: what a plan is calibrated and held against."""


def _tokenizer(kind: str) -> Any:
    """A token a word, a line break and a sign of punctuation each one, too; about a token a word for ``kind`` of model
    whose tokenizer transformers makes anew as byte pairs."""
    from tokenizers import ByteLevelBPETokenizer, Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    said = [*TASK.questions.values(), *NUMBERS.questions.values(), *TASK.labels, "Answer:", "-", ".", *"0123456789"]
    if kind == "qwen2":
        pairs = ByteLevelBPETokenizer()
        pairs.train_from_iterator([" ".join(WORDS_SAID), *PEOPLE, *said] * 4, vocab_size=4096, special_tokens=special)
        names = {"pad_token": "<pad>", "eos_token": "<eos>"}
        return PreTrainedTokenizerFast(tokenizer_object=pairs._tokenizer, **names)
    known = [*special, *_words([*WORDS_SAID, *PEOPLE, *said]), "\n"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\n|[^\w\s]"), "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _words(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(word for text in [*texts, "[]"] for word in re.findall(r"\w+|[^\w\s]", text)))
