//! Operations on tables against a model of them.

#![allow(clippy::unwrap_used, reason = "a test fails by that")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use rebeam_protocol::id::{Generation, NodeStart, Pid, ProcessId, RequestId};
use rebeam_protocol::table::{
    Access, Extent, NewRow, OnFull, Only, Operation, Outcome, PICKLE, PLAIN, Table, TableError, TableId, TableKind,
};
use rebeam_protocol::value::{self, Value};
use rebeam_store::key::{Numbers, encode};
use rebeam_store::row::{self, Row, Size};
use rebeam_store::{Array, Reader, ReaderId, Request, Store, Tables};

const OWNER: Pid = Pid { at: NodeStart { node: 0, started: 1 }, serial: 7 };
const STRANGER: Pid = Pid { serial: 8, ..OWNER };
const KINDS: [TableKind; 4] = [TableKind::Set, TableKind::OrderedSet, TableKind::Bag, TableKind::DuplicateBag];

/// A change, with keys and values that are few.
#[derive(Clone, Debug)]
enum Change {
    Put(Vec<(u8, u8)>, bool),
    PutIf(u8, u8, bool),
    Delete(u8),
    DeleteValue(u8, u8),
    DeletePrefix(u8),
    Clear,
    Take(u8),
    Add(u8, i8, Option<u8>),
}

fn changes() -> impl Strategy<Value = Change> {
    let (key, value) = (0u8..8, 0u8..4);
    prop_oneof![
        4 => (proptest::collection::vec((key.clone(), value.clone()), 1..4), any::<bool>()).prop_map(|(r, o)| Change::Put(r, o)),
        1 => (key.clone(), value.clone(), any::<bool>()).prop_map(|(k, v, right)| Change::PutIf(k, v, right)),
        2 => key.clone().prop_map(Change::Delete),
        1 => (key.clone(), value.clone()).prop_map(|(k, v)| Change::DeleteValue(k, v)),
        1 => (0u8..3).prop_map(Change::DeletePrefix),
        1 => Just(Change::Clear),
        2 => key.clone().prop_map(Change::Take),
        2 => (key, any::<i8>(), proptest::option::of(value)).prop_map(|(k, by, d)| Change::Add(k, by, d)),
    ]
}

/// Keys are pairs, so that some begin alike.
fn key(number: u8) -> Vec<u8> {
    let pair = [number / 3, number % 3].map(|part| Value::Int(part.into()));
    encode(&Value::Tuple(pair.to_vec()), Numbers::ByType).unwrap()
}

fn prefix(number: u8) -> Vec<u8> {
    rebeam_store::key::encode_prefix(&[Value::Int(number.into())], Numbers::ByType).unwrap()
}

fn plain(number: i128) -> Vec<u8> {
    [&[PLAIN], &value::encode(&Value::Int(number))[..]].concat()
}

fn number(bytes: &[u8]) -> i128 {
    match value::decode(&bytes[1..]) {
        Ok(Value::Int(number)) => number,
        other => panic!("{other:?}"),
    }
}

type Model = BTreeMap<Vec<u8>, Vec<i128>>;

/// What a change does to a model, and whether it is done; what it gives.
fn model_of(model: &mut Model, kind: TableKind, change: &Change) -> Result<Vec<i128>, &'static str> {
    let put = |model: &mut Model, key: Vec<u8>, value: i128| {
        let values = model.entry(key).or_default();
        match kind {
            TableKind::Set | TableKind::OrderedSet => *values = vec![value],
            TableKind::Bag if values.contains(&value) => {}
            TableKind::Bag | TableKind::DuplicateBag => values.push(value),
        }
    };
    match change {
        Change::Put(rows, only_new) => {
            if *only_new && rows.iter().any(|(k, _)| model.contains_key(&key(*k))) {
                return Err("refused");
            }
            rows.iter().for_each(|(k, v)| put(model, key(*k), (*v).into()));
        }
        Change::PutIf(..) if kind.is_bag() => return Err("bad"),
        Change::PutIf(k, _, right) if !*right || !model.contains_key(&key(*k)) => return Err("refused"),
        Change::PutIf(k, v, _) => put(model, key(*k), (*v).into()),
        Change::Delete(k) => drop(model.remove(&key(*k))),
        Change::DeleteValue(..) if !kind.is_bag() => return Err("bad"),
        Change::DeleteValue(k, v) => {
            if let Some(values) = model.get_mut(&key(*k)) {
                values.retain(|value| *value != i128::from(*v));
            }
        }
        Change::DeletePrefix(number) => model.retain(|key, _| !key.starts_with(&prefix(*number))),
        Change::Clear => model.clear(),
        Change::Take(k) => return Ok(model.remove(&key(*k)).unwrap_or_default()),
        Change::Add(..) if kind.is_bag() => return Err("bad"),
        Change::Add(k, by, default) => {
            let there = model.get(&key(*k)).and_then(|values| values.first().copied());
            let Some(there) = there.or(default.map(i128::from)) else { return Err("refused") };
            let sum = there + i128::from(*by);
            put(model, key(*k), sum);
            return Ok(vec![sum]);
        }
    }
    model.retain(|_, values| !values.is_empty());
    Ok(Vec::new())
}

