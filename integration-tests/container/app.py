"""What `container.sh` runs: an actor that does what it is told, and one that nothing may happen to."""

import os
import subprocess
import time

from rebeam import Actor, Supervisor, child


class Worker(Actor):
    def work(self, seconds: float) -> None:
        print("begun")
        time.sleep(seconds)
        print("finished")

    def orphan(self) -> None:
        """Starts a program that outlives its parent, and ends: somebody has to reap it."""
        subprocess.run(["sh", "-c", "sleep 0.05 > /dev/null &"], check=True)

    def eat(self, mib: int) -> None:
        hoard = []
        for _ in range(mib):
            hoard.append(os.urandom(1 << 20))
            # As fast as a leak, not as fast as the kernel: which of two comes first is not what is shown.
            time.sleep(0.03)

    def echo(self, size: int) -> int:
        return size

    def large(self, mib: int) -> int:
        """Large buffers need neither /dev/shm nor a file system."""
        import rebeam

        return rebeam.ref(Bystander, "bystander").call(Bystander.measure, bytearray(mib << 20))


class Bystander(Actor):
    def process(self) -> int:
        return os.getpid()

    def measure(self, content: bytearray) -> int:
        return len(content)


class Broken(Actor):
    def init(self) -> None:
        raise RuntimeError("broken")


class Doomed(Actor):
    def init(self) -> None:
        import rebeam

        rebeam.cast_after(0.2, self.ref, Doomed.die)

    def die(self) -> None:
        os._exit(3)


tree = Supervisor([child(Worker, name="worker"), child(Bystander, name="bystander")], max_restarts=100)
broken = Supervisor([child(Broken, name="broken")])
doomed = Supervisor([child(Doomed, name="doomed")], max_restarts=2, max_seconds=60)
