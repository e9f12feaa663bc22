"""Settings: the schema, its validation, and reading and writing YAML.

What reads YAML and the command line is imported when it is first asked for: a model that is used needs neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from egmf_dist.config.check import check_config, without_effect
from egmf_dist.config.schema import (
    BackboneConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LaunchConfig,
    LoggingConfig,
    ModelConfig,
    ObjectiveConfig,
    PromptConfig,
    TrainingConfig,
)
from egmf_shards.lazy import importing

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

__getattr__, __dir__ = importing(
    __name__,
    {
        "given": ("AllSettings", "SomeSettings"),
        "load": (
            "config_from_dict",
            "config_from_saved",
            "dump_config",
            "load_config",
            "load_run_config",
            "read_directory",
        ),
    },
)

__all__ = [
    "AllSettings",
    "BackboneConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "LaunchConfig",
    "LoggingConfig",
    "ModelConfig",
    "ObjectiveConfig",
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
