"""What moves with an actor to new code, kind by kind, and a class that is reloaded in a test."""

from __future__ import annotations

import collections
import copyreg
import dataclasses
import datetime
import enum
import io
import os
import tempfile
import threading
import weakref
from typing import Any, Generic, NamedTuple, TypeVar

import pytest
import rebeam
from rebeam import Actor, Supervisor, _state, child
from rebeam.testing import running

T = TypeVar("T")


class Colour(enum.Enum):
    RED = enum.auto()
    GREEN = enum.auto()


class Renumbered(enum.Enum):
    BLUE = enum.auto()
    GREEN = enum.auto()
    RED = enum.auto()


class Rights(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    items: list[int]


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenGrown:
    added: list[str] = dataclasses.field(default_factory=lambda: ["default"])
    items: list[int] = dataclasses.field(default_factory=list)
    kind: Colour = Colour.RED


@dataclasses.dataclass
class Node:
    value: Any
    colour: Colour
    below: Node | None = None


@dataclasses.dataclass
class NodeShrunk:
    value: Any
    below: Any = None


@dataclasses.dataclass
class NodeDemanding:
    value: Any
    colour: Colour
    below: Any
    demanded: int


class Point(NamedTuple):
    x: int
    y: list[int]


class PointGrown(NamedTuple):
    z: str = "default"
    y: tuple[int, ...] = ()
    x: int = 0


Old = collections.namedtuple("Old", "a b", defaults=[5])


class Slotted:
    __slots__ = ("__private", "open")

    def __init__(self) -> None:
        self.open, self.__private = 1, 2

    def private(self) -> int:
        return self.__private


class Holder(Actor):
    __slots__ = ("slot",)

    def report(self) -> str:
        return "report"


@pytest.fixture(autouse=True)
def no_stand_ins() -> Any:
    yield
    _state.forget_stand_ins()


def moved(actor: Actor, new: type[Actor] | None = None) -> Any:
    """The actor as another process would have it."""
    file = io.BytesIO()
    _state._Pickler(file, actor).dump(_state._attributes(actor))
    other = (new or type(actor)).__new__(new or type(actor))
    for name, value in _state._Unpickler(io.BytesIO(file.getvalue()), _state._stand_ins[-1], other).load().items():
        object.__setattr__(other, name, value)
    return other


@dataclasses.dataclass
class Bag(dict[str, int]):
    size: int = 0


@dataclasses.dataclass
class Numbers(list[int]):
    name: str = ""


class Base:
    __slots__ = ("own",)


@dataclasses.dataclass
class Derived(Base):
    field: int


@dataclasses.dataclass
class Made:
    value: int

    def __new__(cls, value: int) -> Made:
        return super().__new__(cls)

    def __getnewargs__(self) -> tuple[int]:
        return (self.value,)


@dataclasses.dataclass
class Listed(Generic[T]):
    items: list[T]


class Wide(Point):
    """With a `__dict__`."""


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(enum.StrEnum):
    YES = "yes"


class Reduced(enum.Enum):
    ONE = 1

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _reduced, ()


def _reduced() -> Reduced:
    return Reduced.ONE


class Huge:
    def __reduce__(self) -> Any:
        raise MemoryError


class CodedError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


@dataclasses.dataclass
class Registered:
    value: int


class Plain:
    pass


class Fewer(enum.Enum):
    GREEN = 1


def holder(**attributes: Any) -> Any:
    actor = Holder()
    for name, value in attributes.items():
        setattr(actor, name, value)
    return actor


def test_what_is_shared_stays_shared_and_the_actor_is_itself() -> None:
    shared = [1]
    actor = holder(a=shared, b={"deep": (shared,)}, frozen=Frozen(shared), point=Point(1, shared), slot=shared)
    actor.me, actor.on_done, actor.loop = actor, actor.report, []
    actor.loop.append(actor.loop)
    other = moved(actor)
    assert other.a is other.b["deep"][0] is other.frozen.items is other.point.y is other.slot
    assert other.me is other and other.on_done.__self__ is other and other.on_done() == "report"
    assert other.loop[0] is other.loop


def test_kinds_of_values() -> None:
    now = datetime.datetime.now(datetime.UTC)
    values = {
        "colour": Colour.GREEN,
        "rights": Rights.READ | Rights.WRITE,
        "no_rights": Rights(0),
        "node": Node(1, Colour.RED, Node(2, Colour.GREEN)),
        "old": Old(1),
        "now": now,
        "counter": collections.Counter("abca"),
        "default": collections.defaultdict(list, a=[1]),
        "queue": collections.deque([1, 2], maxlen=3),
        "error": ValueError("x"),
    }
    other = moved(holder(**values, slotted=Slotted()))
    for name, value in values.items():
        assert repr(getattr(other, name)) == repr(value), name
    assert other.colour is Colour.GREEN and other.node.below.colour is Colour.GREEN
    assert (other.slotted.open, other.slotted.private()) == (1, 2)


def test_nothing_is_lost_of_classes_that_hold_more_than_fields() -> None:
    bag, numbers, derived, wide = Bag(3), Numbers("n"), Derived(1), Wide(1, [2])
    bag["a"] = 1
    numbers.append(7)
    derived.own = "own"  # type: ignore[attr-defined]
    wide.more = "more"  # type: ignore[attr-defined]
    other = moved(
        holder(
            bag=bag,
            numbers=numbers,
            derived=derived,
            wide=wide,
            made=Made(4),
            listed=Listed([1]),
            level=Level.HIGH,
            word=Word.YES,
            reduced=Reduced.ONE,
        )
    )
    assert dict(other.bag) == {"a": 1} and other.bag.size == 3
    assert list(other.numbers) == [7] and other.numbers.name == "n"
    assert (other.derived.own, other.derived.field) == ("own", 1)
    assert (other.wide, other.wide.more) == ((1, [2]), "more") and type(other.wide) is Wide
    assert (other.made.value, other.listed.items) == (4, [1])
    assert other.level is Level.HIGH and other.word is Word.YES and other.reduced is Reduced.ONE


def test_exceptions_move_whatever_their_init_takes() -> None:
    error = CodedError(5, "x")
    error.__cause__ = ValueError("why")
    other = moved(holder(error=error, keyed=KeyError("k"), os=OSError(2, "no file", "name")))
    assert (str(other.error), other.error.code, repr(other.error.__cause__)) == ("5: x", 5, "ValueError('why')")
    assert repr(other.keyed) == "KeyError('k')" and other.os.filename == "name"


def test_registered_reducers_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(copyreg.dispatch_table, Registered, lambda value: (Registered, (value.value * 2,)))
    assert moved(holder(value=Registered(2))).value == Registered(4)


def test_finalizers_that_nobody_holds_go_along() -> None:
    thing, actor = Plain(), holder()
    actor.thing = thing
    kept = weakref.finalize(thing, print)
    pickler = _state._Pickler(io.BytesIO(), actor)
    pickler.dump(_state._attributes(actor))
    assert pickler.other_finalizers() == [kept]
    kept.detach()


def test_a_member_that_is_gone_is_named() -> None:
    _state.replace(Colour, Fewer)
    with pytest.raises(TypeError, match=r"`Fewer` has no member `RED` any more"):
        moved(holder(colour=Colour.RED))


def test_finalizers_go_along_with_their_objects() -> None:
    directory = tempfile.TemporaryDirectory()
    actor = holder(directory=directory)
    pickler = _state._Pickler(io.BytesIO(), actor)
    pickler.dump(_state._attributes(actor))
    assert [it.peek()[0] for it in pickler.finalizers] == [directory]  # type: ignore[index]
    other = moved(actor)
    assert other.directory._finalizer.alive
    directory._finalizer.detach()  # type: ignore[attr-defined]
    assert os.path.isdir(directory.name)
    other.directory.cleanup()
    assert not os.path.isdir(directory.name)


def test_a_lack_of_memory_is_no_fault_of_the_state() -> None:
    with running(Supervisor([child(Counter, name="a")])) as node:
        rebeam.ref(Counter, "a").call(Counter.keep, Huge)
        [change] = node.reload(Counter, Faster)
        assert change.outcome == "failed" and "MemoryError" in change.why
        assert rebeam.ref(Counter, "a").call(Counter.incr) == 1


def test_shapes_that_have_changed(caplog: pytest.LogCaptureFixture) -> None:
    actor = holder(
        frozen=Frozen([1]),
        nested={"deep": [Frozen([2])]},
        node=Node(1, Colour.RED, Node(2, Colour.GREEN)),
        point=Point(1, [2]),
        colour=Colour.RED,
    )
    for old, new in ((Frozen, FrozenGrown), (Node, NodeShrunk), (Point, PointGrown), (Colour, Renumbered)):
        _state.replace(old, new)
    other = moved(actor)
    assert other.frozen == FrozenGrown(["default"], [1]) and other.nested["deep"][0].items == [2]
    assert other.frozen.added is not other.nested["deep"][0].added
    assert other.node == NodeShrunk(1, NodeShrunk(2)) and other.point == PointGrown("default", [2], 1)  # type: ignore[arg-type]
    assert other.colour is Renumbered.RED
    assert "`NodeShrunk` has no field `colour` any more" in caplog.text


def test_a_new_field_without_a_default_is_an_error_that_says_so() -> None:
    _state.replace(Node, NodeDemanding)
    with pytest.raises(TypeError, match=r"`NodeDemanding` has the new field `demanded`.*code_change"):
        moved(holder(node=Node(1, Colour.RED)))


@pytest.mark.parametrize(
    ("attribute", "complaint"),
    [
        ({"a": {"deep": [threading.Lock()]}}, r"`self.value\['a'\]\['deep'\]\[0\]` cannot be moved: _thread.lock"),
        ({"a": lambda: None}, r"`self.value\['a'\]` cannot be moved: builtins.function"),
        ({"a": Node(threading.Lock(), Colour.RED)}, r"`self.value\['a'\].value` cannot be moved: _thread.lock"),
        ({"a": (letter for letter in "")}, r"`self.value\['a'\]` cannot be moved: builtins.generator"),
    ],
)
def test_what_does_not_move_is_named(attribute: Any, complaint: str) -> None:
    actor = holder(value=attribute, me=None)
    actor.me = actor
    state = _state._attributes(actor)
    with pytest.raises(Exception) as failure:
        _state._Pickler(io.BytesIO(), actor).dump(state)
    with pytest.raises(_state.CannotMoveError, match=complaint):
        raise _state._explained(actor, "attributes", state, failure.value)


class Counter(Actor):
    def init(self) -> None:
        self.n = 0

    def incr(self) -> int:
        self.n += 1
        return self.n

    def ask_later(self) -> Any:
        self.asked = rebeam.caller()
        return rebeam.NoReply

    def late(self) -> None:
        rebeam.reply(self.asked, self.n)

    def keep(self, cls: Any) -> None:
        self.kept = cls()

    def keep_node(self) -> None:
        self.node = Node(1, Colour.RED)


class Demands(Counter):
    def code_change(self, old_version: Any, state: Any) -> Any:
        state["node"].demanded = 7
        return state

    def demanded(self) -> Any:
        return self.node.demanded  # type: ignore[attr-defined]


class Forgets(Counter):
    def code_change(self, old_version: Any, state: Any) -> Any:
        state["n"] = 0


class Idles(Counter):
    def init(self) -> None:
        super().init()
        rebeam.idle(10.0)

    def handle_info(self, message: Any) -> None:
        self.n += 1000


class IdlesOn(Idles):
    pass


class Faster(Counter):
    def code_change(self, old_version: Any, state: Any) -> Any:
        return {**state, "n": state["n"] * 100, "from": old_version}

    def incr(self) -> int:
        self.n += 10
        return self.n


class Refuses(Counter):
    def code_change(self, old_version: Any, state: Any) -> Any:
        raise ValueError("I refuse")


class Dies(Counter):
    def incr(self) -> int:
        raise ZeroDivisionError


class Locked(Counter):
    def init(self) -> None:
        super().init()
        self.lock = threading.Lock()


def test_upg_003_a_class_is_reloaded_in_a_test() -> None:
    with running(Supervisor([child(Counter, name="a")])) as node:
        counter = rebeam.ref(Counter, "a")
        monitor = rebeam.monitor(counter)
        counter.call(Counter.incr)
        assert node.reload(Counter, Faster) == [("a", "moved", "")]
        assert counter.call(Counter.incr) == 110
        [change] = node.reload(Counter, Refuses)
        assert change.outcome == "failed" and "I refuse" in change.why
        assert counter.call(Counter.incr) == 120
        rebeam.demonitor(monitor, flush=True)
        assert node.deaths == []


def test_new_code_is_on_probation_by_the_time_of_the_test() -> None:
    with running(Supervisor([child(Counter, name="a")])) as node:
        counter = rebeam.ref(Counter, "a")
        counter.call(Counter.incr)
        node.reload(Counter, Dies)
        with pytest.raises(ZeroDivisionError):
            counter.call(Counter.incr)
        assert counter.call(Counter.incr) == 2
        assert (node.deaths[0].next, node.deaths[0].undone) == ("undone", (1, 0))
        node.reload(Counter, Dies)
        node.advance(10.0)
        with pytest.raises(ZeroDivisionError):
            counter.call(Counter.incr)
        node.idle()
        assert node.deaths[1].next == "restarts"


def test_classes_are_replaced_one_after_another() -> None:
    with running(Supervisor([child(Counter, name="a")])) as node:
        assert node.reload(Counter, Faster)[0].outcome == "moved"
        assert node.reload(Faster, Refuses)[0].outcome == "failed"
        node.reload(Refuses, Idles)
        assert rebeam.ref(Counter, "a").call(Counter.incr) == 1
        with pytest.raises(TypeError, match="two classes of actors"):
            node.reload(int, str)  # type: ignore[arg-type]


def test_code_change_gives_a_value_to_a_new_field(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(Supervisor([child(Counter, name="a")])) as node:
        rebeam.ref(Counter, "a").call(Counter.keep_node)
        monkeypatch.setitem(_state._stand_ins[0], (Node.__module__, "Node"), NodeDemanding)
        assert node.reload(Counter, Demands) == [("a", "moved", "")]
        assert rebeam.ref(Demands, "a").call(Demands.demanded) == 7


def test_a_code_change_that_returns_nothing_is_named() -> None:
    with running(Supervisor([child(Counter, name="a")])) as node:
        [change] = node.reload(Counter, Forgets)
        assert "`Forgets.code_change` returned None: it has to return the state" in change.why


def test_an_idle_time_goes_on_in_the_next_process() -> None:
    with running(Supervisor([child(Idles, name="a")])) as node:
        node.advance(6.0)
        assert node.reload(Idles, IdlesOn)[0].outcome == "moved"
        node.advance(3.0)
        assert rebeam.get_state(rebeam.ref(Idles, "a"))["n"] == 0
        node.advance(2.0)
        assert rebeam.get_state(rebeam.ref(Idles, "a"))["n"] == 1000


def test_what_cannot_move_starts_over() -> None:
    with running(Supervisor([child(Locked, name="a")])) as node:
        counter = rebeam.ref(Locked, "a")
        counter.call(Counter.incr)
        [change] = node.reload(Locked, Faster)
        assert change.outcome == "restarted" and "`self.lock` cannot be moved" in change.why
        assert counter.call(Counter.incr) == 10


def test_a_call_whose_answer_was_put_off_is_answered_by_new_code() -> None:
    with running(Supervisor([child(Counter, name="a")])) as node:
        counter = rebeam.ref(Counter, "a")
        asked = counter.request(Counter.ask_later)
        node.idle()
        node.reload(Counter, Faster)
        counter.cast(Counter.late)
        assert asked.result() == 0


def test_code_change_may_stand_in_another_module() -> None:
    class Other(Counter):
        pass

    @rebeam.code_change(Other)
    def upgrade(old_version: Any, state: Any) -> Any:
        return {"n": state["n"] + 1000}

    with running(Supervisor([child(Counter, name="a")])) as node:
        node.reload(Counter, Other)
        assert rebeam.ref(Counter, "a").call(Counter.incr) == 1001
    with pytest.raises(rebeam.SpecError, match="name the class of an actor"):
        rebeam.code_change(int)  # type: ignore[arg-type]
