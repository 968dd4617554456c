"""Print docs/reference/scenarios.md."""

import sys

from tests.e2e.scenarios import page

sys.stdout.write(page())
