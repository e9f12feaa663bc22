"""Settings: the schema, its validation, and reading and writing YAML.

What reads YAML and the command line is imported when it is first asked for: a model that is used needs neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from egmf_dist.config.check import check_config, without_effect
from egmf_dist.config.schema import (
    BackboneConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LaunchConfig,
    ModelConfig,
    PromptConfig,
    TrainingConfig,
)

if TYPE_CHECKING:
    from egmf_dist.config.given import AllSettings, SomeSettings
    from egmf_dist.config.load import (
        config_from_dict,
        config_from_saved,
        dump_config,
        load_config,
        load_run_config,
        read_directory,
    )

_MODULE = {
    "AllSettings": "given",
    "SomeSettings": "given",
    "config_from_dict": "load",
    "config_from_saved": "load",
    "dump_config": "load",
    "load_config": "load",
    "load_run_config": "load",
    "read_directory": "load",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
    globals()[name] = value
    return value


__all__ = [
    "AllSettings",
    "BackboneConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "LaunchConfig",
    "ModelConfig",
    "PromptConfig",
    "SomeSettings",
    "TrainingConfig",
    "check_config",
    "config_from_dict",
    "config_from_saved",
    "dump_config",
    "load_config",
    "load_run_config",
    "read_directory",
    "without_effect",
]
