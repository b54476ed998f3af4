"""Looks for phrases that the style guide (`docs/style.md`) rejects, and says what to write instead.

python docs/check_style.py          exits with 1 and lists them, if there are any
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

REJECTED = {
    r"for ever\b": "forever",
    r"in silence": "silently",
    r"to be had": "available",
    r"holds? up nobody": "blocks nothing else",
    r"looks? round": "scans",
    r"(nobody|one actor|somebody|someone)'s business": "concern",
    r"an answer that does not fit": "an unexpected answer",
    r"begins? anew": "starts over",
    r"is judged hung": "counts as hung",
    r"the mourners": "the subscribers",
    r"\bso many seconds": "this many seconds",
}
"""Regular expressions, and what to write instead."""

TEXTS = ("*.md", "docs/**/*.md", "rebeam-*/src/**/*.rs", "rebeam-*/*.md", "pylib/src/rebeam/**/*.py", "Makefile")
"""What is read, below the root. The tests are not: they quote messages."""

NOT_READ = {"docs/style.md", "docs/reference/otp.md"}
"""The first quotes them, the second is made of the names of tests."""


def found() -> list[str]:
    """Each rejected phrase, with its place and what to write instead."""
    pattern = re.compile("|".join(f"(?P<p{number}>{phrase})" for number, phrase in enumerate(REJECTED)), re.IGNORECASE)
    instead = list(REJECTED.values())
    lines = []
    for path in sorted({path for text in TEXTS for path in ROOT.glob(text)}):
        name = path.relative_to(ROOT).as_posix()
        if name in NOT_READ:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for match in pattern.finditer(line):
                wanted = instead[int((match.lastgroup or "p0")[1:])]
                lines.append(f"{name}:{number}: `{match[0]}`: write `{wanted}`")
    return lines


if __name__ == "__main__":
    rejected = found()
    print(*rejected, sep="\n", end="\n" if rejected else "")
    sys.exit(bool(rejected))
