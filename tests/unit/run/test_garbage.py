"""The garbage collector of a process that serves, in a process of its own."""

import subprocess
import sys

import pytest

PROGRAM = """
import gc
from authsidecar.run import garbage

try:
    with garbage.none_of_imports():
        assert not gc.isenabled()
        {body}
except ImportError:
    pass
print(gc.isenabled(), gc.get_freeze_count() > 1000, gc.get_threshold()[0] == garbage.YOUNG)

class Node:
    pass

for _ in range(3 * garbage.YOUNG):
    node = Node()
    node.itself = node
print(sum(isinstance(one, Node) for one in gc.get_objects()) < 2 * garbage.YOUNG)
"""


@pytest.mark.parametrize("body", ["import json", "import no_such_module"])
def test_what_is_imported_is_left_out_and_what_is_new_is_collected(body: str) -> None:
    """Whether the imports succeed or not."""
    command = [sys.executable, "-c", PROGRAM.format(body=body)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True"] * 4
