"""The one exception that means "the request was wrong"."""


class RequestError(Exception):
    """A wrong request: an unknown name, a bad value, missing data, a foreign logdir.

    The message is one helpful line (a diff may follow it) that names the argument, echoes the value
    and says the fix. The command line prints it without a traceback and exits 2.
    """
