//! Who is told of which rows that change.
//!
//! A watch tells once, and then waits until its actor has seen that: what changes meanwhile is collected, each key once, and
//! comes with the next message. So a slow actor is told less often, and never of less.

use std::collections::{BTreeMap, BTreeSet};

use rebeam_protocol::id::Pid;
use rebeam_protocol::table::{RowChanges, RowWatch, TableId, TableKind};

/// Of so many keys and so many bytes it is told which they are; of more, that there are many.
const MOST_KEYS: usize = 1000;
const MOST_BYTES: usize = 64 * 1024;

/// What is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The number of the watch.
    pub watch: u64,
    /// What has changed.
    pub changes: RowChanges,
}

#[derive(Debug)]
struct Watch {
    rows: RowWatch,
    kind: TableKind,
    changed: Keys,
    /// Whether its actor has not seen yet what was told last.
    waits: bool,
}

/// Keys that have changed, as they lie in the file, with the key itself if that does not follow.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    keys: BTreeMap<Vec<u8>, Vec<u8>>,
    bytes: usize,
    are_many: bool,
}

impl Keys {
    fn many() -> Self {
        Keys { are_many: true, ..Keys::default() }
    }

    pub(crate) fn add(&mut self, key: &[u8], original: &[u8]) {
        if self.are_many {
            return;
        }
        if let Some(known) = self.keys.get_mut(key) {
            // The one that was put last.
            *known = original.to_vec();
            return;
        }
        self.bytes += key.len() + original.len();
        if self.keys.len() >= MOST_KEYS || self.bytes > MOST_BYTES {
            *self = Keys::many();
        } else {
            self.keys.insert(key.to_vec(), original.to_vec());
        }
    }

    fn is_empty(&self) -> bool {
        self.keys.is_empty() && !self.are_many
    }

    fn take(&mut self) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
        let Keys { keys, are_many, .. } = std::mem::take(self);
        (!are_many).then(|| keys.into_iter().collect())
    }
}

/// All watches of a node.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    watches: BTreeMap<u64, Watch>,
    by_table: BTreeMap<TableId, BTreeSet<u64>>,
    told: Vec<Told>,
}

impl Watches {
    /// Rows are watched from now on. If changes were missed, that is told at once.
    pub(crate) fn begin(&mut self, rows: RowWatch, kind: TableKind, has_missed: bool) {
        let (watch, id) = (rows.watch, rows.id);
        let changed = if has_missed { Keys::many() } else { Keys::default() };
        self.by_table.entry(id).or_default().insert(watch);
        self.watches.insert(watch, Watch { rows, kind, changed, waits: false });
        self.tell(watch);
    }

    pub(crate) fn end(&mut self, watch: u64) {
        let Some(Watch { rows, .. }) = self.watches.remove(&watch) else { return };
        if let Some(watches) = self.by_table.get_mut(&rows.id) {
            watches.remove(&watch);
            if watches.is_empty() {
                self.by_table.remove(&rows.id);
            }
        }
    }

    /// A table is gone, and so are its watches.
    pub(crate) fn gone(&mut self, id: TableId) {
        for number in self.by_table.remove(&id).unwrap_or_default() {
            if let Some(watch) = self.watches.remove(&number) {
                let changes = RowChanges { is_gone: true, kind: watch.kind, keys: None };
                self.told.push(Told { watch: number, changes });
            }
        }
    }

    /// Whether somebody watches rows of this table.
    pub(crate) fn are_of(&self, id: TableId) -> bool {
        self.by_table.contains_key(&id)
    }

    /// These were changed, by a transaction that is done.
    pub(crate) fn changed(&mut self, changed: &BTreeMap<TableId, Keys>) {
        changed.iter().for_each(|(id, keys)| self.changed_of(*id, keys));
    }

    fn changed_of(&mut self, id: TableId, keys: &Keys) {
        for number in self.by_table.get(&id).cloned().unwrap_or_default() {
            let Some(watch) = self.watches.get_mut(&number) else { continue };
            if keys.are_many {
                watch.changed = Keys::many();
            }
            let rows = &watch.rows;
            // (From a bound that lies beyond the other, as a forged one may, nothing is taken.)
            let own = keys.keys.iter().filter(|(key, _)| **key >= rows.lower && **key < rows.upper);
            own.for_each(|(key, original)| watch.changed.add(key, original));
            self.tell(number);
        }
    }

    /// The actor looks at what it was told last.
    pub(crate) fn seen(&mut self, watch: u64, by: Pid) {
        if let Some(watch) = self.watches.get_mut(&watch).filter(|watch| watch.rows.by == by) {
            watch.waits = false;
        }
        self.tell(watch);
    }

    fn tell(&mut self, number: u64) {
        let Some(watch) = self.watches.get_mut(&number) else { return };
        if watch.waits || watch.changed.is_empty() {
            return;
        }
        watch.waits = true;
        let changes = RowChanges { is_gone: false, kind: watch.kind, keys: watch.changed.take() };
        self.told.push(Told { watch: number, changes });
    }

    /// What is to be told since the last time.
    pub(crate) fn take_told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }
}
