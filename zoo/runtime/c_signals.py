"""The signal handlers of the C library, below those of Python: to run one that a C++ library installed, and to use one only once.

Python's handlers run between two of its own instructions. So none runs while native code holds Python's lock; the kernel's
default action does. A handler that the kernel removes when it is used leaves this action for the next signal.
"""

import ctypes
import signal
import sys

RESET = 1 << 31
"""Linux's SA_RESETHAND."""


class Action(ctypes.Structure):
    """The reaction of a process to a signal: `struct sigaction` of 64-bit Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_uint),
        ("restorer", ctypes.c_void_p),
    )


def read_action(number: int) -> Action | None:
    """Return the reaction of the process to a signal; None where that cannot be read (other systems than Linux)."""
    if sys.platform != "linux":
        return None
    action = Action()
    return action if _library().sigaction(number, None, ctypes.byref(action)) == 0 else None


def run_handler(number: int, action: Action | None) -> None:
    """Run the function that `action` has for a signal, unless it is the default action or the signal is ignored."""
    if action is not None and action.handler not in (None, int(signal.SIG_DFL), int(signal.SIG_IGN)):
        ctypes.CFUNCTYPE(None, ctypes.c_int)(action.handler)(number)


def handle_once(number: int) -> Action | None:
    """Let the kernel remove the present handler of a signal when it is used.

    Returns:
        The action to pass to `install_action` when the handler is needed again; None where this is not supported.
    """
    if (action := read_action(number)) is not None:
        action.flags |= RESET
        install_action(number, action)
    return action


def install_action(number: int, action: Action | None) -> None:
    """Install an action of `handle_once`; unlike Python's `signal.signal` it may be called in any thread."""
    if action is not None:
        _library().sigaction(number, ctypes.byref(action), None)


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
