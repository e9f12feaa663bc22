"""The large language model: what it can do, its tokenizer, its weights, and a PEFT LoRA adapter."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.logging import disable_progress_bar

from egmf_dist.config import BackboneConfig, ModelConfig
from egmf_dist.data.prompt_ids import Limits
from egmf_dist.errors import EgmfError
from egmf_dist.model import fitting
from egmf_dist.model.loading import in_one_line, load_by_tensor, without_weights
from egmf_dist.model.tuning.base import TUNINGS, Tuning

# Where configurations of different families keep the number of positions.
_LONGEST = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
_RMS_TOKENS = 4096


class LayerKind(NamedTuple):
    """One kind of attention layer of a backbone."""

    name: str
    """transformers' name: ``full_attention``, ``sliding_attention`` or ``chunked_attention``."""
    window: int | None = None
    """How many positions back it sees, its own included."""
    chunk: int | None = None
    """It sees its own chunk of so many positions only."""


@dataclass(frozen=True)
class Capabilities:
    """What a backbone can do, read once from its configuration and its tokenizer before any weight is loaded."""

    architecture: str
    """transformers' name of the family, such as ``qwen2``."""
    width: int
    """H, the width of its input embeddings."""
    vocabulary: int
    """Rows of its input embedding."""
    longest: int | None
    """The most positions; None where nothing limits them."""
    kinds: tuple[LayerKind, ...]
    """Its kinds of attention layers; empty where one of them is not known here."""
    recurrent: bool
    """Some layers carry a state along the sequence, or attend in a way that is not known here."""
    sequence_only: str
    """Why the answers' tree cannot be scored in one pass; empty where a 4-D mask is honoured, a mapping of them where
    there are several kinds of layers."""
    tied: bool
    """Input and output embeddings are one table."""
    start: tuple[int, ...]
    """Every id that the tokenizer puts before a text."""
    eos: int
    """End of sequence."""
    beyond: int
    """How many special tokens of the tokenizer have no row in the embedding; they cannot occur in a prompt."""

    def limits(self, model: ModelConfig) -> Limits:
        """What can be read, beside its start and the pseudo tokens of ``model``."""
        columns = None if self.longest is None else self.longest - len(self.start) - model.pseudo_tokens
        return Limits(self.vocabulary, self.eos, columns, self.start, model.pseudo_tokens, model.max_stream_tokens)

    def describe(self) -> str:
        """One line: architecture and what limits it."""
        layers = [
            f"{k.name.split('_')[0]}{f' {k.window or k.chunk}' if k.window or k.chunk else ''}" for k in self.kinds
        ]
        layers += ["recurrent or other"] if self.recurrent else []
        reach = f"{self.longest} positions" if self.longest else "no limit of positions"
        text = f"backbone: {self.architecture}, width {self.width}, {reach}, layers {' + '.join(layers) or 'unknown'}"
        text += ", tied embeddings" if self.tied else ""
        return text + (f", {self.beyond} special tokens without a row" if self.beyond else "")


def _check_path(config: BackboneConfig) -> None:
    if not config.path:
        raise EgmfError("config: backbone.path is empty; give a folder or hub id of a Hugging Face causal LM")
    # A hub id is `name` or `owner/name`; where the first part is a folder here, a folder is what was meant.
    first = Path(config.path).parts[0]
    looks_local = config.path.startswith((".", "/", "~")) or config.path.count("/") > 1 or Path(first).is_dir()
    if looks_local and not (Path(config.path) / "config.json").is_file():
        raise EgmfError(
            f"config: backbone.path {config.path!r} holds no config.json; give a folder in Hugging Face format, "
            "or make a small one with: egmf backbone tiny --text SHARDS --out DIR"
        )


def _load(what: str, loader: Any, config: BackboneConfig, **options: Any) -> Any:
    _check_path(config)
    with in_one_line(config.path, what):
        return loader.from_pretrained(
            config.path, revision=config.revision, trust_remote_code=config.trust_remote_code, **options
        )


def load_tokenizer(config: BackboneConfig) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer.

    Raises:
        EgmfError: the path is empty or holds no tokenizer.
    """
    tokenizer: PreTrainedTokenizerBase = _load("tokenizer", AutoTokenizer, config)
    return tokenizer


def load_backbone_config(config: BackboneConfig) -> Any:
    """The backbone's own configuration (width, layers, vocabulary)."""
    return _load("configuration", AutoConfig, config)


