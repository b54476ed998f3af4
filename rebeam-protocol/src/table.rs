//! Tables: what is kept of one, what an actor asks of the store, and what passes between the supervisor and the store.
//!
//! Whose a table is, and its name, stand in the ledger (see [`crate::ledger`]): a table is an entry of the registry
//! [`RegistryId::TABLES`](crate::ledger::RegistryId::TABLES), held by its owner, and goes with it. Its rows are the store's.
//! The supervisor passes operations on without decoding them.

use serde::{Deserialize, Serialize};

use crate::id::{Pid, ProcessId, RequestId};
use crate::value::Value;

/// The number of a table: that of its entry in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableId(pub u64);

/// How many values a key may have, and which keys are the same (ETS-003, ETS-004).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableKind {
    /// One value per key; `1`, `1.0` and `True` are three keys.
    Set,
    /// One value per key, in the order of the keys; `1`, `1.0` and `True` are one.
    OrderedSet,
    /// Several values per key, each once.
    Bag,
    /// Several values per key.
    DuplicateBag,
}

impl TableKind {
    /// Whether a key may have several values.
    pub fn is_bag(self) -> bool {
        matches!(self, TableKind::Bag | TableKind::DuplicateBag)
    }
}

/// Who may do what (ETS-002).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Everybody reads and writes.
    Public,
    /// Everybody reads, the owner writes.
    Protected,
    /// The owner reads and writes.
    Private,
}

/// What is fixed for the life of a table: the value of its entry in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// See [`TableKind`].
    pub kind: TableKind,
    /// See [`Access`].
    pub access: Access,
    /// For how many milliseconds its rows stay, if nothing else is said of one; `None`: until they are removed.
    pub ttl_ms: Option<u64>,
    /// How many bytes its rows may have; `None`: what all tables together may.
    pub max_bytes: Option<u64>,
    /// What a row that is too much does.
    pub on_full: OnFull,
}

/// What happens when a table has as many bytes as it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnFull {
    /// A change that needs more fails.
    #[default]
    Error,
    /// The rows that were written longest ago go.
    Oldest,
}

impl Table {
    /// Of a kind and with an access, and else without limits.
    pub fn new(kind: TableKind, access: Access) -> Self {
        Table { kind, access, ttl_ms: None, max_bytes: None, on_full: OnFull::Error }
    }

    /// Whether its rows may have to go by their age.
    pub fn evicts(self) -> bool {
        self.max_bytes.is_some() && self.on_full == OnFull::Oldest
    }
}

impl Table {
    /// As the value of an entry.
    pub fn encode(self) -> Vec<u8> {
        postcard::to_stdvec(&self).unwrap_or_default()
    }

    /// From the value of an entry; `None` if it is none.
    pub fn decode(value: &[u8]) -> Option<Self> {
        postcard::from_bytes(value).ok()
    }
}

/// A request of an actor that the store answers; payload of [`TableRequest::Operate`]: an [`Operation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableRequest {
    /// What is needed to read.
    Attach,
    /// Change rows.
    Operate {
        /// Of which table.
        id: TableId,
        /// Whether the descriptor of the memory with the arrays of the rows comes with this frame.
        has_arrays: bool,
    },
    /// Be the one who puts a row under a key where nothing is; payload: the key's bytes. Answered, as [`Outcome::Granted`] or
    /// [`Outcome::There`], once it is this one's turn, or somebody has put one.
    Claim(TableId),
    /// What a watch has told is being looked at: it may tell what changes from now on. There is no answer.
    Seen {
        /// The watch's number.
        watch: u64,
    },
    /// Be that no more, nor wait for it; payload: the key's bytes.
    Release {
        /// Of which table.
        id: TableId,
        /// The request that has claimed it.
        claim: RequestId,
    },
}

/// How many descriptors a process needs to read: of the rows, the arrays, the store's page, and the page for pins and holds.
pub const READING: usize = 4;

/// The answer to a [`TableRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableAnswer {
    /// How to read: [`READING`] descriptors come with this frame.
    Attached {
        /// Bytes of address space that the map takes.
        map_size: u64,
        /// How many stores there were before this one.
        store: u64,
    },
    /// It is done, or was not to be; payload: an [`Outcome`].
    Done,
    /// Rows are watched from now on; the number that the messages carry.
    Watching(u64),
    /// It was not done.
    Failed(TableError),
}

/// Why nothing was done to a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableError {
    /// There is no such table, or no more.
    NoTable,
    /// Others may not write to it.
    NotYours,
    /// The memory for tables is used up.
    Full,
    /// The table has as many bytes as it may.
    AtLimit,
    /// The store has ended meanwhile: the change may be done or not.
    Restarted,
    /// There is no store.
    Unavailable(String),
    /// What was asked for makes no sense for this table.
    BadRequest(String),
}

