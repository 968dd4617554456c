"""What ends a command early; main.py says it in one line and chooses the exit code."""


class RefusedError(Exception):
    """Refused, or failed: exit code 1. The message says why and what to do."""


class MisconfiguredError(Exception):
    """The configuration cannot be used: exit code 2.

    Attributes:
        problems: one line each.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
