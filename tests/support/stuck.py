"""`python stuck.py serve`: a sidecar whose main thread SIGALRM holds up for good."""

import signal
import time

from authsidecar.cli import main

if __name__ == "__main__":
    signal.signal(signal.SIGALRM, lambda *_: time.sleep(600))
    main()
