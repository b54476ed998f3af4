"""A floor: the fork of a warm interpreter until its first byte is here, in ms; the median of 100."""

import asyncio
import json
import logging
import os
import pickle
import time

USED = (asyncio, json, logging, pickle)

times = []
for _ in range(100):
    reader, writer = os.pipe()
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.write(writer, b"x")
        os._exit(0)
    os.read(reader, 1)
    times.append((time.perf_counter() - started) * 1000)
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
print(sorted(times)[50])
