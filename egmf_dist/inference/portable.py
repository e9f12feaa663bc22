"""A trained model as a folder to hand on: what loading it needs and nothing of the run, the shards or the optimiser.

::

    DIR/egmf.json              settings, tasks, feature statistics, the backbone's identity, where it comes from
    DIR/fusion.safetensors     encoders, experts, gate, pseudo tokens
    DIR/adapter/               PEFT's own folder of LoRA's matrices; where there are any
    DIR/tuned.safetensors      what another tuning of one's own has trained of the LLM
    DIR/backbone/              the LLM with its changes in it; where it was trained whole, or merging was asked for
    DIR/README.md              the model card

Written from a run's best adapter without a weight of the backbone being read, but for ``backbone/``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from egmf_dist.config import Config
from egmf_dist.data.run_data import RunData
from egmf_dist.errors import EgmfError
from egmf_dist.formats import read_stamped, stamped
from egmf_dist.model.identity import backbone_identity
from egmf_dist.model.precision import dtype_of
from egmf_dist.model.trained import fill_parameters, trained_parameters
from egmf_shards.checksums import sha256

DESCRIPTION, FUSION, TUNED = "egmf.json", "fusion.safetensors", "tuned.safetensors"
ADAPTER, BACKBONE, CARD = "adapter", "backbone", "README.md"
LLM = "backbone."
"""What the names of the LLM's own parameters begin with."""
_SECTIONS = ("data", "prompt", "backbone", "model", "evaluation")
"""Settings that an answer depends on."""
_LEFT_OUT = {
    "data": ("shards", "weights", "cache_dir"),
    # Speed and memory of the machine that trained it: who answers on a laptop has no GPU for them.
    "backbone": ("liger", "gradient_checkpointing", "attn_implementation"),
}


@dataclass(frozen=True)
class Portable:
    """What such a folder says."""

    config: Config
    data: RunData
    folder: Path
    description: Mapping[str, Any]


def is_portable(folder: Path) -> bool:
    """Whether a folder was written by :func:`write_portable`."""
    return (folder / DESCRIPTION).is_file()


def described(config: Config, about: Mapping[str, Any]) -> dict[str, Any]:
    """What ``egmf.json`` holds, but for the files' hashes.

    Args:
        config: the run's settings.
        about: the adapter's description.
    """
    sections = {
        name: {key: value for key, value in asdict(config)[name].items() if key not in _LEFT_OUT.get(name, ())}
        for name in _SECTIONS
    }
    return {
        "config": sections,
        "precision": config.training.precision,
        "data": about["data"],
        "backbone": about.get("identity", {}).get("backbone"),
        "trained": {name: about[name] for name in ("step", "score", "selected_by") if name in about},
        "seed": config.training.seed,
        "calibration": about.get("calibration") or {},
    }


def read_portable(folder: Path, backbone: str | None = None, trust_code: bool = False) -> Portable:
    """Settings and data of a folder, its files' hashes compared.

    Args:
        folder: of :func:`write_portable`.
        backbone: where the LLM lies now; None: as the folder says, or inside it.
        trust_code: code that the folder names may run: modules of one's own, an LLM's own files.

    Raises:
        EgmfError: it is none, a file is missing or damaged, the LLM is another than it was trained with, or code would
            run that nobody trusts.
    """
    if not is_portable(folder):
        raise EgmfError(f"{folder}: no {DESCRIPTION} in it; give a folder that egmf export wrote, or a run's")
    found = read_stamped(folder / DESCRIPTION)
    try:
        hashes, sections, precision = found["sha256"], found["config"], found["precision"]
        data = RunData.from_json(found["data"])
        config = _config(sections, precision)
    except (KeyError, TypeError, AttributeError) as error:
        raise EgmfError(f"{folder / DESCRIPTION}: is malformed ({error!r}); export the run again") from error
    for name, right in hashes.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise EgmfError(f"{folder / DESCRIPTION}: names {name!r}, which is not in the folder; export the run again")
        if not path.is_file():
            raise EgmfError(f"{path} is missing; put it back from a copy, or export the run again")
        if sha256(path) != right:
            raise EgmfError(f"{path} is damaged: its hash is not the one in {DESCRIPTION}; export the run again")
    if not trust_code:
        _refuse_code(config, folder)
    own = config.backbone
    if (folder / BACKBONE).is_dir():
        inside = replace(own, path=str(folder / BACKBONE), revision=None, tuning="frozen", quantise="none")
        return Portable(replace(config, backbone=inside), data, folder, found)
    then = found.get("backbone")
    if backbone is not None:
        own = replace(own, path=backbone, revision=None)
    elif isinstance(then, dict) and then.get("commit"):
        own = replace(own, revision=then["commit"])  # the hub may have a newer one by now
    config = replace(config, backbone=own)
    check_backbone(config, then, str(folder), "load(..., backbone=FOLDER)")
    return Portable(config, data, folder, found)


def _refuse_code(config: Config, folder: Path) -> None:
    """A folder that was handed on must not run what it names unless the user says so."""
    parts = {"model.fusion": config.model.fusion, "backbone.tuning": config.backbone.tuning}
    named = [f"{key} {value!r}" for key, value in parts.items() if ":" in value]
    if config.backbone.trust_remote_code:
        named.append("the LLM's own code")
    if named:
        raise EgmfError(
            f"{folder}: loading it would run {' and '.join(named)}; look at that code, then load(..., trust_code=True) "
            "or egmf predict --trust-code"
        )