struct World {
    tables: Tables,
    id: ReaderId,
    reader: Reader,
}

impl World {
    fn new(most_bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::create(directory.path(), 1 << 28).unwrap();
        let (id, fds) = store.attach().unwrap();
        let reader = Reader::open(fds, store.map_size()).unwrap();
        let mut tables = Tables::new(store, most_bytes, 1 << 20).unwrap();
        for (place, kind) in KINDS.into_iter().enumerate() {
            tables.note(TableId(place as u64), OWNER, Table::new(kind, Access::Protected));
        }
        World { tables, id, reader }
    }

    fn operate(&mut self, id: u64, by: Pid, operation: &Operation<'_>) -> Result<Vec<u8>, TableError> {
        let operation = postcard::to_stdvec(operation).unwrap();
        self.tables
            .operate(&[Request { id: TableId(id), by, operation: &operation, arrays: None }], 0)
            .unwrap()
            .pop()
            .unwrap()
    }

    fn rows(&self, id: u64) -> Model {
        let snapshot = self.reader.snapshot().unwrap();
        let mut rows = snapshot.rows(&row::prefix(TableId(id))).unwrap();
        rows.seek(&row::first(TableId(id)));
        let mut model = Model::new();
        while let Some((whole, value)) = rows.next_row().unwrap() {
            let key = row::key_of(whole, KINDS[id as usize].is_bag()).unwrap();
            model.entry(key.to_vec()).or_default().push(number(Row::decode(value).unwrap().value));
        }
        model
    }

    fn size(&self, id: u64) -> Size {
        let snapshot = self.reader.snapshot().unwrap();
        Size::decode(snapshot.get(&Size::key(TableId(id))).unwrap())
    }

    fn version(&self, id: u64, key: &[u8]) -> u64 {
        let snapshot = self.reader.snapshot().unwrap();
        let value = snapshot.get(&row::of(TableId(id), key)).unwrap();
        value.and_then(Row::decode).map_or(0, |row| row.version)
    }

