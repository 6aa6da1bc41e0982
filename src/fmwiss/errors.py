"""The one exception that a user is meant to see."""


class UserError(Exception):
    """Something the user gave is wrong; the message is one sentence: what, where, and what would be right.

    The command line prints it without a traceback and exits with code 2.
    """