def read_capabilities(config: BackboneConfig, tokenizer: PreTrainedTokenizerBase) -> Capabilities:
    """What the backbone can do; loads no weights.

    Raises:
        EgmfError: the model is no causal language model, or its tokenizer does not fit it.
    """
    whole = load_backbone_config(config)
    text = whole.get_text_config()
    where = f"backbone {config.path!r} ({text.model_type})"
    source = _modelling_source(whole, where, config.trust_remote_code)
    width = getattr(text, "word_embed_proj_dim", None) or getattr(text, "hidden_size", None)
    vocabulary = getattr(text, "vocab_size", None)
    if not width or not vocabulary:
        raise EgmfError(
            f"{where}: its config.json gives no hidden_size or vocab_size; a causal language model is needed"
        )
    bidirectional = (
        getattr(text, "use_bidirectional_attention", False) is True or getattr(text, "is_causal", True) is False
    )
    # Encoders can be loaded as causal models, too; they are causal only where the configuration says is_decoder.
    if bidirectional or (getattr(text, "is_decoder", None) is False and "create_bidirectional_mask" in source):
        raise EgmfError(f"{where}: it reads in both directions; a causal (decoder) language model is needed")
    kinds, recurrent = _layers(text, source)
    longest = next((int(n) for n in (getattr(text, name, None) for name in _LONGEST) if n and n > 0), None)
    if getattr(text, "hidden_size_per_layer_input", None):
        raise EgmfError(
            f"{where}: its layers read token ids beside the embeddings, and a pseudo token has no id; take a backbone "
            "without per-layer embeddings"
        )
    if tokenizer.eos_token_id is None:
        raise EgmfError(
            f"{where}: its tokenizer has no end-of-sequence token; EGMF trains the answer's end with it: "
            "set eos_token in tokenizer_config.json"
        )
    eos = int(tokenizer.eos_token_id)
    if eos >= vocabulary:
        raise EgmfError(
            f"{where}: the end-of-sequence token {tokenizer.eos_token!r} is number {eos}, its embedding has "
            f"{vocabulary} rows; set the eos_token it was trained with, or resize its embedding"
        )
    start = _start(tokenizer)
    if start and max(start) >= vocabulary:
        raise EgmfError(
            f"{where}: its tokenizer begins a text with token {max(start)}, its embedding has {vocabulary} rows"
        )
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= vocabulary}
    plain = sorted(beyond.keys() - set(tokenizer.all_special_tokens), key=beyond.__getitem__)
    plain = [token for token in plain if not _is_special(tokenizer, beyond[token])]
    if plain:
        raise EgmfError(
            f"{where}: its tokenizer has the token {plain[0]!r} (number {beyond[plain[0]]}), its embedding has "
            f"{vocabulary} rows; resize its embedding, or take the token out of its tokenizer"
        )
    return Capabilities(
        architecture=str(text.model_type),
        width=int(width),
        vocabulary=int(vocabulary),
        longest=longest,
        kinds=kinds,
        recurrent=recurrent,
        sequence_only=_sequence_only(text, kinds, recurrent, source),
        tied=bool(getattr(text, "tie_word_embeddings", False)),
        start=tuple(start),
        eos=eos,
        beyond=len(beyond),
    )


def _modelling_source(config: Any, where: str, remote_code: bool) -> str:
    """The source of the model's own module: what it does with masks stands nowhere else."""
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if isinstance(model, tuple):
        model = model[0]
    if model is None:
        if remote_code:
            return ""
        raise EgmfError(f"{where}: transformers has no causal language model of this kind")
    if "inputs_embeds" not in inspect.signature(model.forward).parameters:
        raise EgmfError(f"{where}: it reads token ids alone, and pseudo tokens are embeddings; take another backbone")
    return inspect.getsource(sys.modules[model.__module__])


def _layers(text: Any, source: str) -> tuple[tuple[LayerKind, ...], bool]:
    """The kinds of attention layers (empty: one is unknown), and whether some layers are recurrent."""
    window, chunk = getattr(text, "sliding_window", None), getattr(text, "attention_chunk_size", None)
    known = {
        "full_attention": LayerKind("full_attention"),
        "sliding_attention": LayerKind("sliding_attention", window=window),
        "chunked_attention": LayerKind("chunked_attention", chunk=chunk),
    }
    recurrent = "create_recurrent_attention_mask" in source or (source != "" and "create_causal_mask" not in source)
    names = sorted(set(getattr(text, "layer_types", None) or ()))
    if names:
        attending = [name for name in names if name in known]
        return tuple(known[name] for name in attending), recurrent or len(attending) < len(names)
    # Without a list of layers all are alike.
    alike = "sliding_attention" if window else "chunked_attention" if chunk else "full_attention"
    return (() if recurrent else (known[alike],)), recurrent


