"""A backbone's weights under ZeRO-3, one tensor at a time: no rank ever holds the whole model.

transformers reads the whole checkpoint on rank 0 and partitions it then. Here the model is made partitioned, and each
tensor goes from its file through rank 0 to all ranks before the next is read.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from egmf_dist import distributed
from egmf_dist.config import BackboneConfig
from egmf_dist.errors import EgmfError, MachineError, is_machines

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Buffers that older checkpoints hold and the models compute themselves by now.
_COMPUTED = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_AT_ONCE = 2**17
"""glibc's own first values: a block from this size on goes back to the system when it is freed."""
_USUAL = {_M_MMAP_THRESHOLD: 2**25, _M_TRIM_THRESHOLD: 2**26}
"""What glibc raises both to by itself where large blocks are freed; once they are set it leaves them alone."""


@contextlib.contextmanager
def in_one_line(path: str, what: str, where: str = "") -> Iterator[None]:
    """What reading a backbone raises, as one line.

    Args:
        path: of the backbone.
        what: is read of it, in the plural or singular that "cannot be loaded" follows.
        where: the file, where one of several is at fault.

    Raises:
        EgmfError: the body raised what a missing, damaged or unfit file leads to.
        MachineError: the machine, or its file server, did not give a file.
    """
    try:
        yield
    except (OSError, ValueError, SafetensorError, UnpicklingError, EOFError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if where and where not in reason:
            reason = f"{where}: {reason}"
        kind = MachineError if is_machines(error) else EgmfError
        raise kind(f"backbone {path!r}: its {what} cannot be loaded: {reason}") from error


class _Plan(NamedTuple):
    """What is read, the same on every rank."""

    files: dict[str, Path]
    """The file of each tensor that the model has, in the order of reading."""
    missing: set[str]
    """Names that the checkpoint leaves out because they are tied to another one."""


def load_by_tensor(config: BackboneConfig, settings: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel | None:
    """The backbone with its weights partitioned over the ranks; every rank must call this.

    An ``HfDeepSpeedConfig`` of stage 3 must be alive: by it transformers makes the model partitioned.

    Args:
        config: where the model is.
        settings: its own configuration.
        dtype: of its weights.

    Returns:
        What ``from_pretrained`` gives, bit for bit; None where only that can load it: another format than safetensors,
        a hub id that cannot be fetched, code of its own, quantised weights, or names that it translates.

    Raises:
        EgmfError: on every rank, a file is missing or damaged, or a tensor does not have the model's shape.
    """
    plan: _Plan | None = distributed.on_rank_zero(lambda: _plan(config, settings, dtype))
    if plan is None:
        return None
    with _memory_given_back():
        model = partitioned(settings, dtype)
        # Before it is filled, so that a tied table does not stand there twice.
        model.tie_weights(missing_keys=set(plan.missing), recompute_mapping=False)
        tied = model.all_tied_weights_keys.items()
        twice = {name for name, source in tied if name in plan.files and source in plan.files}
        named = _named(model)
        for name, file in plan.files.items():
            if name not in twice:
                _fill(named[name], name, file, config.path)
        # Everything that a file can hold is there. What is left are buffers that none holds, such as rotary tables.
        for name in model.state_dict():
            named[name]._is_hf_initialized = True
        model.initialize_weights()
    return model.eval()


def _plan(config: BackboneConfig, settings: PreTrainedConfig, dtype: torch.dtype) -> _Plan | None:
    """Compare the checkpoint's names and shapes with the model's before anything is made; None as above."""
    folder = None if config.trust_remote_code else _folder(config)
    if folder is None or not _plain(folder, settings):
        return None
    shapes: dict[str, list[int]] = {}
    files: dict[str, Path] = {}
    for file in _files(folder, config.path):
        with in_one_line(config.path, "weights", file.name), safe_open(file, framework="pt") as saved:
            for name in saved.keys():  # noqa: SIM118
                shapes[name], files[name] = saved.get_slice(name).get_shape(), file
    if not files:
        return None
    with in_one_line(config.path, "weights"):
        model = without_weights(settings, dtype)
    own = model.state_dict()
    missing = own.keys() - files.keys()
    named = _named(model)
    if not own.keys() <= named.keys() or not missing <= _tied(model, files) or _translated(model, files):
        return None
    for name, shape in shapes.items():
        if name in own and shape != list(own[name].shape):
            with in_one_line(config.path, "weights", files[name].name):
                raise ValueError(f"{name} is {shape}, by config.json it is {list(own[name].shape)}")
    return _Plan({name: file for name, file in files.items() if name in own}, missing)


def _folder(config: BackboneConfig) -> Path | None:
    """Where the model's files lie; a hub id's are fetched into the hub's cache, on rank 0, which alone reads them."""
    if Path(config.path).is_dir():
        return Path(config.path)
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "model*.safetensors"]
    try:
        return Path(snapshot_download(config.path, revision=config.revision, allow_patterns=wanted))
    except (OSError, ValueError):  # from_pretrained meets the same, and says it
        return None


def _plain(folder: Path, settings: PreTrainedConfig) -> bool:
    """Whether ``from_pretrained`` would read the two usual names in this folder and change nothing about the model."""
    if not folder.is_dir() or (folder / "adapter_config.json").exists() or any(folder.glob("shard-*-model-*")):
        return False
    parts = (settings, settings.get_text_config())
    special = ("quantization_config", "fusion_config", "transformers_weights")
    return not type(settings).extra_files and not any(getattr(p, name, None) for p in parts for name in special)


def _files(folder: Path, path: str) -> list[Path]:
    """The checkpoint's files, in the order in which transformers reads them; none where it is no safetensors. ``path``
    is what the settings call it."""
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    if not (folder / _INDEX).is_file():
        return []
    with in_one_line(path, "weights", _INDEX):
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise ValueError("it has no weight_map")
        return [folder / file for file in sorted(set(places.values()))]


def without_weights(settings: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model's names and shapes: on the meta device, as transformers makes one that it fills without DeepSpeed."""
    from transformers import initialization
    from transformers.modeling_utils import local_torch_dtype, set_zero3_state

    with (
        local_torch_dtype(dtype),
        initialization.no_tie_weights(),
        initialization.no_init_weights(),
        torch.device("meta"),
        initialization.meta_device_safe_creation_ops(),
        set_zero3_state(),  # or it would be partitioned
    ):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(settings), dtype=dtype)
    return model


def partitioned(settings: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model under ``zero.Init``, its weights not filled yet, made in the contexts that ``from_pretrained`` uses."""
    with contextlib.ExitStack() as stack:
        for context in PreTrainedModel.get_init_context(dtype, False, False, None):
            stack.enter_context(context)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(settings), dtype=dtype)
    return model


def _named(model: PreTrainedModel) -> dict[str, Any]:
    """Parameters and buffers under every name they have."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def _tied(model: PreTrainedModel, files: Mapping[str, Path]) -> set[str]:
    """Names that a checkpoint may leave out: it holds another one of the same weight."""
    groups: dict[str, set[str]] = {}
    for name, source in model.all_tied_weights_keys.items():
        groups.setdefault(source, {source}).add(name)
    return {name for group in groups.values() if group & files.keys() for name in group}


def _translated(model: PreTrainedModel, files: Mapping[str, Path]) -> bool:
    """Whether transformers renames or converts a tensor of the checkpoint, or has to say that one is left over."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    changes = get_model_conversion_mapping(model)
    if any(change.rename_source_key(name) != (name, None) for change in changes for name in files):
        return True
    expected = [re.compile(pattern) for pattern in (*_COMPUTED, *(model._keys_to_ignore_on_load_unexpected or ()))]
    left_over = files.keys() - model.state_dict().keys()
    return not all(any(pattern.search(name) for pattern in expected) for name in left_over)


def _fill(own: torch.Tensor, name: str, file: Path, path: str) -> None:
    """One parameter or buffer from its file: rank 0 reads, all take their part."""
    from deepspeed.runtime.zero import GatheredParameters

    if not hasattr(own, "ds_id"):
        whole = distributed.on_rank_zero(lambda: _read(name, file, path))
        with torch.no_grad():
            own.copy_(whole)
        return
    tensor = None
    # The others must hear of a file that cannot be read before they wait in the gathering.
    with distributed.failing_together():
        if distributed.rank() == 0:
            tensor = _read(name, file, path)
    with GatheredParameters([own], modifier_rank=0), torch.no_grad():
        if tensor is not None:
            own.copy_(tensor)


def _read(name: str, file: Path, path: str) -> torch.Tensor:
    """One tensor. The file is opened for it alone, so that no pages of what was read before stay with the process."""
    with in_one_line(path, "weights", file.name), safe_open(file, framework="pt") as saved:
        try:
            tensor: torch.Tensor = saved.get_tensor(name)
        except (RuntimeError, MemoryError) as error:  # torch's own, as where a file cannot be mapped
            raise ValueError(str(error) or type(error).__name__) from error
        return tensor


@contextlib.contextmanager
def _memory_given_back() -> Iterator[None]:
    """Inside, glibc gives freed blocks back to the system at once.

    Otherwise it keeps those of up to 32 MiB to use them again, and between the parts that stay, the gathered tensors
    leave gaps as large as the model. What the environment sets stays as it is.
    """
    environment = " ".join((*os.environ, os.environ.get("GLIBC_TUNABLES", "")))
    tuned = re.search(r"(MALLOC_|malloc\.)(mmap|trim)_threshold", environment, re.IGNORECASE)
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or tuned:
        yield
        return
    mallopt = ctypes.CDLL(None).mallopt
    for which in _USUAL:
        mallopt(which, _AT_ONCE)
    try:
        yield
    finally:
        for which, size in _USUAL.items():
            mallopt(which, size)
