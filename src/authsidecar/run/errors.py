"""Why the sidecar cannot start."""


class StartError(Exception):
    """The sidecar cannot start; one line that says what to change."""


class AwayError(StartError):
    """Redis does not answer, or not as it should; it may soon.

    Attributes:
        kind: the closed kind of what went wrong.
    """

    def __init__(self, problem: str, kind: str) -> None:
        super().__init__(problem)
        self.kind = kind
