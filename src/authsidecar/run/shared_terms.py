"""The terms that a supervisor hands to the workers that it has started."""

import os
import pickle
import struct
import tempfile
from hashlib import sha256
from typing import Final, cast

from authsidecar.run.shared_memory import directory
from authsidecar.run.terms import Terms

_HEAD: Final = struct.Struct("!32sQ")


class SharedTerms:
    """A file without a name that the processes share which were forked after it was made."""

    def __init__(self) -> None:
        """There are none yet."""
        self._file = tempfile.TemporaryFile(dir=directory())  # noqa: SIM115  # open to the end

    def close(self) -> None:
        """Give the file up; the system does so at the end of the last process that has it."""
        self._file.close()

    def put(self, terms: Terms) -> None:
        """Hand these over; whoever reads meanwhile gets none, and is to be told afterwards."""
        body = pickle.dumps(terms)
        descriptor = self._file.fileno()
        os.pwrite(descriptor, body, _HEAD.size)
        os.pwrite(descriptor, _HEAD.pack(sha256(body).digest(), len(body)), 0)

    def get(self) -> Terms | None:
        """The last ones that were handed over; None: there are none, or half of them."""
        descriptor = self._file.fileno()
        head = os.pread(descriptor, _HEAD.size, 0)
        if len(head) < _HEAD.size:
            return None
        digest, length = _HEAD.unpack(head)
        body = os.pread(descriptor, length, _HEAD.size)
        if sha256(body).digest() != digest:
            return None
        return cast(Terms, pickle.loads(body))  # noqa: S301  # only the supervisor writes it
