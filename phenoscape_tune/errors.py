"""The one exception that means: the user's input is wrong, and here is what to write instead."""


class UserError(Exception):
    """A fault of the user's input (file, key, value, folder).

    The message is shown as it stands, without a traceback, and the command exits with code 2; it therefore
    names the file or key, the value, and the remedy.
    """
