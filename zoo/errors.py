"""The one exception that means "the user can fix this"."""


class BadInput(Exception):
    """Wrong input. The message is one line that names the key, file or name at fault and says how to mend it.

    The command line prints it and exits with 2; any other exception is a defect of ours and keeps its traceback.
    """