def _config(sections: Mapping[str, Any], precision: Any) -> Config:
    """Settings out of JSON, without the command line's parser: a place that only answers needs none."""
    usual = Config()
    made: dict[str, Any] = {"training": replace(usual.training, precision=precision, zero_stage=1)}
    for name in _SECTIONS:
        # What is left out of an export is left out of a foreign one, too: an implementation of attention by the name of
        # a hub's kernel would be fetched and run.
        said = {key: value for key, value in sections[name].items() if key not in _LEFT_OUT.get(name, ())}
        made[name] = replace(getattr(usual, name), **said)
    return replace(usual, **made)


def check_backbone(config: Config, then: Any, where: str, option: str) -> None:
    """Refuse another LLM than the one that something was trained with.

    Args:
        config: says where the LLM lies now.
        then: its identity when it was trained; None where that is not known.
        where: what was trained, for the message.
        option: how to say where it lies.

    Raises:
        EgmfError: it is not there, or another.
    """
    path = config.backbone.path
    if not isinstance(then, dict):
        return
    if "sha256" in then and not Path(path).is_dir():
        raise EgmfError(f"{where}: its LLM is not at {path!r}; say where it lies: {option}; or export it with --merge")
    now = backbone_identity(config.backbone)
    common = then.keys() & now.keys() - {"path", "revision"}
    odd = sorted(name for name in common if then[name] != now[name])
    if odd or not common:
        raise EgmfError(
            f"{where}: {path!r} is another LLM than it was trained with ({', '.join(odd) or 'another kind'})"
        )


def write_portable(
    folder: Path, config: Config, about: Mapping[str, Any], weights: Mapping[str, torch.Tensor], merge: bool
) -> dict[str, Any]:
    """Fill a new folder; see the module.

    Args:
        folder: is there and empty.
        config: the run's settings, the places in which the LLM lies now among them.
        about: the adapter's description.
        weights: what was trained, whole, by the model's names.
        merge: also write the LLM with its changes in it.

    Returns:
        What ``egmf.json`` holds.

    Raises:
        EgmfError: the LLM cannot be read.
    """
    own = {name.removeprefix(LLM): w for name, w in weights.items() if name.startswith(LLM)}
    tuning = config.backbone.tuning
    if merge and (tuning not in ("lora", "frozen", "full") or config.backbone.quantise != "none"):
        what = f"backbone.tuning {tuning!r}" if config.backbone.quantise == "none" else "weights of four bits"
        raise EgmfError(f"--merge: {what} cannot be merged into an LLM without loss; leave it out")
    save_file({name: w for name, w in weights.items() if not name.startswith(LLM)}, folder / FUSION)
    if own and tuning == "lora":
        _write_adapter(folder / ADAPTER, config, own)
    elif own and tuning != "full":
        save_file(own, folder / TUNED)
    if merge or (own and tuning == "full"):
        _write_backbone(folder / BACKBONE, config, own)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    description = described(config, about) | {
        "sha256": {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    }
    text = json.dumps(stamped(description), ensure_ascii=False, indent=1)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    return description


def _write_adapter(folder: Path, config: Config, own: Mapping[str, torch.Tensor]) -> None:
    """As PEFT itself writes it, from a model without weights."""
    from peft import get_peft_model_state_dict

    from egmf_dist.model.backbone import load_backbone_config
    from egmf_dist.model.loading import without_weights
    from egmf_dist.model.tuning.lora import lora

    model: Any = lora(without_weights(load_backbone_config(config.backbone), torch.float32), config.backbone)
    folder.mkdir()
    settings = model.peft_config["default"]
    settings.base_model_name_or_path, settings.inference_mode = config.backbone.path, True
    # PEFT keeps names of modules as sets, and writes them in the order of this process's hashes: the file, whose hash
    # is part of a model's identity, would be another one each time.
    for name, value in vars(settings).items():
        if isinstance(value, set | frozenset):
            setattr(settings, name, sorted(value))
    settings.save_pretrained(str(folder))
    tensors = get_peft_model_state_dict(model, state_dict=dict(own), save_embedding_layers=False)
    save_file({name: w.contiguous() for name, w in tensors.items()}, folder / "adapter_model.safetensors")


def _write_backbone(folder: Path, config: Config, own: Mapping[str, torch.Tensor]) -> None:
    from egmf_dist.model.backbone import load_backbone, load_tokenizer

    model: Any = load_backbone(config.backbone, dtype_of(config.training.precision))
    _fill(model, own, folder)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.save_pretrained(folder)
    load_tokenizer(config.backbone).save_pretrained(folder)


def load_weights(model: nn.Module, portable: Portable) -> None:
    """Fill a model's trained parameters from the folder.

    Raises:
        EgmfError: names or shapes are not this model's.
    """
    weights = _read(portable.folder / FUSION)
    if (portable.folder / TUNED).is_file():
        weights |= {f"{LLM}{name}": w for name, w in _read(portable.folder / TUNED).items()}
    adapter = portable.folder / ADAPTER / "adapter_model.safetensors"
    if adapter.is_file() and portable.config.backbone.tuning == "lora":
        # The names that PEFT saves are a parameter's without the adapter's own.
        saved = _read(adapter)
        for name in trained_parameters(model):
            short = name.removeprefix(LLM).replace(".default", "")
            short = short.removesuffix(".weight") if "lora_magnitude_vector" in short else short
            if name.startswith(LLM) and short in saved:
                weights[name] = saved[short]
    _fill(model, weights, portable.folder)


def _fill(model: nn.Module, weights: Mapping[str, torch.Tensor], where: Path) -> None:
    shapes = {name: list(weight.shape) for name, weight in weights.items()}
    fill_parameters(model, shapes, weights.__getitem__, where)


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise EgmfError(f"{path}: cannot be read: {error}; export the run again") from error
