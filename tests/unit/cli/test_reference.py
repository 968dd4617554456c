"""The page about the command line is about this command line."""

import json
import re
from pathlib import Path

from authsidecar.admin.token_import import parse
from authsidecar.cli.reference import MARK, reference
from authsidecar.times import UnixMs

PAGE = Path(__file__).parents[3] / "docs/reference/cli.md"


def test_page_has_every_command_as_it_is():
    """If this fails: `python -m authsidecar.cli.reference docs/reference/cli.md`."""
    assert PAGE.read_text().partition(MARK)[2] == "\n" + reference()


def test_line_to_import_in_the_page_can_be_imported():
    """The example is a good line."""
    (text,) = re.findall(r"```json\n(.*)\n```", PAGE.read_text())
    assert parse(text.encode(), UnixMs(0)).id == json.loads(text)["id"]
