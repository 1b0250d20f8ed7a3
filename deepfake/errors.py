"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """A mistake in settings, data or files, told in one line: what was expected, what was found, what to do.

    Commands print the message alone, without a stack trace, and end with exit status 2.
    """
