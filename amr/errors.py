"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
    """Bad input: a config key, a file, a clip, a checkpoint.

    The message is one line that names what is wrong and what is allowed. The command line prints it and exits with
    status 2; from Python it is an ordinary `ValueError`.
    """
