"""Drives one version of the official SDK against one server; `cargo xtask compat` starts it.

Arguments: the SDK's version, then the URLs of a server and of one that exchanges keys for tokens, and a folder; or `--list` to name the rows only.
Prints a line for each row, `group TAB row TAB state TAB message`, where the state is `works`, `refused`, `fails`,
`absent`, `uncovered` or, with `--list`, `listed`. COMPAT_ROWS drives only the rows that contain it.
"""

import inspect
import os
import re
import signal
import sys
import time
import traceback
import warnings

import tinker

warnings.simplefilter("ignore")

import commands  # noqa: E402
import features  # noqa: E402, F401
import rest  # noqa: E402, F401
import sampling  # noqa: E402, F401
import service  # noqa: E402, F401
import training  # noqa: E402, F401
from world import CASES, CLIENTS, FEATURES, Refused, World, client  # noqa: E402

CASE_SECONDS_MAX = 90


class TooSlow(BaseException):
    """Not an Exception: the SDK's own handlers must not swallow it."""


class Call:
    """A method in one of its faces; calling it waits for what it gives."""

    def __init__(self, world, owner, method):
        self.world, self.owner, self.method = world, owner, method

    def __call__(self, target, *arguments, **options):
        return self.world.settle(getattr(target, self.method)(*arguments, **options))


def methods():
    """(client, method) of every public method that this version has."""
    for owner in CLIENTS:
        for name, _ in inspect.getmembers(client(owner), callable) if client(owner) else []:
            if not name.startswith("_"):
                yield owner, name


def rows():
    """(group, row, case of (world)) of everything that this version has."""
    for owner, method in methods():
        case = CASES.get(f"{owner}.{method}") or CASES.get(f"{owner}.{method.removesuffix('_async')}")
        yield owner, method, bind(case, owner, method)
    for command in commands.commands():
        yield "tinker", command, bind(CASES.get(command), "tinker", command)
    for name, (case, there) in FEATURES.items():
        yield "features", name, (case if there() else "absent")


def bind(case, owner, method):
    return None if case is None else lambda world: case(world, Call(world, owner, method))


def outcome(case, world):
    """(state, message) of one case."""
    if case is None:
        return "uncovered", "no case drives it"
    if case == "absent":
        return "absent", ""
    signal.alarm(CASE_SECONDS_MAX)
    try:
        case(world)
        return "works", ""
    except Refused as error:
        return "refused", str(error)
    except AssertionError as error:
        if "incorrect event loop" in str(error):
            # 0.24 asks for the client's own loop in a method that is for the caller's.
            return "refused", f"by the SDK itself: {error}"
        return failed(error, world)
    except TooSlow:
        world.start_over()
        return "fails", f"took more than {CASE_SECONDS_MAX} s"
    except Exception as error:  # noqa: BLE001
        return failed(error, world)
    finally:
        signal.alarm(0)


def failed(error, world):
    if "-v" in sys.argv:
        traceback.print_exception(error)
    world.start_over()
    return "fails", f"{type(error).__name__}: {describe(error)}"


def describe(error):
    """The error's text; an assertion without one is the line that made it."""
    if str(error):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.line} ({os.path.basename(frame.filename)})"


def plain(message):
    """One short line without what changes from run to run: ids, ports, paths."""
    message = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\b[0-9a-f]{16,}\b", "…", " ".join(message.split()))
    message = re.sub(r"…:(train|sample):\d+", "…", message)
    message = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1", message)
    return message.split(" for self.request_id")[0][:300]


def too_slow(*_):
    raise TooSlow


def main():
    assert tinker.__version__ == sys.argv[1], f"{tinker.__version__} is imported in place of {sys.argv[1]}"
    if "--list" in sys.argv:
        for group, row, case in rows():
            print(group, row, "uncovered" if case is None else "absent" if case == "absent" else "listed", "", sep="\t")
        return
    signal.signal(signal.SIGALRM, too_slow)
    only = os.environ.get("COMPAT_ROWS", "")
    world = World(*sys.argv[2:5])
    # The SDK and its libraries print too: the table is what goes to the real standard output.
    output, sys.stdout = sys.stdout, sys.stderr
    for group, row, case in rows():
        if only in f"{group} {row}":
            start = time.monotonic()
            state, message = outcome(case, world)
            print(f"{time.monotonic() - start:6.2f} s  {group} {row}: {state}", flush=True)
            print(group, row, state, plain(message), sep="\t", file=output, flush=True)
    output.flush()
    # Threads of clients that nothing closed would keep the process.
    os._exit(0)


main()