    fn change(&mut self, id: u64, change: &Change) -> Result<Vec<i128>, &'static str> {
        let values: Vec<(Vec<u8>, Vec<u8>)> = match change {
            Change::Put(rows, _) => rows.iter().map(|(k, v)| (key(*k), plain((*v).into()))).collect(),
            Change::PutIf(k, v, _) | Change::DeleteValue(k, v) => vec![(key(*k), plain((*v).into()))],
            Change::Delete(k) | Change::Take(k) => vec![(key(*k), Vec::new())],
            Change::Add(k, _, default) => vec![(key(*k), default.map_or_else(Vec::new, |it| plain(it.into())))],
            Change::DeletePrefix(number) => vec![(prefix(*number), Vec::new())],
            Change::Clear => vec![(Vec::new(), Vec::new())],
        };
        let rows: Vec<NewRow<'_>> =
            values.iter().map(|(key, value)| NewRow { key, original: b"", expires: 0, value }).collect();
        let (key, value) = (&*values[0].0, &*values[0].1);
        let operation = match change {
            Change::Put(_, true) => Operation::Put { rows, only: Only::IfNew },
            Change::Put(_, false) => Operation::Put { rows, only: Only::Always },
            Change::PutIf(_, _, right) => {
                let version = self.version(id, key) + u64::from(!right);
                Operation::Put { rows, only: Only::IfVersion(version) }
            }
            Change::Delete(_) => Operation::Delete { key, only: Only::Always },
            Change::DeleteValue(..) => Operation::DeleteValue { key, value },
            Change::DeletePrefix(_) | Change::Clear => Operation::DeletePrefix { prefix: key },
            Change::Take(_) => Operation::Take { key },
            Change::Add(_, by, _) => Operation::Add { row: rows[0], by: Value::Int((*by).into()) },
        };
        match self.operate(id, OWNER, &operation) {
            Ok(outcome) => match postcard::from_bytes(&outcome).unwrap() {
                Outcome::Refused => Err("refused"),
                Outcome::Done(_) => Ok(Vec::new()),
                Outcome::Taken(values) => Ok(values.iter().map(|value| number(value.0)).collect()),
                Outcome::Sum(Value::Int(sum)) => Ok(vec![sum]),
                other @ (Outcome::Sum(_) | Outcome::Granted | Outcome::There) => panic!("{other:?}"),
            },
            Err(TableError::BadRequest(_)) => Err("bad"),
            Err(error) => panic!("{error:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 200, ..ProptestConfig::default() })]

    /// ETS-003, ETS-005.
    #[test]
    fn ets_003_005_changes_do_what_they_do_to_a_model(
        steps in proptest::collection::vec((0u64..4, changes()), 1..60),
    ) {
        let mut world = World::new(u64::MAX);
        let mut models: [Model; 4] = Default::default();
        for (id, change) in &steps {
            let expected = model_of(&mut models[*id as usize], KINDS[*id as usize], change);
            prop_assert_eq!(world.change(*id, change), expected, "{:?} {:?}", KINDS[*id as usize], change);
        }
        for id in 0..4 {
            prop_assert_eq!(&world.rows(id), &models[id as usize]);
            let rows: usize = models[id as usize].values().map(Vec::len).sum();
            prop_assert_eq!(world.size(id).rows, rows as u64);
            prop_assert_eq!(world.size(id).bytes == 0, rows == 0);
            // A table that is gone leaves nothing.
            world.tables.forget(TableId(id));
        }
        while world.tables.clear_up().unwrap() {}
        let snapshot = world.reader.snapshot().unwrap();
        prop_assert!(snapshot.rows(b"").unwrap().next_row().unwrap().is_none());
    }
}

#[test]
fn ets_002_a_stranger_changes_nothing() {
    let mut world = World::new(u64::MAX);
    let value = plain(1);
    let key = key(1);
    let put = |id| {
        (
            id,
            Operation::Put {
                rows: vec![NewRow { key: &key, original: b"", expires: 0, value: &value }],
                only: Only::Always,
            },
        )
    };
    let (id, operation) = put(0);
    assert_eq!(world.operate(id, STRANGER, &operation), Err(TableError::NotYours));
    assert_eq!(world.operate(9, OWNER, &operation), Err(TableError::NoTable));
    assert!(world.operate(id, OWNER, &operation).is_ok());
    world.tables.note(TableId(0), STRANGER, Table::new(TableKind::Set, Access::Private));
    assert_eq!(world.operate(id, OWNER, &operation), Err(TableError::NotYours));
    assert!(world.operate(id, STRANGER, &operation).is_ok());
}

#[test]
fn what_does_not_fit_is_refused_alone_and_fits_when_something_is_gone() {
    let mut world = World::new(100_000);
    let large = [&[PICKLE], &[7; 60_000][..]].concat();
    let keys = [1, 2].map(key);
    let put = |key| Operation::Put {
        rows: vec![NewRow { key, original: b"", expires: 0, value: &large }],
        only: Only::Always,
    };
    let operations: Vec<Vec<u8>> =
        [&keys[0], &keys[1], &keys[0]].map(|key| postcard::to_stdvec(&put(key)).unwrap()).to_vec();
    let requests: Vec<Request<'_>> =
        operations.iter().map(|operation| Request { id: TableId(0), by: OWNER, operation, arrays: None }).collect();
    let results = world.tables.operate(&requests, 0).unwrap();
    assert!(results[0].is_ok() && results[1] == Err(TableError::Full), "{:?}", results[1]);
    assert_eq!(world.size(0).rows, 1);
    assert!(world.operate(0, OWNER, &Operation::Delete { key: &keys[0], only: Only::Always }).is_ok());
    assert!(world.operate(0, OWNER, &put(&keys[1])).is_ok());
    // What a store before has left counts, too.
    let directory = tempfile::tempdir().unwrap();
    let [data, arrays] = world.tables.store.files().unwrap();
    let mut again =
        Tables::new(Store::restore(&data, arrays, directory.path(), 1 << 28).unwrap(), 100_000, 1 << 20).unwrap();
    again.note(TableId(0), OWNER, Table::new(TableKind::Set, Access::Protected));
    let request = Request { id: TableId(0), by: OWNER, operation: &operations[0], arrays: None };
    assert_eq!(again.operate(&[request], 0).unwrap().pop(), Some(Err(TableError::Full)));
    again.forget(TableId(0));
    again.note(TableId(1), OWNER, Table::new(TableKind::Set, Access::Protected));
    while again.clear_up().unwrap() {}
    let request = Request { id: TableId(1), ..request };
    assert!(again.operate(&[request], 0).unwrap().pop().unwrap().is_ok());
}

#[test]
fn bytes_that_are_no_operation_are_refused() {
    let mut world = World::new(u64::MAX);
    for operation in [&b""[..], b"\xff\xff\xff", b"\x00\xff\xff\xff\xff\x0f", b"\x00\x01\x00\x00\x00\x00"] {
        let request = Request { id: TableId(0), by: OWNER, operation, arrays: None };
        let result = world.tables.operate(&[request], 0).unwrap().pop().unwrap();
        assert!(matches!(result, Err(TableError::BadRequest(_))), "{result:?}");
    }
    let put = |key: &[u8]| {
        let rows = vec![NewRow { key, original: b"", expires: 0, value: b"\x01" }];
        postcard::to_stdvec(&Operation::Put { rows, only: Only::Always }).unwrap()
    };
    for key in [&b""[..], b"\x00", &[5; 4000]] {
        let request = Request { id: TableId(0), by: OWNER, operation: &put(key), arrays: None };
        assert!(matches!(world.tables.operate(&[request], 0).unwrap().pop().unwrap(), Err(TableError::BadRequest(_))));
    }
    assert_eq!(world.size(0).rows, 0);
}

#[test]
fn rows_expire_and_leave_nothing() {
    let mut world = World::new(u64::MAX);
    let value = plain(1);
    let keys: Vec<Vec<u8>> = (0..8).map(key).collect();
    let put = |world: &mut World, id: u64, key: &[u8], expires: u64, now: u64| {
        let rows = vec![NewRow { key, original: b"", expires, value: &value }];
        let operation = postcard::to_stdvec(&Operation::Put { rows, only: Only::IfNew }).unwrap();
        let request = Request { id: TableId(id), by: OWNER, operation: &operation, arrays: None };
        let outcome = world.tables.operate(&[request], now).unwrap().pop().unwrap().unwrap();
        postcard::from_bytes::<Outcome<'_>>(&outcome).unwrap() == Outcome::Done(1)
    };
    for id in [0, 3] {
        for (place, key) in keys.iter().enumerate() {
            assert!(put(&mut world, id, key, 100 + place as u64, 0));
        }
    }
    assert!(!put(&mut world, 0, &keys[0], 0, 99));
    assert_eq!(world.tables.next_expiry().unwrap(), Some(100));
    // One that was put anew, and one that was removed, do not expire as before.
    assert!(put(&mut world, 0, &keys[0], 0, 100));
    assert_eq!(world.rows(0).len(), 8);
    assert!(world.operate(0, OWNER, &Operation::Delete { key: &keys[1], only: Only::Always }).is_ok());
    assert!(!world.tables.expire(104).unwrap());
    assert_eq!(world.rows(0).keys().cloned().collect::<Vec<_>>(), [&keys[..1], &keys[5..]].concat());
    assert_eq!((world.size(0).rows, world.size(3).rows), (4, 3));
    assert_eq!(world.tables.next_expiry().unwrap(), Some(105));
    world.tables.forget(TableId(3));
    while world.tables.clear_up().unwrap() {}
    assert!(!world.tables.expire(1000).unwrap());
    assert_eq!(world.rows(0).keys().cloned().collect::<Vec<_>>(), keys[..1]);
    assert_eq!(world.tables.next_expiry().unwrap(), None);
    world.tables.forget(TableId(0));
    while world.tables.clear_up().unwrap() {}
    let snapshot = world.reader.snapshot().unwrap();
    assert!(snapshot.rows(b"").unwrap().next_row().unwrap().is_none());
}

#[test]
fn a_claim_passes_from_one_to_the_next_until_there_is_a_row() {
    let mut world = World::new(u64::MAX);
    world.tables.note(TableId(0), OWNER, Table::new(TableKind::Set, Access::Public));
    let (key, value) = (key(1), plain(1));
    let of = |serial, generation| {
        (ProcessId { pid: Pid { serial, ..OWNER }, generation: Generation(generation) }, RequestId(serial))
    };
    // The second is another process of the first one's incarnation.
    let actors = [of(10, 0), of(10, 1), of(11, 0), of(12, 0), of(13, 0), of(14, 0)];
    let answers = |tables: &mut Tables| -> Vec<(u64, Option<bool>)> {
        let answers = tables.take_answers();
        let is_granted = |bytes: &[u8]| postcard::from_bytes::<Outcome<'_>>(bytes).unwrap() == Outcome::Granted;
        answers.into_iter().map(|(tag, result)| (tag, result.ok().map(|bytes| is_granted(&bytes)))).collect()
    };
    let tables = &mut world.tables;
    for (tag, by) in (0..).zip(&actors) {
        tables.claim(tag, TableId(0), *by, &key, 0).unwrap();
    }
    assert_eq!(answers(tables), [(0, Some(true))]);
    // Somebody who waits ends; then the holder; the next gives up; what a stranger gives up is not his.
    tables.ended(actors[1].0);
    tables.ended(actors[0].0);
    assert_eq!(answers(tables), [(2, Some(true))]);
    tables.release(20, TableId(0), (actors[5].0, RequestId(99)), &key);
    assert_eq!(answers(tables), [(20, Some(false))]);
    tables.release(21, TableId(0), actors[2], &key);
    assert_eq!(answers(tables), [(21, Some(false)), (3, Some(true))]);
    assert_eq!(answers(tables), []);
    // A row is there, until it expires.
    let rows = vec![NewRow { key: &key, original: b"", expires: 50, value: &value }];
    let put = postcard::to_stdvec(&Operation::Put { rows, only: Only::Always }).unwrap();
    tables.operate(&[Request { id: TableId(0), by: actors[3].0.pid, operation: &put, arrays: None }], 0).unwrap();
    assert_eq!(answers(tables), [(4, Some(false)), (5, Some(false))]);
    tables.claim(6, TableId(0), actors[0], &key, 49).unwrap();
    tables.claim(7, TableId(0), actors[0], &key, 50).unwrap();
    tables.claim(8, TableId(0), actors[1], &key, 50).unwrap();
    assert_eq!(answers(tables), [(6, Some(false)), (7, Some(true))]);
    // The table goes; and one that is not the actor's, or a bag, or not there, refuses.
    tables.forget(TableId(0));
    assert_eq!(answers(tables), [(8, None)]);
    for (tag, id) in [(9, 0), (10, 1), (11, 2)] {
        tables.claim(tag, TableId(id), actors[0], &key, 0).unwrap();
    }
    tables.claim(12, TableId(2), of(OWNER.serial, 0), &key, 0).unwrap();
    assert_eq!(answers(tables), [(9, None), (10, None), (11, None), (12, None)]);
}

#[test]
fn what_is_too_large_for_an_answer_is_not_taken() {
    let mut world = World::new(u64::MAX);
    let (key, large) = (key(1), [&[PICKLE], &[7; 600_000][..]].concat());
    let put = Operation::Put {
        rows: vec![NewRow { key: &key, original: b"", expires: 0, value: &large }],
        only: Only::Always,
    };
    for _ in 0..2 {
        assert!(world.operate(3, OWNER, &put).is_ok());
    }
    let taken = world.operate(3, OWNER, &Operation::Take { key: &key });
    assert!(matches!(taken, Err(TableError::BadRequest(_))) && world.size(3).rows == 2, "{taken:?}");
}

#[test]
fn a_counter_expires_when_it_was_to() {
    let mut world = World::new(u64::MAX);
    let (key, value) = (key(1), plain(1));
    let row = NewRow { key: &key, original: b"", expires: 50, value: &value };
    assert!(world.operate(0, OWNER, &Operation::Put { rows: vec![row], only: Only::Always }).is_ok());
    let add = Operation::Add { row: NewRow { expires: 0, ..row }, by: Value::Int(1) };
    assert!(world.operate(0, OWNER, &add).is_ok());
    assert_eq!(world.tables.next_expiry().unwrap(), Some(50));
}

#[test]
fn a_table_with_a_limit_refuses_or_lets_the_oldest_go() {
    let mut world = World::new(u64::MAX);
    let limited = |on_full| Table { max_bytes: Some(1000), on_full, ..Table::new(TableKind::Set, Access::Public) };
    world.tables.note(TableId(0), OWNER, limited(OnFull::Error));
    world.tables.note(TableId(1), OWNER, limited(OnFull::Oldest));
    let value = [&[PICKLE], &[7; 100][..]].concat();
    let keys: Vec<Vec<u8>> = (0..20).map(key).collect();
    let put = |world: &mut World, id: u64, place: usize| {
        let rows = vec![NewRow { key: &keys[place], original: b"", expires: 0, value: &value }];
        world.operate(id, OWNER, &Operation::Put { rows, only: Only::Always })
    };
    let there = |world: &World, id: u64| -> Vec<usize> {
        let snapshot = world.reader.snapshot().unwrap();
        (0..20).filter(|place| snapshot.get(&row::of(TableId(id), &keys[*place])).unwrap().is_some()).collect()
    };
    let fitting = (0..20).take_while(|place| put(&mut world, 0, *place).is_ok()).count();
    assert!((4..8).contains(&fitting), "{fitting}");
    assert_eq!(put(&mut world, 0, 19), Err(TableError::AtLimit));
    assert!(put(&mut world, 0, 0).is_ok(), "in the place of another");
    assert!(world.operate(0, OWNER, &Operation::Delete { key: &keys[1], only: Only::Always }).is_ok());
    assert!(put(&mut world, 0, 19).is_ok());
    // The oldest, by when they were written.
    for place in 0..fitting {
        assert!(put(&mut world, 1, place).is_ok());
    }
    assert!(put(&mut world, 1, 0).is_ok() && put(&mut world, 1, 10).is_ok() && put(&mut world, 1, 11).is_ok());
    assert_eq!(there(&world, 1), [&[0][..], &(3..fitting).collect::<Vec<_>>(), &[10, 11]].concat());
    let huge = [&[PICKLE], &[7; 1000][..]].concat();
    let rows = vec![NewRow { key: &keys[0], original: b"", expires: 0, value: &huge }];
    let put_huge = Operation::Put { rows, only: Only::Always };
    assert_eq!(world.operate(1, OWNER, &put_huge), Err(TableError::AtLimit));
    assert!(world.size(1).bytes <= 1000 && there(&world, 1).len() == fitting);
    for id in 0..4 {
        world.tables.forget(TableId(id));
    }
    while world.tables.clear_up().unwrap() {}
    let snapshot = world.reader.snapshot().unwrap();
    assert!(snapshot.rows(b"").unwrap().next_row().unwrap().is_none());
}

/// What is kept for nobody is used again, however few transactions there are.
#[test]
fn large_rows_are_written_again_and_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), 192 << 20).unwrap();
    let mut tables = Tables::new(store, 64 << 20, 1 << 30).unwrap();
    tables.note(TableId(0), OWNER, Table::new(TableKind::Set, Access::Public));
    let (key, value) = (key(1), [&[PICKLE], &vec![7; 30 << 20][..]].concat());
    let rows = vec![NewRow { key: &key, original: b"", expires: 0, value: &value }];
    let put = postcard::to_stdvec(&Operation::Put { rows, only: Only::Always }).unwrap();
    for turn in 0..30 {
        let result = tables
            .operate(&[Request { id: TableId(0), by: OWNER, operation: &put, arrays: None }], 0)
            .unwrap()
            .pop()
            .unwrap();
        assert!(result.is_ok(), "turn {turn}: {result:?}");
    }
    tables.forget(TableId(0));
    while tables.clear_up().unwrap() {}
}

