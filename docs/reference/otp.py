#!/usr/bin/env python3
"""Writes `otp.md`: each behaviour of OTP that Re:BEAM promises, and the tests that show it.

A test shows a row by carrying its id in its name (`sup_031_one_for_all_…`; `sup_020_to_sup_023_…` is a range). With
`--check` nothing is written: it fails if the page is not what the tests say, so a row that loses its test is noticed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = Path(__file__).with_name("otp.md")

SOURCES = (
    "rebeam-core/src",
    "rebeam-core/tests",
    "integration-tests/tests",
    "integration-tests/fixtures",
    "pylib/tests",
)

SECTIONS: dict[str, dict[str, str]] = {
    "Child specs": {
        "SUP-001": "A child needs only a class; everything else has a default that can be read back.",
        "SUP-002": "A value that makes no sense is refused by name, before anything is started.",
        "SUP-003": "A supervisor's own settings are checked before any child starts.",
        "SUP-004": "The shutdown time may be 0, a number, infinity or brutal_kill, for actors and supervisors.",
        "SUP-005": "An unknown option is refused, with the nearest known one.",
        "SUP-006": "A class carries options of its own, which whoever declares a child may override.",
    },
    "Start order and failure at start": {
        "SUP-010": "Children start one after another, each after the one before has finished init.",
        "SUP-011": "A supervisor is up when its last child is.",
        "SUP-012": "A child that fails to start undoes the start, in reverse, without a retry.",
        "SUP-013": "A child whose init says Ignore is passed over.",
        "SUP-014": "A supervisor whose own setup fails is an error of whoever starts it.",
        "SUP-015": "A failed start leaves neither process nor name.",
        "SUP-016": "init may hand something to whoever starts the child.",
    },
    "Restart types and exit reasons": {
        "SUP-020": "permanent: started again after every end that was not ordered.",
        "SUP-021": "transient: left alone after a clean end, and listed as stopped.",
        "SUP-022": "transient: started again after any abnormal end.",
        "SUP-023": "temporary: never started again, and never counted.",
        "SUP-024": "A restart is a fresh start with the first arguments, under a new pid.",
        "SUP-025": "An abnormal end makes one report, and so does every end of a permanent child.",
    },
    "Strategies": {
        "SUP-030": "one_for_one restarts the ended child alone.",
        "SUP-031": "one_for_all stops the others in reverse order and starts all in order.",
        "SUP-032": "rest_for_one does so with the children after the ended one.",
        "SUP-033": "Siblings taken down by a restart end by their own shutdown setting.",
        "SUP-034": "An end that leads to no restart leaves the group alone.",
        "SUP-035": "A dynamic supervisor's children have no order and no ids, and are restarted one for one.",
        "SUP-036": "A dynamic child comes back with its own arguments; those of temporary ones are not kept.",
        "SUP-037": "A partition supervisor leads a key to the same copy always.",
    },
    "Restart intensity": {
        "SUP-040": "So many restarts are allowed in a time; one more, and the supervisor gives up.",
        "SUP-041": "The window slides, without buckets and without a reset.",
        "SUP-042": "A restart that fails is tried again at once, and counted.",
        "SUP-043": "Between two tries the supervisor hears others.",
        "SUP-044": "Giving up stops the others in reverse and ends with shutdown.",
        "SUP-045": "The count is the supervisor's, not each child's.",
        "SUP-046": "The default is 3 restarts in 5 seconds.",
    },
    "Shutdown": {
        "SUP-050": "A stop goes in reverse, one child after another.",
        "SUP-051": "A child is asked, and has its time.",
        "SUP-052": "Who is late is killed, and the stop goes on.",
        "SUP-053": "brutal_kill does not ask.",
        "SUP-054": "infinity waits as long as it takes.",
        "SUP-055": "A child that dies by itself during the stop counts as stopped, and is reported.",
        "SUP-056": "A child that is dead already is not waited for.",
        "SUP-057": "A dynamic supervisor asks all at once, each with its own time.",
        "SUP-058": "stop on a supervisor takes its children along, and ends with the reason given.",
    },
    "Significant children and auto_shutdown": {
        "SUP-060": "significant is refused where it can have no meaning.",
        "SUP-061": "any_significant: the supervisor ends with the first that ends for good.",
        "SUP-062": "all_significant: with the last.",
        "SUP-063": "Ends that the supervisor itself ordered do not count.",
        "SUP-064": "It goes on upwards, if the supervisor is significant itself.",
    },
    "Changes at run time": {
        "SUP-070": "start_child appends a child, which takes its place in the order.",
        "SUP-071": "An id in use is refused, and the holder not touched.",
        "SUP-072": "terminate_child stops a child and keeps its spec.",
        "SUP-073": "restart_child starts a stopped child.",
        "SUP-074": "delete_child forgets a stopped child.",
        "SUP-075": "A start_child that fails keeps nothing.",
        "SUP-076": "which_children lists pid, stopped or restarting, in start order.",
        "SUP-077": "count_children counts specs, active, supervisors and workers.",
        "SUP-078": "A dynamic supervisor holds its children by pid, and no more than max_children.",
        "SUP-079": "Requests to one supervisor run one at a time, in order.",
    },
    "Supervisors as children": {
        "SUP-085": "A supervisor is stopped with its whole subtree before its parent goes on.",
        "SUP-086": "One that gave up is restarted by its parent, and counted once.",
        "SUP-087": "A restarted supervisor begins anew, with the children of its own list.",
        "SUP-088": "Nothing outlives its supervisor, however that ends.",
        "SUP-089": "Limits multiply up the tree; then the program ends with a code of its own.",
    },
    "Servers": {
        "GEN-001": "A start returns with what init came to; terminate is not run for a failed one.",
        "GEN-002": "An init that takes too long is killed.",
        "GEN-003": "One callback at a time; calls, casts and the rest each have their own.",
        "GEN-004": "An answer may come later, and from another actor.",
        "GEN-005": "A call waits five seconds by default; a timeout is the caller's alone.",
        "GEN-006": "A late answer is dropped.",
        "GEN-007": "A call to the dead, or to oneself, fails at once; so does one whose callee dies.",
        "GEN-008": "A cast to nobody is no error.",
        "GEN-009": "An exception runs terminate, and reaches the caller.",
        "GEN-010": "A return value that no callback may give ends the server.",
        "GEN-011": "A call or cast without a callback is a crash, a plain message a warning.",
        "GEN-012": "Any callback may stop the server, with an answer or without.",
        "GEN-013": "When terminate runs, and when it does not.",
        "GEN-014": "stop waits for the end, and says if it was another one.",
        "GEN-015": "Continue comes before any message.",
        "GEN-016": "An idle time without a message is told.",
        "GEN-017": "Hibernating changes nothing but memory.",
        "GEN-018": "A stop takes its turn behind the mail that was there.",
    },
    "Links": {
        "LNK-001": "An abnormal end, or shutdown, goes along the links.",
        "LNK-002": "A normal end does not.",
        "LNK-003": "Who traps exits gets a message instead.",
        "LNK-004": "A kill cannot be trapped; those linked see `killed`.",
        "LNK-005": "A link is single, goes both ways, and can be taken back.",
        "LNK-006": "A link to the dead is an error, or a message to who traps exits.",
        "LNK-007": "An exit signal of the parent is an order, of anybody else a message.",
    },
    "Monitors": {
        "MON-001": "A monitor gives one Down with the true reason.",
        "MON-002": "For the dead it gives one at once.",
        "MON-003": "Monitors are independent.",
        "MON-004": "demonitor, with flush, leaves none behind.",
        "MON-005": "When a Down arrives, the name is free.",
        "MON-006": "A lost node gives `noconnection`.",
    },
    "Timers": {
        "TMR-001": "send_after is a message in turn, after at least that time.",
        "TMR-002": "cancel says what was left.",
        "TMR-003": "A timer goes with the incarnation it is for.",
        "TMR-004": "It outlives whoever set it.",
        "TMR-005": "It runs on monotonic time.",
    },
    "Messages": {
        "MSG-001": "Between two actors order is kept.",
        "MSG-002": "What was sent before an end comes before its Down.",
        "MSG-003": "Between others nothing is promised.",
        "MSG-004": "An answer is picked out of turn; other mail waits in order.",
        "MSG-005": "Selective receive leaves the others where they are.",
        "MSG-006": "Mail to a pid dies with it; mail to a name waits for the next incarnation.",
    },
    "Names and registries": {
        "NAM-001": "A name has one holder; a second start says who, and its init is not run.",
        "NAM-002": "A name is free as soon as its holder is dead, however it died.",
        "NAM-003": "A failed or ignored start leaves no name behind.",
        "NAM-004": "Whatever takes a handle takes a name, a key of a registry or a pid.",
        "NAM-005": "A unique key has one holder; an actor may hold many.",
        "NAM-006": "Duplicate keys have many, and are no address.",
        "NAM-007": "A dead holder never blocks a key.",
        "NAM-008": "dispatch runs in the caller; a value is its holder's; keys compare with their type.",
        "NAM-009": "A plain send to a free name fails; to the dead it is lost.",
    },
    "Tables": {
        "ETS-001": "A table goes with its owner, however that ends, before anybody hears of it; a name has one table.",
        "ETS-002": "private, protected (the default), public; a breach raises in the caller and changes nothing.",
        "ETS-003": "set and ordered_set hold one value per key, bag several, duplicate_bag repeats, too.",
        "ETS-004": "set compares keys with their type, ordered_set by value.",
        "ETS-005": "Every change is done whole and alone: counters, take, lists.",
        "ETS-006": "heir, and giving away.",
        "ETS-007": "A walk shows every row that was there throughout once, and never fails.",
    },
    "Groups": {
        "PGR-001": "A group exists while it has members; who joins thrice is listed thrice.",
        "PGR-002": "A dead member is gone from all its groups.",
        "PGR-003": "During a split each side lists what it can reach.",
        "PGR-004": "A watcher gets the members, then each change, then nothing more.",
    },
    "System messages and upgrades": {
        "UPG-001": "A suspended actor handles no mail, which waits in order; it answers what is asked of its process.",
        "UPG-002": "State is read, and replaced, between two messages; a replacement that raises changes nothing.",
        "UPG-003": "New code takes over state and mail by `code_change`; name, pid, links, monitors and timers stay, "
        "and nobody sees a `Down`.",
        "UPG-004": "`code_change` may refuse: the old code goes on with its state.",
        "UPG-005": "An upgrade of a supervisor.",
        "UPG-006": "Which actors run a class can be asked of the tree.",
    },
    "Where processes of the system make it differ": {
        "MAP-01": "Pids are never reused, and nothing is keyed by a process id of the system.",
        "MAP-02": "The reason of an end: its own report, else what Re:BEAM did, else what the system says.",
        "MAP-03": "A death is told once, after everything the dead one had said.",
        "MAP-04": "An exit signal unwinds the Python stack, and kills after half a second.",
        "MAP-05": "A supervisor's stop always runs terminate, unless an actor opts out.",
        "MAP-06": "A kill reaches everything that the actor started.",
        "MAP-07": "Hangs are judged by what an actor has in hand, never by a ping.",
        "MAP-08": "Nothing outlives a killed supervisor.",
        "MAP-09": "A start has a time limit by default.",
        "MAP-10": "Requests to a supervisor wait; `rebeam ps` and `tree` do not.",
        "MAP-11": "Other than OTP, and than the first plan: no pause before the first restart, and growing ones from "
        "the second on, so that an outage of a second is survived with the default limit; `backoff=None` is OTP's "
        "rule. Pauses with which a child could crash forever are refused.",
        "MAP-12": "The restart window is exact to the millisecond.",
        "MAP-13": "Mailboxes are bounded; late answers are dropped.",
        "MAP-14": "Hibernation is a hint.",
        "MAP-15": "Keys are told apart by type.",
        "MAP-16": "Clashes of global names.",
        "MAP-17": "Upgrades go by a second process.",
    },
    "Tasks": {
        "TSK-001": "A task is linked to its caller, who awaits its value once; a late one is dropped.",
        "TSK-002": "Unlinked, its failure is the caller's to look at; poll, and shutdown that still gives a value.",
        "TSK-003": "Tasks are temporary and stand under a supervisor that stops them with the tree.",
    },
}

DIFFERS = {
    "SUP-014": "A supervisor is data, evaluated before anything starts: a setup that raises is an error on import, and "
    "none can say ignore.",
    "MON-006": "Comes with a second node.",
    "PGR-003": "Comes with a second node.",
    "MSG-003": "No test relies on an order there.",
    "TMR-005": "The node counts time with `Instant`, which is monotonic by its type; the wall clock is not asked.",
    "MAP-10": "As said; see `rebeam ps` in the tests of the command line.",
    "MAP-16": "Comes with a second node.",
    "UPG-005": "Comes with `rebeam upgrade`; a reload starts and stops children at once.",
}

FUNCTION = re.compile(r"^\s*(?:pub )?(?:fn|def) (\w+)\(", re.M)
KINDS = "sup|gen|lnk|mon|nam|ets|pgr|tmr|msg|map|tsk"
ID = re.compile(rf"({KINDS})_(\d{{2,3}})(?:_to_(?:{KINDS})_(\d{{2,3}}))?")


def rows_of(name: str) -> set[str]:
    """The rows that a test names."""
    rows = set()
    for kind, first, last in ID.findall(name):
        width = 2 if kind == "map" else 3
        for number in range(int(first), int(last or first) + 1):
            rows.add(f"{kind.upper()}-{number:0{width}}")
    return rows


def shown() -> dict[str, list[str]]:
    """Row to tests, as `file: name`."""
    found: dict[str, list[str]] = {}
    for source in SOURCES:
        for path in sorted((ROOT / source).rglob("*")):
            if path.suffix not in (".rs", ".py"):
                continue
            for name in FUNCTION.findall(path.read_text()):
                for row in rows_of(name):
                    found.setdefault(row, []).append(f"`{path.relative_to(ROOT)}`: `{name}`")
    return found


def page() -> str:
    """The whole page."""
    tests = shown()
    known = {row for rows in SECTIONS.values() for row in rows}
    unknown = sorted(set(tests) - known)
    if unknown:
        sys.exit(f"error: tests name rows that are not listed: {', '.join(unknown)}")
    lines = ["# Re:BEAM and OTP, row by row", "", "Made by `make docs` from the names of the tests. Do not edit.", ""]
    covered = sum(row in tests for row in known)
    missing = sorted(row for row in known if row not in tests and row not in DIFFERS)
    lines += [
        f"{covered} of {len(known)} rows are shown by tests, {len(set(DIFFERS) - set(tests))} differ or come later"
        f" as said below, {len(missing)} are not covered{': ' + ', '.join(missing) if missing else ''}.",
        "",
    ]
    for section, rows in SECTIONS.items():
        lines += [f"## {section}", "", "| Row | Behaviour | Shown by |", "| --- | --- | --- |"]
        for row, behaviour in rows.items():
            where = "<br>".join(tests.get(row, []))
            note = DIFFERS.get(row, "" if where else "**not covered**")
            lines.append(f"| {row} | {behaviour} | {'<br>'.join(part for part in (where, note) if part)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Writes the page, or checks it."""
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        sys.exit("error: docs/reference/otp.md is not what the tests say\nhint: run `make docs` and look at the change")


if __name__ == "__main__":
    main()