def _sequence_only(text: Any, kinds: tuple[LayerKind, ...], recurrent: bool, source: str) -> str:
    attention = getattr(text, "attn_config", None)
    alibi = "alibi" in source and getattr(text, "alibi", getattr(attention, "alibi", True))
    if not source:
        return "its code is its own"
    if recurrent or not kinds:
        return "recurrent layers"
    if alibi:
        return "ALiBi"
    if "local" in (getattr(text, "attention_layers", None) or ()):
        return "windows of its own"  # GPT-Neo's are tables by column
    if len(kinds) > 1 and not re.search(r"isinstance\([^)]*mask[^)]*, dict\)", source):
        return "several kinds of layers and no mapping of masks"
    return ""


def _is_special(tokenizer: PreTrainedTokenizerBase, number: int) -> bool:
    added = getattr(tokenizer, "added_tokens_decoder", {}).get(number)
    return bool(getattr(added, "special", False))


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that the tokenizer puts before a text (GLM's are two)."""
    plain: list[int] = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole: list[int] = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    for first in range(len(whole) - len(plain) + 1):
        if whole[first : first + len(plain)] == plain:
            return whole[:first]
    special = set(tokenizer.all_special_ids)
    return whole[: next((i for i, number in enumerate(whole) if number not in special), 0)]


def check_tuning(config: BackboneConfig) -> None:
    """Refuse LoRA's settings that name what the backbone does not have; loads no weights.

    Raises:
        EgmfError: names it.
    """
    chosen = config.lora_targets != "all-linear" or config.lora_layers
    if config.tuning == "lora" and chosen and not config.trust_remote_code:
        with in_one_line(config.path, "layers"):
            model = without_weights(load_backbone_config(config), torch.float32)
        TUNINGS.find(config.tuning)(model, config)


def load_backbone(config: BackboneConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The causal LM, frozen but for what ``backbone.tuning`` trains.

    Under ZeRO-3 an ``HfDeepSpeedConfig`` must be alive, and every rank must call this: each weight is partitioned as it
    is loaded, read one by one where the model allows it (:mod:`egmf_dist.model.loading`).

    Args:
        config: where the model is and how its adapter looks.
        dtype: of its weights; an adapter's are fp32 until DeepSpeed casts them.

    Raises:
        EgmfError: the model cannot be loaded or tuned so.
    """
    # cuDNN's attention plans anew for every shape, and rows differ from batch to batch: on an H100 that was most of a
    # step (kernels/benchmarks/results/2026-11-27-*). The other kernels take any shape as it comes.
    torch.backends.cuda.enable_cudnn_sdp(False)
    disable_progress_bar()  # one bar per rank would drown the run's own
    attention = {} if config.attn_implementation == "auto" else {"attn_implementation": config.attn_implementation}
    options = attention | fitting.quantised(config, dtype)
    model = None
    with fitting.attention_named(config):
        if is_deepspeed_zero3_enabled():
            settings = load_backbone_config(config)
            if attention:
                settings._attn_implementation = config.attn_implementation
            model = load_by_tensor(config, settings, dtype)
        if model is None:
            model = _load("weights", AutoModelForCausalLM, config, dtype=dtype, **options)
    return fitted(model, config)


def fitted(model: PreTrainedModel, config: BackboneConfig) -> PreTrainedModel:
    """A backbone whose weights are there, in place: frozen, fitted as the settings say, and what is trained put in.

    Raises:
        EgmfError: it cannot be tuned or fitted so.
    """
    model.config.use_cache = False
    model.requires_grad_(False)
    if config.quantise != "none":
        fitting.keep_layout(model)
    if config.liger:
        fitting.use_liger(model, config)
    if config.gradient_checkpointing:
        fitting.checkpoint_layers(model, config)
    tune: Tuning = TUNINGS.find(config.tuning)
    return tune(model, config)


def embedding_rms(embedding: nn.Module, vocabulary: int) -> float:
    """Root mean square of what the embedding module gives for tokens spread over the vocabulary.

    The module's output and not its table: Gemma multiplies it by the square root of the width. Where ZeRO-3 has
    partitioned the table it is gathered for the moment.
    """
    weight: torch.Tensor = embedding.weight  # type: ignore[assignment]
    ids = torch.linspace(0, vocabulary - 1, min(vocabulary, _RMS_TOKENS), device=weight.device).long()

    def measure() -> float:
        with torch.no_grad():
            return float(embedding(ids[None]).float().pow(2).mean().sqrt())

    if not hasattr(weight, "ds_id"):
        return measure()
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([weight]):
        return measure()
