"""What ends a run early with one line for its user, and no traceback."""


class UserError(Exception):
    """A mistake of the user's, or of the machine's, that a command tells in one line.

    The message says what is wrong, where, and what to do; the exit status is not 0.
    """


class Stopped(UserError):
    """The run was asked to stop (SIGTERM or Ctrl-C) and has saved where it is."""
