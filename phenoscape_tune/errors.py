"""The exceptions that end a command with one message, and a call in Python by being raised."""


class UserError(Exception):
    """A fault of the user's input (file, key, value, folder).

    The message is shown as it stands, without a traceback, and the command exits with code 2; it therefore
    names the file or key, the value, and the remedy.
    """


class NoResult(Exception):
    """A run or search began and came to no result: it diverged, ran out of memory, lost a process, filled a disk.

    The message is shown as it stands, without a traceback, and the command exits with code 1; it says why, and how to
    go on.
    """


class NoSpaceLeft(NoResult):
    """A disk is full: the message names the folder that was written to. What was written before is whole.

    Shown with the command that goes on; exit code 1.
    """


class Interrupted(KeyboardInterrupt):
    """A run or search was interrupted, in order; the message is how to go on. Exit code 130."""
