"""Settings: the schema, its validation, and reading and writing YAML."""

from egmf_dist.config.check import check_config, without_effect
from egmf_dist.config.given import AllSettings, SomeSettings
from egmf_dist.config.load import (
    config_from_dict,
    dump_config,
    load_config,
    load_run_config,
    read_directory,
)
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
    "dump_config",
    "load_config",
    "load_run_config",
    "read_directory",
    "without_effect",
]