#[test]
fn keys_that_are_none_reach_nothing_of_the_table_s_own() {
    let mut world = World::new(u64::MAX);
    let value = plain(1);
    for id in [0, 3] {
        let one = key(1);
        let rows = vec![NewRow { key: &one, original: b"", expires: 0, value: &value }];
        assert!(world.operate(id, OWNER, &Operation::Put { rows, only: Only::Always }).is_ok());
        let before = world.size(id);
        for key in [&b""[..], b"\x00", b"\x01", &[9; 5000]] {
            let operations = [
                Operation::Delete { key, only: Only::Always },
                Operation::Take { key },
                Operation::DeleteValue { key, value: &value },
            ];
            for operation in operations {
                assert!(world.operate(id, OWNER, &operation).is_err(), "{operation:?}");
            }
        }
        for prefix in [&b"\x00"[..], b"\x01"] {
            assert!(world.operate(id, OWNER, &Operation::DeletePrefix { prefix }).is_err());
        }
        assert_eq!(world.size(id), before);
    }
}

#[test]
fn counters_count_against_the_limit_and_rows_may_become_smaller_at_it() {
    let mut world = World::new(10_000);
    let value = plain(0);
    let long: Vec<Vec<u8>> = (0..100).map(|number| [&[5][..], &[number; 200], &[0, 1]].concat()).collect();
    let added = long.iter().take_while(|key| {
        let row = NewRow { key, original: b"", expires: 0, value: &value };
        world.operate(0, OWNER, &Operation::Add { row, by: Value::Int(1) }).is_ok()
    });
    let count = added.count();
    assert!((30..45).contains(&count), "{count}");
    let row = NewRow { key: &long[0], original: b"", expires: 0, value: &value[..1] };
    assert!(world.operate(0, OWNER, &Operation::Put { rows: vec![row], only: Only::Always }).is_ok());
}

