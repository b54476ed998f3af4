"""Floors: what one process can do with another through a bare `multiprocessing.Pipe`, per second.

python pipe.py            messages one way
python pipe.py SECONDS    there and back, for so many seconds
"""

import multiprocessing
import sys
import time
from multiprocessing.connection import Connection

COUNT = 200_000


def receive(pipe: Connection) -> None:
    """Takes all of them and says so."""
    for _ in range(COUNT):
        pipe.recv()
    pipe.send("done")


def echo(pipe: Connection) -> None:
    """Sends back what comes."""
    while True:
        pipe.send(pipe.recv())


def one_way(ours: Connection) -> float:
    """Messages sent and received per second."""
    started = time.perf_counter()
    for _ in range(COUNT):
        ours.send({"n": 1})
    ours.recv()
    return COUNT / (time.perf_counter() - started)


def there_and_back(ours: Connection, seconds: float) -> float:
    """Messages sent and answered per second."""
    count = 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        ours.send({"n": 1})
        ours.recv()
        count += 1
    return count / seconds


if __name__ == "__main__":
    ours, theirs = multiprocessing.Pipe()
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else None
    work = receive if seconds is None else echo
    process = multiprocessing.get_context("fork").Process(target=work, args=(theirs,), daemon=True)
    process.start()
    print(one_way(ours) if seconds is None else there_and_back(ours, seconds))
    process.kill()
