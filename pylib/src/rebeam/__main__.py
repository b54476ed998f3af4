"""`python -m rebeam` is the program `rebeam` of the same environment; it runs actors by this Python."""

import os
import sys

from rebeam._client import program


def main() -> None:
    """Becomes that program, with the arguments of this process."""
    try:
        path = program()
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    os.environ.setdefault("REBEAM_PYTHON", sys.executable)
    os.execv(path, [path, *sys.argv[1:]])


if __name__ == "__main__":
    main()
