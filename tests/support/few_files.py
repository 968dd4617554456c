"""`python few_files.py SOFT HARD serve`: the sidecar under `ulimit -n`."""

import resource
import sys

from authsidecar.cli import main

if __name__ == "__main__":
    limits = int(sys.argv.pop(1)), int(sys.argv.pop(1))
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    main()
