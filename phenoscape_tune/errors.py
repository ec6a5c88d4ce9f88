"""The exceptions that end a command with one message: a fault of the user's input, and a disk that is full."""


class UserError(Exception):
    """A fault of the user's input (file, key, value, folder).

    The message is shown as it stands, without a traceback, and the command exits with code 2; it therefore
    names the file or key, the value, and the remedy.
    """


class NoSpaceLeft(Exception):
    """A disk is full: the message names the folder that was written to. What was written before is whole.

    Shown as it stands, with the command that goes on; exit code 1.
    """
