"""The command line: `authsidecar COMMAND`."""

from authsidecar.cli.main import main

__all__ = ["main"]
