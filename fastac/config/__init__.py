"""The trainer's settings: frozen dataclasses by section, recipes as TOML, and the command line.

A key has one name everywhere: the field of a section, the TOML key in that section, and `--key value` on the command
line (dashes or underscores). Names are unique across sections. Where timm's train.py has the key, the name is timm's.
"""

from fastac.config.command_line import CommandLine, parse_command_line
from fastac.config.files import (
    load_config,
    read_config,
    read_recipe,
    recipe_names,
    resumed_config,
    variant_names,
    write_config,
)
from fastac.config.sections import DataConfig, LossConfig, ModelConfig, OptimizerConfig, RunConfig
from fastac.config.settings import SECTIONS, Config

__all__ = [
    "SECTIONS",
    "CommandLine",
    "Config",
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "load_config",
    "parse_command_line",
    "read_config",
    "read_recipe",
    "recipe_names",
    "resumed_config",
    "variant_names",
    "write_config",
]
