"""Handling of signals that ask a run to end: each is acknowledged at once, and obeyed where no step is lost."""

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


class StopSignals:
    """Handler of SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal): save a checkpoint, then exit.

    While there are steps that no checkpoint has (from `begin` to `end`), the first signal makes the run save and exit, and a
    second SIGINT or SIGTERM exits at once. A second SIGHUP does not: the kernel and the shell each send one. At other times
    there is nothing to save, and the run exits at the first signal.

    Python runs signal handlers between two of its own instructions, so none while XLA compiles or computes. Therefore a thread,
    woken by the interpreter's C code (`signal.set_wakeup_fd`), reports the signal, and exits where the run has to end at once.

    Several processes agree on the step through JAX's coordination service, which sees the SIGTERM of any of them. A signal that
    comes too late for an agreement stops none of them, because the others would wait for it in the computation of the score.
    """

    def __init__(self, notify: Callable[[str], None], close: Callable[[], None]) -> None:
        """Keep two functions, called in another thread: `notify` shows a line, and `close` restores the terminal."""
        self.signal = 0
        """The signal after which the run saves and exits; 0 = no signal came."""
        self._notify, self._close = notify, close
        self._unsaved = False
        self._agreed = False
        self._lock = threading.Lock()

    def __enter__(self) -> "StopSignals":
        self._several = jax.process_count() > 1
        self._woken, wake = socket.socketpair()
        wake.setblocking(False)
        self._wake = wake
        self._wakeup_before = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        # JAX's coordination service has its own handler for SIGTERM. nohup ignores SIGHUP, and it stays ignored.
        handled = [number for number in SIGNALS if not (self._several and number == signal.SIGTERM)]
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            handled.remove(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._handle) for number in handled}
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
        """Record that a step was taken that no checkpoint has."""
        self._unsaved = True

    def end(self) -> int:
        """Record that every step is saved, and return the signal that the run must now obey; 0 = none."""
        with self._lock:
            self._unsaved = False
            return self.signal if self._agreed or not self._several else 0

    def agreed(self, taken: int) -> bool:
        """Return whether all processes stop now; it is called after every step.

        Args:
            taken: the number of steps since this start of the run: 1, 2, ... If a signal comes before the first call, JAX stops
                the processes at call 1, so that a resumed run whose calls began with another number would never stop.
        """
        if not self._several:
            return self.signal != 0
        with jax.transfer_guard("allow"):
            self._agreed = bool(multihost_utils.reached_preemption_sync_point(taken))
        self.signal = self.signal or (signal.SIGTERM if self._agreed else 0)
        return self._agreed

    def _handle(self, number: int, frame: Any) -> None:
        """Handle a signal in the main thread, as soon as Python runs the handler."""
        if number == signal.SIGINT and not self._unsaved and callable(before := self._before[signal.SIGINT]):
            before(number, frame)
        elif self._several:
            os.kill(os.getpid(), signal.SIGTERM)

    def _watch(self) -> None:
        """Read the number of each incoming signal, in a separate thread."""
        while content := self._woken.recv(1):
            number = content[0]
            if number in self._before:
                with self._lock:
                    self._acknowledge(signal.Signals(number))

    def _acknowledge(self, number: signal.Signals) -> None:
        if self._unsaved and not self.signal:
            self.signal = number
            self._notify_safely(f"{number.name}: the run is saved after this step and ends; a second signal ends it at once")
        elif self._unsaved and number == signal.SIGHUP:
            return
        elif self._unsaved:
            # No exception: it would wait for the save in progress, which may be the reason for the second signal.
            self._exit_now(number, "the run ends at once")
        elif number == signal.SIGINT:
            self._notify_safely(f"{number.name}: there is nothing to save, the run ends; the same command continues it")
        else:
            self._exit_now(number, "there is nothing to save, the run ends")

    def _notify_safely(self, text: str) -> None:
        # The signal is obeyed even if the terminal fails.
        with contextlib.suppress(Exception):
            self._notify(text)

    def _exit_now(self, number: signal.Signals, outcome: str) -> None:
        self._notify_safely(f"{number.name}: {outcome}; the same command continues it")
        with contextlib.suppress(Exception):
            self._close()
        os._exit(128 + number)
