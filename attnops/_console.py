"""What the commands share: how they end, and kinds of arguments."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence

Main = Callable[..., int]
_CLOSED_PIPE, _INTERRUPTED = 141, 130  # 128 and the number of the signal, as of other programs


def command(main: Main) -> Main:
    """Decorator of `main(arguments=None) -> exit status`: it ends without a traceback.

    Quietly where the reader of its output is gone (`attnops models | head -1`) or it was
    interrupted; with one line on stderr and status 1 where a file cannot be read or written.
    """

    @functools.wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        try:
            try:
                return main(arguments)
            finally:
                sys.stdout.flush()  # a closed pipe is met here, not when Python exits
        except BrokenPipeError:
            _discard_output()
            return _CLOSED_PIPE
        except KeyboardInterrupt:
            return _INTERRUPTED
        except OSError as error:
            print(f"attnops: {error}", file=sys.stderr)
            return 1

    return run


def _discard_output() -> None:
    """What is still in the buffers would be tried again when Python exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            os.dup2(nowhere, stream.fileno())
        except (OSError, ValueError):  # no file of the system is behind it
            continue
    os.close(nowhere)


def positive_integer(text: str) -> int:
    """The type of an argument such as --threads.

    Raises:
        argparse.ArgumentTypeError: not an integer of at least 1.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return number