/// A row to be put into a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewRow<'a> {
    /// The key's bytes, by which rows are ordered.
    #[serde(borrow, with = "serde_bytes")]
    pub key: &'a [u8],
    /// The key itself, an encoded [`Value`], if it does not follow from those.
    #[serde(borrow, with = "serde_bytes")]
    pub original: &'a [u8],
    /// When it expires, in milliseconds of the system's monotonic clock; 0: it does not.
    pub expires: u64,
    /// The value: a byte that says how it is encoded ([`PICKLE`], [`PLAIN`], [`ARRAYS`]), and the rest.
    #[serde(borrow, with = "serde_bytes")]
    pub value: &'a [u8],
}

/// How a value is encoded: a pickle, which the store does not look into.
pub const PICKLE: u8 = 0;
/// How a value is encoded: as a plain [`Value`].
pub const PLAIN: u8 = 1;
/// How a value is encoded: an [`Extent`], and a pickle without the large buffers, which are there.
pub const ARRAYS: u8 = 2;

/// A piece of a file in which the large buffers of one value are. On its way to the store that is the memory that comes with
/// the operation; in a row it is the file of all arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// How many bytes it has.
    pub length: u64,
}

impl Extent {
    /// Of a value that has one, with what comes behind it.
    pub fn of(value: &[u8]) -> Option<(Self, &[u8])> {
        let (&ARRAYS, value) = value.split_first()? else { return None };
        let (offset, value) = value.split_first_chunk()?;
        let (length, value) = value.split_first_chunk()?;
        Some((Extent { offset: u64::from_le_bytes(*offset), length: u64::from_le_bytes(*length) }, value))
    }

    /// A value that has this one, and this behind it.
    pub fn encode(self, rest: &[u8]) -> Vec<u8> {
        [&[ARRAYS][..], &self.offset.to_le_bytes(), &self.length.to_le_bytes(), rest].concat()
    }
}

/// When a change is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Only {
    /// In any case.
    Always,
    /// If there is nothing under the key.
    IfNew,
    /// If what is there was put by this transaction.
    IfVersion(u64),
}

/// A change of one table, done as a whole or not at all (ETS-005).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Operation<'a> {
    /// Put rows: in a set each in the place of what was there, in a bag beside it.
    Put {
        /// The rows.
        #[serde(borrow)]
        rows: Vec<NewRow<'a>>,
        /// For all of them: with [`Only::IfNew`] none is put if one of the keys is there.
        only: Only,
    },
    /// Remove what is under a key.
    Delete {
        /// The key's bytes.
        #[serde(borrow, with = "serde_bytes")]
        key: &'a [u8],
        /// When.
        only: Only,
    },
    /// Remove one value that is under a key of a bag, as often as it is there.
    DeleteValue {
        /// The key's bytes.
        #[serde(borrow, with = "serde_bytes")]
        key: &'a [u8],
        /// The value.
        #[serde(borrow, with = "serde_bytes")]
        value: &'a [u8],
    },
    /// Remove all rows whose keys begin so; with no bytes, all rows.
    DeletePrefix {
        /// The bytes.
        #[serde(borrow, with = "serde_bytes")]
        prefix: &'a [u8],
    },
    /// Remove what is under a key, and give it.
    Take {
        /// The key's bytes.
        #[serde(borrow, with = "serde_bytes")]
        key: &'a [u8],
    },
    /// Add to the number under a key, and give the sum.
    Add {
        /// The key, and the number that counts as there if none is; no bytes: it has to be there.
        #[serde(borrow)]
        row: NewRow<'a>,
        /// What to add: a whole number or a float.
        by: Value,
    },
}

/// What came of an [`Operation`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome<'a> {
    /// It is done; so many rows have come or gone.
    Done(u64),
    /// Its condition does not hold.
    Refused,
    /// It is done; what was under the key.
    Taken(#[serde(borrow)] Vec<Bytes<'a>>),
    /// It is done; what is under the key now.
    Sum(Value),
    /// Whoever asks is to put a row under the key.
    Granted,
    /// There is a row under the key.
    There,
}

/// Bytes of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes<'a>(#[serde(borrow, with = "serde_bytes")] pub &'a [u8]);

/// Rows that an actor is told of when they change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowWatch {
    /// The number of the watch.
    pub watch: u64,
    /// Who watches.
    pub by: Pid,
    /// Which table.
    pub id: TableId,
    /// The bytes of the first key.
    pub lower: Vec<u8>,
    /// Those of the key that is beyond them; `None`: there is none.
    pub upper: Option<Vec<u8>>,
}

/// What has become of rows that are watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowChanges {
    /// The table is gone, and the watch with it.
    pub is_gone: bool,
    /// Of which kind the table was.
    pub kind: TableKind,
    /// The bytes of the keys under which something has changed, each once, with the key itself if that does not follow; `None`: there are many, or it is not known which.
    pub keys: Option<Vec<(Vec<u8>, Vec<u8>)>>,
}