/// Arrays in memory of their own, as an actor sends them.
fn memory(bytes: &[&[u8]]) -> (std::os::fd::OwnedFd, Vec<Extent>) {
    use std::os::unix::fs::FileExt;
    let page = rebeam_sys::memory::page_size() as u64;
    let mut end = 0;
    let mut extents = Vec::new();
    for bytes in bytes {
        extents.push(Extent { offset: end, length: bytes.len() as u64 });
        end = (end + bytes.len() as u64).next_multiple_of(page);
    }
    let file = std::fs::File::from(rebeam_sys::memory::create(c"test", end.max(1) as usize).unwrap());
    for (bytes, extent) in bytes.iter().zip(&extents) {
        file.write_all_at(bytes, extent.offset).unwrap();
    }
    (file.into(), extents)
}

impl World {
    fn put_arrays(&mut self, id: u64, arrays: &[(&[u8], &[u8])]) -> Result<Vec<u8>, TableError> {
        let (memory, extents) = memory(&arrays.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>());
        let values: Vec<Vec<u8>> = extents.iter().map(|extent| extent.encode(b"rest")).collect();
        let rows = arrays.iter().zip(&values);
        let rows = rows.map(|((key, _), value)| NewRow { key, original: b"", expires: 0, value }).collect();
        let operation = postcard::to_stdvec(&Operation::Put { rows, only: Only::Always }).unwrap();
        let request = Request { id: TableId(id), by: OWNER, operation: &operation, arrays: Some(&memory) };
        self.tables.operate(&[request], 0).unwrap().pop().unwrap()
    }

