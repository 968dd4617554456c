"""`python newer_aiohttp.py serve`: a sidecar with an aiohttp that nobody has tested."""

import sys

import aiohttp

if __name__ == "__main__":
    aiohttp.__version__ = "3.99.0"
    sys.modules["authsidecar.serving.connection"] = None  # to import it would raise
    from authsidecar.cli import main

    main()
