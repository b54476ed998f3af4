"""A small service as it would run in production: a ledger that keeps, clerks that work, and somebody who orders.

Run it by `rebeam run app.py --http 127.0.0.1:8080`, or as an image (`make image`), and kill what you like of it.
"""

import logging
import random
import time

import rebeam
from rebeam import Actor, PartitionSupervisor, Supervisor, child

log = logging.getLogger("shop")


class Ledger(Actor):
    """Counts what was sold. It is small and does nothing else, so that nothing of what clerks do can hurt it."""

    def init(self) -> None:
        self.sold = 0

    def sell(self, amount: int) -> None:
        self.sold += amount

    def total(self) -> int:
        return self.sold


class Clerk(Actor):
    """Does the work, in the process of its own in which it may crash."""

    def work(self, order: int) -> str:
        time.sleep(random.expovariate(1 / 0.002))
        rebeam.ref(Ledger, "ledger").cast(Ledger.sell, 1)
        return f"order {order} is done"


class Customer(Actor):
    """Orders, without end."""

    def init(self) -> None:
        self.orders = 0
        rebeam.cast_every(0.02, self.ref, Customer.order)

    def order(self) -> None:
        self.orders += 1
        clerk = rebeam.partition(Clerk, "clerks", self.orders)
        try:
            clerk.options(timeout=5).call(Clerk.work, self.orders)
        except rebeam.ActorDied as error:
            log.warning("order %d: %s", self.orders, error)


tree = Supervisor(
    [
        child(Ledger, name="ledger"),
        PartitionSupervisor(child(Clerk, memory="256MB"), name="clerks", partitions=4, max_restarts=100),
        child(Customer, name="customer"),
    ],
    strategy="rest_for_one",
    max_restarts=100,
    max_seconds=60,
)