    fn array(&self, id: u64, key: &[u8]) -> Option<std::sync::Arc<Array>> {
        let snapshot = self.reader.snapshot().unwrap();
        let row = Row::decode(snapshot.get(&row::of(TableId(id), key)).unwrap()?).unwrap();
        let (extent, rest) = Extent::of(row.value).unwrap();
        assert_eq!(rest, b"rest");
        Some(snapshot.array(extent).unwrap())
    }

    /// Bytes of memory that arrays take.
    fn array_bytes(&mut self) -> u64 {
        self.tables.store.release();
        let [_, arrays] = self.tables.store.files().unwrap();
        nix::sys::stat::fstat(&arrays).unwrap().st_blocks as u64 * 512
    }
}

#[test]
fn an_array_stays_for_who_looks_at_it_and_goes_with_the_last_of_them() {
    let mut world = World::new(1 << 30);
    let (large, larger) = (vec![1; 100_000], vec![2; 300_000]);
    world.put_arrays(0, &[(b"a", &large), (b"b", &larger)]).unwrap();
    let (a, again, b) = (world.array(0, b"a").unwrap(), world.array(0, b"a").unwrap(), world.array(0, b"b").unwrap());
    assert_eq!((a.bytes(), b.bytes()), (&large[..], &larger[..]));
    assert_eq!(a.bytes().as_ptr(), again.bytes().as_ptr(), "it is mapped once");
    assert_eq!(world.size(0).bytes / 100_000, 4, "a table's bytes are those of its arrays, too");
    let page = rebeam_sys::memory::page_size() as u64;
    let (a_bytes, b_bytes) = (100_000u64.next_multiple_of(page), 300_000u64.next_multiple_of(page));
    assert_eq!(world.array_bytes(), a_bytes + b_bytes);

    // One is replaced, the other one removed: both are looked at.
    world.put_arrays(0, &[(b"a", &larger)]).unwrap();
    world.operate(0, OWNER, &Operation::Delete { key: b"b", only: Only::Always }).unwrap();
    assert_eq!(world.array_bytes(), a_bytes + 2 * b_bytes);
    assert_eq!((a.bytes(), b.bytes()), (&large[..], &larger[..]));
    drop((a, b));
    assert_eq!(world.array_bytes(), a_bytes + b_bytes, "somebody looks still");
    drop(again);
    assert_eq!(world.array_bytes(), b_bytes);
    assert_eq!(world.array(0, b"a").unwrap().bytes(), &larger[..]);

    // A snapshot may still ask for what it shows.
    let snapshot = world.reader.snapshot().unwrap();
    let row = snapshot.get(&row::of(TableId(0), b"a")).unwrap().unwrap().to_vec();
    world.operate(0, OWNER, &Operation::DeletePrefix { prefix: b"" }).unwrap();
    assert_eq!(world.array_bytes(), b_bytes);
    let (extent, _) = Extent::of(Row::decode(&row).unwrap().value).unwrap();
    let late = snapshot.array(extent).unwrap();
    drop(snapshot);
    assert_eq!(world.array_bytes(), b_bytes);
    assert_eq!(late.bytes(), &larger[..]);
    drop(late);
    assert_eq!(world.array_bytes(), 0);
    assert_eq!(world.size(0), Size::default());
}

