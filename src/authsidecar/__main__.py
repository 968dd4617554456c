"""`python -m authsidecar` is `authsidecar`."""

from authsidecar.cli import main

main()
