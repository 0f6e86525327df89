"""The one exception that means "the user can fix this"."""

from typing import Any


class BadInput(Exception):
    """Wrong input. The message is one line that names the key, file or name at fault and says how to mend it.

    The command line prints it and exits with 2; any other exception is a defect of ours and keeps its traceback.
    """


def require(ok: bool, key: str, value: Any, fix: str) -> None:
    """Refuse a value by the name it has on the command line. A comparison with NaN is False, so NaN never passes.

    Raises:
        BadInput: unless `ok`.
    """
    if not ok:
        raise BadInput(f"--{key.replace('_', '-')} {value}: {fix}")
