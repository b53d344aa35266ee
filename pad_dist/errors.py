"""The one exception a user's mistake raises."""


class UserError(Exception):
    """A mistake the user can fix: one line naming the thing and the fix.

    Entry points print the message alone and exit with status 2; any other
    exception is a bug of ours and keeps its traceback.
    """
