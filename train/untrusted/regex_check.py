"""Regular expressions of tokenizers: a check, in a child process with limits, that they are fast and raise no error.

Oniguruma, the library's engine, searches by trying alternatives, whose number may grow exponentially with the text.
"""

import functools
import hashlib
import importlib.metadata
from typing import Any

from train.untrusted import child_process
from zoo.errors import BadInput
from zoo.runtime import caches

SECONDS, MEMORY = 1.0, 1 << 30
"""Processor time and address space for all texts; the pattern of Qwen takes 10 ms."""
LONGEST_PATTERN = 10_000
RUN = 1500
"""Characters of each text. A pattern whose time grows with the cube of a run's length takes longer than `SECONDS` on this one."""
SIGNS = (*"a ,\n1.é鯨A", "ab", "a ", "a1", "Aa", "'s", " \n", "a.", "\r\n", "\u0301", "the old white whale, ")
"""Texts of the check are repetitions of these, and of the pattern's own characters, without and with other ends."""
MOST_OWN = 20
"""Number of the pattern's own characters that are repeated."""


@functools.cache
def check_pattern(pattern: str, *, replaces: bool) -> None:
    """Check that a regular expression is valid and fast, unless this user's cache folder says that it was checked before.

    Args:
        replaces: it is used for replacements, where an empty match is an error in the library.

    Raises:
        BadInput: it is invalid, or exceeds a limit of time or memory.
    """
    shortened = pattern if len(pattern) <= 80 else f"{pattern[:77]}..."
    if len(pattern) > LONGEST_PATTERN:
        raise BadInput(f"has a regular expression of {len(pattern):,} characters, and at most {LONGEST_PATTERN:,} are allowed")
    version = importlib.metadata.version("tokenizers")
    digest = hashlib.sha256(f"{version}\0{SECONDS}\0{RUN}\0{replaces}\0{pattern}".encode()).hexdigest()
    folder = caches.cache_folder("checked-patterns")
    if folder is not None and (folder / digest).exists():
        return
    process = child_process.LimitedProcess(__name__, seconds=SECONDS, memory=MEMORY)
    try:
        reason = process.request({"pattern": pattern, "replaces": replaces})
    except child_process.LimitExceededError as error:
        reason = f"{error} on short texts"
    finally:
        process.stop()
    if reason:
        raise BadInput(f"has the regular expression {shortened!r}, which {reason}")
    if folder is not None:
        (folder / digest).touch()


def main() -> None:
    """Try patterns on texts: the main function of the child process."""
    import tokenizers
    from tokenizers import normalizers, pre_tokenizers

    def answer(request: Any) -> str | None:
        try:
            regex = tokenizers.Regex(request["pattern"])
            split = pre_tokenizers.Split(regex, "isolated")
            replace = normalizers.Replace(regex, "\0")
            own = dict.fromkeys(sign for sign in request["pattern"] if sign.isprintable())
            for sign in dict.fromkeys((*SIGNS, *list(own)[:MOST_OWN])):
                run = sign * (RUN // len(sign))
                for text in (run, f"{run}\u2603", f"{run}\u2603 1.A\na"):
                    split.pre_tokenize_str(text)
                    # A match of a character or more does not make a text longer.
                    if request["replaces"] and len(replace.normalize_str(text)) > len(text):
                        return "matches an empty text"
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:
            # A panic of the library is not an `Exception`.
            return f"fails ({' '.join(str(error).split())[:150]})"
        return None

    child_process.serve_requests(answer)
