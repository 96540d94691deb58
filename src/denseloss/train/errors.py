"""How a run ends early."""

from denseloss.data.errors import InputError


class DivergedError(InputError):
    """The loss left the finite numbers: it would again, on every machine.

    Args:
        what: Which term, and when.
        lr: The learning rate.
    """

    def __init__(self, what: str, *, lr: float) -> None:
        super().__init__(
            f"{what}. Likely causes: a learning rate that is too high (it was {lr:g}: try --lr "
            f"{lr / 10:g}), or labels beyond the classes (look with `denseloss check`). This run "
            "is not finished; choose another --out for the next"
        )
        self.what = what
        self.lr = lr


class InterruptedRunError(Exception):
    """Training was stopped from outside (Ctrl-C, SIGTERM); the message says how to go on."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