#[test]
fn arrays_go_with_their_table_with_their_time_and_with_the_oldest() {
    let mut world = World::new(1 << 30);
    let large = vec![1; 100_000];
    world.put_arrays(0, &[(b"a", &large), (b"b", &large)]).unwrap();
    world.tables.forget(TableId(0));
    while world.tables.clear_up().unwrap() {}
    assert_eq!(world.array_bytes(), 0);

    let oldest = Table { max_bytes: Some(250_000), on_full: OnFull::Oldest, ..Table::new(KINDS[0], Access::Protected) };
    world.tables.note(TableId(7), OWNER, oldest);
    for key in [b"a", b"b", b"c"] {
        world.put_arrays(7, &[(key, &large)]).unwrap();
    }
    assert!(world.array(7, b"a").is_none() && world.array(7, b"c").is_some());
    assert!(world.array_bytes() < 250_000);
    world.tables.forget(TableId(7));
    while world.tables.clear_up().unwrap() {}

    let (memory, extents) = memory(&[&large]);
    let value = extents[0].encode(b"rest");
    let rows = vec![NewRow { key: b"k", original: b"", expires: 50, value: &value }];
    let operation = postcard::to_stdvec(&Operation::Put { rows, only: Only::Always }).unwrap();
    let request = Request { id: TableId(1), by: OWNER, operation: &operation, arrays: Some(&memory) };
    world.tables.operate(&[request], 0).unwrap().pop().unwrap().unwrap();
    assert!(world.array_bytes() > 0);
    world.tables.expire(50).unwrap();
    assert_eq!(world.array_bytes(), 0);
}

