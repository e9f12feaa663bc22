"""Tiny random models of a dozen families, each with a tokenizer like its own, and samples longer than their windows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from egmf_shards import Turn

STREAMS = {"audio": [6], "vision": [5]}
MIXED = ["sliding_attention", "full_attention"]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Random weights of the usual 0.02 give logits near 0, and every fault is lost in them.
    "initializer_range": 0.3,
}
# Name: model type, what the tokenizer puts before a text, settings, the way of scoring.
FAMILIES = {
    "qwen2": ("qwen2", (), SMALL, "tree"),
    "qwen3": ("qwen3", (), SMALL | {"head_dim": 8}, "tree"),
    "llama": ("llama", ("<bos>",), SMALL, "tree"),
    "mistral": ("mistral", ("<bos>",), SMALL | {"head_dim": 8, "sliding_window": 8}, "tree"),
    "gemma2": ("gemma2", ("<bos>",), SMALL | {"head_dim": 8, "sliding_window": 8, "layer_types": MIXED}, "tree"),
    "gemma3": ("gemma3_text", ("<bos>",), SMALL | {"head_dim": 8, "sliding_window": 8, "layer_types": MIXED}, "tree"),
    "phi3": ("phi3", ("<bos>",), SMALL, "tree"),
    "glm4": ("glm4", ("[gMASK]", "<sop>"), SMALL | {"head_dim": 8}, "tree"),
    "gpt2": (
        "gpt2", (),
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.3}, "tree",
    ),
    "bloom": ("bloom", (), {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}, "sequence"),
    "lfm2": (
        "lfm2", ("<bos>",),
        SMALL | {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}, "sequence",
    ),
    "qwen3_next": (
        "qwen3_next", (),
        SMALL | {
            "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
            "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 4,
            "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
        },
        "sequence",
    ),
}  # fmt: skip


class Shown(NamedTuple):
    """A chat template, and what it makes of a question: text before and behind it, and the token that ends a turn."""

    template: str
    before: str
    after: str
    end: str


def _turns(opening: str, closing: str, roles: dict[str, str], start: str = "", system: str = "") -> str:
    """A template of the usual form in Jinja: every message between two marks, the assistant's opened at the end."""
    names = "{" + ", ".join(f"'{role}': '{name}'" for role, name in roles.items()) + "}"
    each = f"{opening.replace('ROLE', '{{ names[m.role] }}')}{{{{ m.content }}}}{closing}"
    asked = opening.replace("ROLE", roles["assistant"])
    return (
        f"{{%- set names = {names} -%}}{start}{system}{{% for m in messages %}}{each}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{asked}{{% endif %}}"
    )


_BOTH = {"user": "user", "assistant": "assistant"}
_CHATML = _turns("<|im_start|>ROLE\n", "<|im_end|>\n", _BOTH, system="<|im_start|>system\nYou help.<|im_end|>\n")
_GEMMA = Shown(
    _turns("<start_of_turn>ROLE\n", "<end_of_turn>\n", _BOTH | {"assistant": "model"}, start="<bos>"),
    "<bos><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>",
)  # fmt: skip
_HELPFUL = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n"
# As the families' own are in what matters here; Llama 3's shows a day, Qwen 3's thinks where it is not told otherwise.
CHATS = {
    "qwen2": Shown(_CHATML, _HELPFUL, "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    "qwen3": Shown(
        _CHATML + "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
        "<think>\n\n</think>\n\n{% endif %}",
        _HELPFUL, "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "<|im_end|>",
    ),
    "llama": Shown(
        _turns(
            "<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>", _BOTH, start="<bos>",
            system="Today Date: {{ date_string if date_string is defined else strftime_now('%d %b %Y') }}\n",
        ),
        "<bos>Today Date: 26 Jul 2024\n<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>",
    ),
    "mistral": Shown(
        "<bos>{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{% else %}{{ m.content }}<eos>{% endif %}{% endfor %}",
        "<bos>[INST]", "[/INST]", "<eos>",
    ),
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
    "phi3": Shown(
        _turns("<|ROLE|>\n", "<|end|>\n", _BOTH, start="<bos>"),
        "<bos><|user|>\n", "<|end|>\n<|assistant|>\n", "<|end|>",
    ),
    "glm4": Shown(
        _turns("<|ROLE|>\n", "", _BOTH, start="[gMASK]<sop>"),
        "[gMASK]<sop><|user|>\n", "<|assistant|>\n", "<eos>",
    ),
}  # fmt: skip
# How a trained model may have been tuned: the family, and settings of the backbone.
TUNED = {
    "lora": ("qwen3", {}),
    "dora": ("gemma3", {"lora_dora": True, "lora_rslora": True}),
    "chosen layers": ("gpt2", {"lora_layers": [1]}),
    "frozen": ("llama", {"tuning": "frozen"}),
    "full": ("llama", {"tuning": "full"}),
}
MARKS = (
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]",
    "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|end|>", "<think>", "</think>",
)  # fmt: skip


TEXT = ["i am glad no wait Emotion? Answer: neutral joy anger -0.5 1.0"] * 4


def make_sentencepiece():
    """As Llama 2's and Phi-3's: a mark before every text and for every space, bytes for what it does not know."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    known = trainers.BpeTrainer(vocab_size=400, special_tokens=[*special, *(f"<0x{i:02X}>" for i in range(256))])
    tokenizer.train_from_iterator([word for line in TEXT for word in line.split(" ")], known)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


def make_tokenizer(start: tuple[str, ...]):
    from tokenizers import ByteLevelBPETokenizer, processors
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXT, vocab_size=300, special_tokens=["<pad>", "<eos>", *start])
    if start:
        bpe._tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join([*start, "$A"]), special_tokens=[(s, bpe.token_to_id(s)) for s in start]
        )
    bos = start[0] if len(start) == 1 else None
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token=bos)


def save_model(folder: Path, kind: str, start: tuple[str, ...], settings: dict, vocabulary: int = 0) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_sentencepiece() if kind == "phi3" else make_tokenizer(start)
    if folder.name in CHATS:
        chat = CHATS[folder.name].template
        tokenizer.add_special_tokens({"additional_special_tokens": [mark for mark in MARKS if mark in chat]})
        tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)
    config = AutoConfig.for_model(
        kind, vocab_size=vocabulary or len(tokenizer), pad_token_id=0, eos_token_id=1, bos_token_id=None, **settings
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def spoken(make_samples, count):
    """Samples whose prompts differ in length by many times a window."""
    samples = make_samples(count)
    longer = ["no wait " * n for n in (0, 1, 3, 6, 10, 15)]
    return [
        replace(s, text=s.text + " " + longer[i % 6], context=(Turn("B", "wait"),) * (i % 3))
        for i, s in enumerate(samples)
    ]
