"""The floor for casts: what one process can send another through a bare `multiprocessing.Pipe`, per second."""

import multiprocessing
import time
from multiprocessing.connection import Connection

COUNT = 200_000


def receive(pipe: Connection) -> None:
    """Takes all of them and says so."""
    for _ in range(COUNT):
        pipe.recv()
    pipe.send("done")


if __name__ == "__main__":
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=receive, args=(theirs,))
    process.start()
    started = time.perf_counter()
    for _ in range(COUNT):
        ours.send({"n": 1})
    ours.recv()
    print(COUNT / (time.perf_counter() - started))
    process.join()
