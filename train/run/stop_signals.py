"""Signals that ask a run to end: each is acknowledged at once, and obeyed where no step is lost."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal) as a wish to save and leave.

    While there are steps that no checkpoint has (from `begin` to `end`), the first signal makes the run save and leave, and a
    second SIGINT or SIGTERM leaves at once. A second SIGHUP does not: the kernel and the shell each send one. At other times
    there is nothing to save, and the run leaves at the first signal.

    Python runs signal handlers between two of its own instructions, so none while XLA compiles or computes. A thread that the
    interpreter's C code wakes (`signal.set_wakeup_fd`) therefore says that a signal came, and leaves where that is to be at once.

    Several processes agree on the step, through JAX's coordination service: it sees the SIGTERM of any of them.
    """

    def __init__(self, notify: Callable[[str], None], close: Callable[[], None]) -> None:
        """`notify` shows a line, `close` gives the terminal back; both are called in another thread."""
        self.signal = 0
        """The signal that the run obeys by saving and leaving; 0 = none came."""
        self._notify, self._close = notify, close
        self._unsaved = False
        self._lock = threading.Lock()

    def __enter__(self) -> "Stop":
        self._several = jax.process_count() > 1
        self._woken, wake = socket.socketpair()
        wake.setblocking(False)
        self._wake = wake
        self._wakeup_before = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        # JAX's coordination service has a handler for SIGTERM. nohup has SIGHUP ignored, and so it stays.
        heeded = [number for number in SIGNALS if not (self._several and number == signal.SIGTERM)]
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            heeded.remove(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._handle) for number in heeded}
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="signals")
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._wake.close()
        self._watcher.join()
        self._woken.close()

    def begin(self) -> None:
        """Note that a step was taken which no checkpoint has."""
        self._unsaved = True

    def end(self) -> int:
        """Note that every step is saved, and return the signal that the run is to obey now; 0 = none."""
        with self._lock:
            self._unsaved = False
            return self.signal

    def agreed(self, step: int) -> bool:
        """Return whether all processes stop after `step` steps."""
        if not self._several:
            return self.signal != 0
        with jax.transfer_guard("allow"):
            stopping = bool(multihost_utils.reached_preemption_sync_point(step))
        self.signal = self.signal or (signal.SIGTERM if stopping else 0)
        return stopping

    def _handle(self, number: int, frame: Any) -> None:
        """Handle a signal in the main thread, as soon as Python gets to it."""
        if number == signal.SIGINT and not self._unsaved and callable(before := self._before[signal.SIGINT]):
            before(number, frame)
        elif self._several:
            os.kill(os.getpid(), signal.SIGTERM)

    def _watch(self) -> None:
        """Read, in a thread of its own, the number of each signal that comes."""
        while content := self._woken.recv(1):
            number = content[0]
            if number in self._before:
                with self._lock:
                    self._acknowledge(signal.Signals(number))

    def _acknowledge(self, number: signal.Signals) -> None:
        if self._unsaved and not self.signal:
            self.signal = number
            self._say(f"{number.name}: the run is saved after this step and ends; a second signal ends it at once")
        elif self._unsaved and number == signal.SIGHUP:
            return
        elif self._unsaved:
            # Not by an exception: on its way out it would wait for the save under way, which may be what takes so long.
            self._leave(number, "the run ends at once")
        elif number == signal.SIGINT:
            self._say(f"{number.name}: there is nothing to save, the run ends; the same command goes on")
        else:
            self._leave(number, "there is nothing to save, the run ends")

    def _say(self, text: str) -> None:
        # Whatever is wrong with the terminal, the signal is obeyed.
        with contextlib.suppress(Exception):
            self._notify(text)

    def _leave(self, number: signal.Signals, what: str) -> None:
        self._say(f"{number.name}: {what}; the same command goes on")
        with contextlib.suppress(Exception):
            self._close()
        os._exit(128 + number)
