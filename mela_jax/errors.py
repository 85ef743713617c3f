"""What ends a run early with one line for its user, and no traceback."""


class UserError(Exception):
    """A mistake of the user's, or of the machine's, with its remedy in the message.

    Command lines print the message as a single line and exit with a non-zero
    status; they never show a traceback for it. The message says what is wrong,
    where, and what to do.
    """


class Stopped(UserError):
    """The run was asked to stop (SIGTERM or Ctrl-C) and has saved where it is."""
