"""Handling of signals that ask a run to end: each is acknowledged at once, and obeyed where no step is lost."""

import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils

from zoo.runtime import c_signals, stdio
from zoo.runtime.progress import this_process

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 0.5
"""Seconds that a message may take; a terminal that does not accept it must not keep the run from ending."""


class StopSignals:
    """Handler of SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal): save a checkpoint, then exit.

    While there are steps that no checkpoint has (from `begin` to `end`), the first signal makes the run save and exit. At other
    times there is nothing to save, and the run exits at the first signal. A second SIGINT or SIGTERM always exits at once. A
    second SIGHUP does not: the kernel and the shell each send one.

    Python runs signal handlers between two of its own instructions, so none while XLA compiles or computes. Therefore a thread,
    woken by the interpreter's C code (`signal.set_wakeup_fd`), reports the signal, and exits where the run has to end at once.
    While native code holds Python's lock, this thread does not run either. Then the kernel ends the process at the second
    signal, because it removes each handler when it is used, until the thread installs it again.

    Several processes agree on the step through JAX's coordination service, which sees the SIGTERM of any of them. A signal that
    comes too late for an agreement stops none of them, because the others would wait for it in the computation of the score.
    """

    def __init__(self, notify: Callable[[str], None], close: Callable[[], None]) -> None:
        """Keep two functions, called in another thread: `notify` shows a line, and `close` restores the terminal."""
        self.signal = 0
        """The signal after which the run saves and exits; 0 = no signal came."""
        self._notify, self._close = notify, close
        self._received = self._unsaved = self._agreed = False
        self._lock = threading.Lock()

    def __enter__(self) -> "StopSignals":
        self._several = jax.process_count() > 1
        self._woken, wake = socket.socketpair()
        wake.setblocking(False)
        self._wake = wake
        self._wakeup_before = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        # The handler of JAX's coordination service. It sets a flag, and would keep a second signal from everything else.
        self._of_service = c_signals.read_action(signal.SIGTERM) if self._several else None
        # nohup ignores SIGHUP, and it stays ignored.
        handled = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._handle) for number in handled}
        self._once = {number: c_signals.handle_once(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="signals")
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        # SIGTERM then has its default action also where JAX has a handler: all steps are saved.
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
        with jax.transfer_guard("allow"), this_process.stage("waiting for the other processes", waiting=True):
            self._agreed = bool(multihost_utils.reached_preemption_sync_point(taken))
        self.signal = self.signal or (signal.SIGTERM if self._agreed else 0)
        return self._agreed

    def _handle(self, number: int, frame: Any) -> None:
        """Handle a signal in the main thread, as soon as Python runs the handler."""
        if number == signal.SIGINT and not self._unsaved and callable(before := self._before[signal.SIGINT]):
            before(number, frame)

    def _watch(self) -> None:
        """Read the number of each incoming signal, in a separate thread."""
        while content := self._woken.recv(1):
            if content[0] in self._before:
                number = signal.Signals(content[0])
                c_signals.install_action(number, self._once.get(number))
                with self._lock:
                    self._acknowledge(number)

    def _acknowledge(self, number: signal.Signals) -> None:
        again, self._received = self._received and number != signal.SIGHUP, True
        if again:
            # No exception: it would wait for the save in progress, which may be the reason for the second signal.
            self._exit_now(number, "the run ends at once")
        elif self._unsaved and self.signal:
            return  # a second SIGHUP
        elif self._unsaved or (self._several and number != signal.SIGINT):
            self.signal = number
            if self._several:
                c_signals.run_handler(signal.SIGTERM, self._of_service)
            when = "the run is saved after this step and ends" if self._unsaved else "the run is saved at its next step and ends"
            stdio.run_briefly(lambda: self._notify(f"{number.name}: {when}; a second signal ends it at once"), PATIENCE)
        elif number == signal.SIGINT:
            text = f"{number.name}: there is nothing to save, the run ends; the same command continues it"
            stdio.run_briefly(lambda: self._notify(text), PATIENCE)
        else:
            self._exit_now(number, "there is nothing to save, the run ends")

    def _exit_now(self, number: signal.Signals, outcome: str) -> None:
        stdio.run_briefly(lambda: self._notify(f"{number.name}: {outcome}; the same command continues it"), PATIENCE)
        stdio.run_briefly(self._close, PATIENCE)
        os._exit(128 + number)