#[test]
fn arrays_that_are_not_where_they_are_said_to_be_are_refused_and_nothing_is_kept_of_them() {
    let mut world = World::new(1_000_000);
    let (memory, _) = memory(&[&[1; 8192]]);
    let may_shrink = rebeam_sys::memory::create_empty(c"test").unwrap();
    std::fs::File::from(may_shrink.try_clone().unwrap()).set_len(8192).unwrap();
    let extents = [(0, 8193), (8192, 1), (u64::MAX, 2), (0, u64::MAX), (1, 0), (0, 8192)];
    for (offset, length) in extents {
        for arrays in [None, Some(&may_shrink), Some(&memory)] {
            let good = Extent { offset: 0, length: 8192 }.encode(b"rest");
            let bad = Extent { offset, length }.encode(b"rest");
            let row = |key, value| NewRow { key, original: b"", expires: 0, value };
            let rows = vec![row(b"good", &good), row(b"bad", &bad), row(b"cut", &bad[..7])];
            for rows in [rows[..2].to_vec(), rows] {
                let operation =
                    postcard::to_stdvec(&Operation::Put { rows: rows.clone(), only: Only::Always }).unwrap();
                let request = Request { id: TableId(0), by: OWNER, operation: &operation, arrays };
                let done = world.tables.operate(&[request], 0).unwrap().pop().unwrap();
                let is_good = length == 8192 && rows.len() == 2 && arrays.is_some_and(|it| std::ptr::eq(it, &memory));
                assert_eq!(done.is_ok(), is_good, "{offset} {length}: {done:?}");
            }
        }
    }
    world.operate(0, OWNER, &Operation::DeletePrefix { prefix: b"" }).unwrap();
    assert_eq!(world.array_bytes(), 0);
    assert_eq!(world.put_arrays(0, &[(b"a", &[1; 600_000]), (b"b", &[1; 600_000])]), Err(TableError::Full));
    assert!(matches!(world.put_arrays(2, &[(b"a", &[1; 8192])]), Err(TableError::BadRequest(_))), "of a bag");
    assert_eq!(world.array_bytes(), 0);

    // What is held beyond its row counts still.
    world.put_arrays(0, &[(b"a", &[1; 600_000])]).unwrap();
    let held = world.array(0, b"a");
    world.operate(0, OWNER, &Operation::Delete { key: b"a", only: Only::Always }).unwrap();
    assert_eq!(world.put_arrays(0, &[(b"b", &[1; 600_000])]), Err(TableError::Full));
    drop(held);
    world.put_arrays(0, &[(b"b", &[1; 600_000])]).unwrap();
    // So does what is replaced again and again, by one who keeps looking at it, or in one operation.
    let held = world.array(0, b"b");
    assert_eq!(world.put_arrays(0, &[(b"b", &[2; 600_000])]), Ok(vec![0, 0]));
    assert_eq!(world.put_arrays(0, &[(b"b", &[3; 600_000])]), Err(TableError::Full));
    let again = world.array(0, b"b").unwrap();
    assert_eq!((again.bytes()[0], held.unwrap().bytes()[0]), (2, 1));
    world.put_arrays(0, &[(b"b", &[3; 600_000])]).unwrap();
    drop(again);
    world.operate(0, OWNER, &Operation::DeletePrefix { prefix: b"" }).unwrap();
    let twice: [(&[u8], &[u8]); 3] = [(b"a", &[1; 400_000]), (b"a", &[2; 400_000]), (b"a", &[3; 400_000])];
    assert_eq!(world.put_arrays(0, &twice), Err(TableError::Full));
    assert_eq!(world.array_bytes(), 0);
}

#[test]
fn the_next_store_has_the_arrays_and_who_looks_at_those_of_the_last_keeps_them() {
    let mut world = World::new(1 << 30);
    let (large, other) = (vec![1; 100_000], vec![2; 200_000]);
    world.put_arrays(0, &[(b"a", &large), (b"b", &other)]).unwrap();
    let (a, b) = (world.array(0, b"a").unwrap(), world.array(0, b"b").unwrap());
    world.operate(0, OWNER, &Operation::Delete { key: b"a", only: Only::Always }).unwrap();
    let [data, arrays] = world.tables.store.files().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let pins = world.tables.store.descriptors(world.id).unwrap().pins;
    let mut store = Store::restore(&data, arrays, directory.path(), 1 << 28).unwrap();
    world.id = store.adopt(pins).unwrap();
    store.is_current();
    let reader = world.reader.open_next(&store.descriptors(world.id).unwrap(), store.map_size()).unwrap();
    world.tables = Tables::new(store, 1 << 30, 1 << 20).unwrap();
    world.tables.note(TableId(0), OWNER, Table::new(KINDS[0], Access::Protected));
    world.reader = reader;
    drop(data);
    assert!(world.array(0, b"a").is_none());
    assert_eq!(world.array(0, b"b").unwrap().bytes().as_ptr(), b.bytes().as_ptr(), "it is the same");
    world.put_arrays(0, &[(b"a", &other), (b"b", &large)]).unwrap();
    assert_eq!((a.bytes(), b.bytes()), (&large[..], &other[..]));
    assert_eq!(world.array(0, b"b").unwrap().bytes(), &large[..]);
    drop((a, b));
    assert!(world.array_bytes() < 310_000, "of the store before, nothing is left that nobody has");
}

#[test]
fn more_arrays_than_can_be_held_are_copied() {
    let mut world = World::new(1 << 30);
    let keys: Vec<[u8; 8]> =
        (0..rebeam_store::pins::HOLDS as u64 + 10).map(|key| (key + (3 << 56)).to_be_bytes()).collect();
    let mut kept = Vec::new();
    for key in &keys {
        world.put_arrays(0, &[(key, &key.repeat(100))]).unwrap();
        kept.push(world.array(0, key).unwrap());
    }
    world.operate(0, OWNER, &Operation::DeletePrefix { prefix: b"" }).unwrap();
    world.array_bytes();
    assert!(keys.iter().zip(&kept).all(|(key, array)| array.bytes() == key.repeat(100)));
    drop(kept);
    assert_eq!(world.array_bytes(), 0);
    world.put_arrays(0, &[(&keys[0], &[7; 100])]).unwrap();
    assert_eq!(world.array(0, &keys[0]).unwrap().bytes(), [7; 100]);
}
