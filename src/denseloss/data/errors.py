"""The errors that are the user's to mend: one line that says what to do."""


class DataError(Exception):
    """Bad data; the message is one line, names the file and says what to do."""

    def __init__(self, message: str) -> None:
        # A DataLoader raises a worker's exception anew with the worker's whole traceback as its
        # message; the one line for the user is the last of it.
        if "Original Traceback" in message:
            message = message.rstrip().rpartition("DataError: ")[2]
        super().__init__(message)


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line and says what to do."""
