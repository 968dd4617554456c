"""What ends a command early; main.py says it in one line and chooses the exit code."""


class RefusedError(Exception):
    """Refused, or failed: exit code 1. The message says why and what to do.

    Attributes:
        problems: what was found on the way to it, one line each.
    """

    def __init__(self, message: str, *problems: str) -> None:
        super().__init__(message)
        self.problems = problems


class OutputError(RefusedError):
    """What a command has to say can't be written: exit code 1, whatever else it did.

    Attributes:
        left: its reader has ended (`| head`), which is no news to whoever ended it.
    """

    def __init__(self, why: str, *, left: bool = False) -> None:
        super().__init__(f"standard output can't be written: {why}")
        self.left = left


class MisconfiguredError(Exception):
    """The configuration cannot be used: exit code 2.

    Attributes:
        problems: one line each.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