/// From the supervisor to the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToStore {
    /// There is this table, or it has another owner now.
    Table {
        /// Which.
        id: TableId,
        /// Whose.
        owner: Pid,
        /// What it is.
        table: Table,
    },
    /// These were all tables that there are, and all who read: what a store before has left of others is to go.
    ThatIsAll,
    /// Whoever begins to read from now on does so from this store.
    IsCurrent,
    /// There is no such table any more: its rows are to go.
    Gone {
        /// Which.
        id: TableId,
    },
    /// A process wants to read.
    Attach {
        /// A number for the answer.
        tag: u64,
        /// A number for the process.
        reader: u64,
    },
    /// A process reads from what a store before had, and may hold arrays; the descriptor of its pins comes with this frame.
    Adopt {
        /// Its number.
        reader: u64,
    },
    /// A process that was attached or adopted is dead.
    Detach {
        /// Its number.
        reader: u64,
    },
    /// A [`TableRequest::Claim`] or, with `is_release`, a [`TableRequest::Release`]; payload: the key's bytes.
    Claim {
        /// A number for the answer.
        tag: u64,
        /// On which table.
        id: TableId,
        /// Who wants it, by the request that claims. Two processes of one incarnation claim apart: when one is replaced,
        /// both are there.
        by: (ProcessId, RequestId),
        /// Which of the two.
        is_release: bool,
    },
    /// A process has ended: it claims nothing any more.
    Ended {
        /// Which.
        by: ProcessId,
    },
    /// Rows are watched from now on.
    Watch {
        /// A number for the answer; `None`: a store before has answered, and what was changed meanwhile was not told.
        tag: Option<u64>,
        /// Which rows.
        rows: RowWatch,
    },
    /// A [`TableRequest::Seen`].
    Seen {
        /// The watch's number.
        watch: u64,
        /// Who watches.
        by: Pid,
    },
    /// Rows are watched no longer.
    Unwatch {
        /// The watch's number.
        watch: u64,
        /// The watch that takes its place, of the same rows: it tells what this one has not.
        heir: Option<u64>,
        /// Whether what this one has told last was not seen.
        has_missed: bool,
    },
    /// Payload: an [`Operation`], as an actor has sent it.
    Operate {
        /// A number for the answer.
        tag: u64,
        /// On which table.
        id: TableId,
        /// Who wants it.
        by: Pid,
        /// As in [`TableRequest::Operate`].
        has_arrays: bool,
    },
}

/// From the store to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromStore {
    /// It can be used; the descriptors of rows and arrays, by which another store could go on, come with this frame.
    Ready,
    /// It cannot be used, in words.
    Failed(String),
    /// [`READING`] descriptors come with this frame.
    Attached {
        /// The number of the request.
        tag: u64,
        /// Bytes of address space that the map takes.
        map_size: u64,
    },
    /// A process reads from what is out of date, and so has the store keep it.
    Overdue {
        /// The reader's number.
        reader: u64,
        /// For how many milliseconds.
        ms: u64,
    },
    /// Rows have changed that are watched; payload: [`RowChanges`]. Nothing more is told of a watch until its actor has
    /// seen that.
    Changed {
        /// The watch's number.
        watch: u64,
        /// Whether the watch has ended with its table.
        is_last: bool,
    },
    /// What came of an operation; payload: an [`Outcome`], if it is done.
    Operated {
        /// The number of the request.
        tag: u64,
        /// Why it is not.
        failed: Option<TableError>,
    },
}

impl FromStore {
    /// How many descriptors come with the frame.
    pub fn descriptors(&self) -> usize {
        match self {
            FromStore::Ready => 2,
            FromStore::Attached { .. } => READING,
            FromStore::Failed(_)
            | FromStore::Overdue { .. }
            | FromStore::Changed { .. }
            | FromStore::Operated { .. } => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_comes_back_from_its_bytes() {
        let row = NewRow { key: b"k", original: b"", expires: 5, value: b"\x00value" };
        let operations = [
            Operation::Put { rows: vec![row, row], only: Only::IfNew },
            Operation::Delete { key: b"k", only: Only::IfVersion(7) },
            Operation::DeletePrefix { prefix: b"" },
            Operation::Add { row, by: Value::Int(1) },
        ];
        for operation in operations {
            let bytes = postcard::to_stdvec(&operation).unwrap();
            assert_eq!(postcard::from_bytes::<Operation<'_>>(&bytes).unwrap(), operation);
        }
        let extent = Extent { offset: 4096, length: 7 };
        assert_eq!(Extent::of(&extent.encode(b"rest")), Some((extent, &b"rest"[..])));
        assert_eq!((Extent::of(b"\x00value"), Extent::of(b"\x02short")), (None, None));
        let outcome = Outcome::Taken(vec![Bytes(b"a"), Bytes(b"")]);
        let bytes = postcard::to_stdvec(&outcome).unwrap();
        assert_eq!(postcard::from_bytes::<Outcome<'_>>(&bytes).unwrap(), outcome);
        let table = Table { ttl_ms: Some(5), ..Table::new(TableKind::Bag, Access::Private) };
        assert_eq!(Table::decode(&table.encode()), Some(table));
    }
}
