"""The command line: `authsidecar COMMAND`, a module for each noun."""

from authsidecar.cli.main import main

__all__ = ["main"]
