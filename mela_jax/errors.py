"""What ends a run early with one line for its user, and no traceback."""

import signal


class UserError(Exception):
    """A mistake by the user or the machine, which a command reports in one line.

    The message says what is wrong, where, and what to do; the exit status is not 0.
    """


class Stopped(UserError):
    """The run was asked to stop, by the signal `signum`, and has saved where it is."""

    def __init__(self, message: str, signum: int = signal.SIGTERM):
        super().__init__(message)
        self.signum = signum
