"""A ``.gguf`` file as a backbone: its weights unpacked once, its tokenizer beside them, in Hugging Face format.

transformers reads GGUF; unpacking takes a minute or two for some hundred million weights, so it is done once and not
at every start of a run. What the file says of itself (name, licence, SHA-256) stands in ``gguf.json``.

Invariant: the output folder appears whole or not at all.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from egmf_dist.config import BackboneConfig
from egmf_dist.errors import EgmfError
from egmf_dist.files import own_name, replace_folder, sync_tree, write_json, writing
from egmf_dist.model.backbone import read_capabilities
from egmf_shards.checksums import sha256
from egmf_shards.messages import unbroken

MAGIC = b"GGUF"
ORIGIN = "gguf.json"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_SAID = ("general.name", "general.license", "general.architecture", "general.size_label", "general.file_type")


def convert_gguf(file: Path, out: Path, dtype: Literal["bf16", "fp32"] = "bf16") -> dict[str, Any]:
    """Write the model and the tokenizer of a ``.gguf`` file as a folder that ``backbone.path`` can name.

    Args:
        file: the file, whole: of several parts, the one put together from them.
        out: folder to make, in Hugging Face format; it must not exist.
        dtype: of the weights written: half the bytes in bf16, which is what quantised weights are worth at most.

    Returns:
        What ``gguf.json`` in the folder holds: the file's own words, its SHA-256, what the model is.

    Raises:
        EgmfError: the file is missing, none, cut short or of a family that transformers does not read; the model cannot
            be a backbone; the folder exists or cannot be written. Nothing is left behind.
    """
    if out.exists() or out.is_symlink():
        raise EgmfError(f"{out}: exists already; name a folder that does not exist, or remove it first")
    said = _read_header(file)
    words = ", ".join(f"{name.partition('.')[2]} {value}" for name, value in said.items())
    print(f"{file}: {words}", flush=True)
    temporary = own_name(out)
    with writing(temporary, f"backbone {out}"):
        temporary.mkdir(parents=True)
        print("unpacking the weights: about a minute for some hundred million", flush=True)
        tokenizer, model = _load(file, DTYPES[dtype])
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        parameters = sum(p.numel() for p in model.parameters())
        # Before it has its name: a folder that stands is one that can be trained on.
        capabilities = read_capabilities(BackboneConfig(path=str(temporary)), tokenizer)
        origin = said | {
            "file": file.name,
            "sha256": sha256(file),
            "parameters": parameters,
            "dtype": dtype,
            "transformers": transformers.__version__,
            "gguf": importlib.metadata.version("gguf"),
        }
        write_json(temporary / ORIGIN, origin)
        sync_tree(temporary)
        replace_folder(temporary, out)
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"{out}: {capabilities.describe()}; {parameters:,} parameters, {size:,.0f} MB in {dtype}", flush=True)
    return origin


def _read_header(file: Path) -> dict[str, Any]:
    """What the file says of itself; refused before a weight is read: no file, another kind, one that ends early."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise EgmfError("reading .gguf files needs the package gguf; install it with: pip install gguf") from error
    try:
        with file.open("rb") as opened:
            magic = opened.read(len(MAGIC))
        size = file.stat().st_size
    except OSError as error:
        raise EgmfError(f"{file}: cannot be read ({error.strerror}); a .gguf file is needed") from error
    if magic != MAGIC:
        raise EgmfError(f"{file}: is no GGUF file (it begins with {magic!r}); a whole .gguf file is needed")
    try:
        reader = GGUFReader(file)
        end = max((int(t.data_offset + t.n_bytes) for t in reader.tensors), default=0)
        said = {name: reader.fields[name].contents() for name in _SAID if name in reader.fields}
    # A file that ends inside its header: numpy's views are cut short, and whatever counts on them fails.
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, TypeError) as error:
        kind = type(error).__name__
        raise EgmfError(f"{file}: its header is damaged or cut short ({kind}); fetch it again") from error
    if not end:
        raise EgmfError(f"{file}: holds no weights (a vocabulary alone?); a whole model is needed")
    if end > size:
        raise EgmfError(f"{file}: {size:,} bytes, but its weights end at {end:,}: it was cut short; fetch it again")
    return said


def _load(file: Path, dtype: torch.dtype) -> tuple[Any, PreTrainedModel]:
    """Tokenizer and model, unpacked."""
    whole = {"gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **whole)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=dtype, quantization_config=transformers.GgufConfig(dequantize=True), **whole
        )
    except (ValueError, KeyError, NotImplementedError, RuntimeError, OSError, ImportError, AttributeError) as error:
        reason = unbroken(str(error))[:300]
        raise EgmfError(f"{file}: transformers cannot read it ({type(error).__name__}: {reason})") from error
    return tokenizer, model
