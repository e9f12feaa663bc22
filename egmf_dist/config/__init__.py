"""Settings: the schema, its validation, and reading and writing YAML."""

from egmf_dist.config.check import check_config
from egmf_dist.config.load import (
    add_config_arguments,
    config_from_dict,
    config_from_namespace,
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
    TrainingConfig,
)

__all__ = [
    "BackboneConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "LaunchConfig",
    "ModelConfig",
    "TrainingConfig",
    "add_config_arguments",
    "check_config",
    "config_from_dict",
    "config_from_namespace",
    "dump_config",
    "load_config",
    "load_run_config",
    "read_directory",
]
