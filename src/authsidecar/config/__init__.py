"""The configuration: what may be set, where it is read, and what is said if it can't be used."""

from authsidecar.config.advice import warnings
from authsidecar.config.catalogue import values_of
from authsidecar.config.describe import example, json_schema, reference
from authsidecar.config.loading import (
    DEFAULT_FILE,
    ConfigError,
    has_file,
    load,
    load_again,
    reread,
)
from authsidecar.config.sections import Settings, default_data_dir
from authsidecar.config.values import ListenAddress

__all__ = [
    "DEFAULT_FILE",
    "ConfigError",
    "ListenAddress",
    "Settings",
    "default_data_dir",
    "example",
    "has_file",
    "json_schema",
    "load",
    "load_again",
    "reference",
    "reread",
    "values_of",
    "warnings",
]
