"""The errors of the tool that are the user's to mend: one line that says what to do."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line and says what to do."""


class DivergedError(InputError):
    """The loss left the finite numbers: it would again, on every machine."""


class InterruptedRunError(Exception):
    """Training was stopped from outside (Ctrl-C, SIGTERM); the message says how to go on."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
