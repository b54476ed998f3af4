//! Who is told of which rows that change.
//!
//! A watch tells once, and then waits until its actor has seen that: what changes meanwhile is collected, each key once, and
//! comes with the next message. So a slow actor is told less often, but misses nothing.

use std::collections::{BTreeMap, BTreeSet};

use rebeam_protocol::id::Pid;
use rebeam_protocol::table::{RowChanges, RowWatch, TableId, TableKind};

/// Of so many keys and so many bytes it is told which they are; of more, that there are many.
const MOST_KEYS: usize = 1000;
const MOST_BYTES: usize = 16 * 1024;

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

/// Bytes of keys that have changed, with the key itself if that does not follow.
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
        // If it is there already, the one that was put last counts.
        let known = self.keys.get(key).map_or(0, |known| key.len() + known.len());
        self.bytes = self.bytes + key.len() + original.len() - known;
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

    pub(crate) fn end(&mut self, watch: u64, heir: Option<u64>, has_missed: bool) {
        let Some(Watch { rows, changed, .. }) = self.watches.remove(&watch) else { return };
        if let Some(watches) = self.by_table.get_mut(&rows.id) {
            watches.remove(&watch);
            if watches.is_empty() {
                self.by_table.remove(&rows.id);
            }
        }
        if let Some(heir) = heir {
            let changed = if has_missed { Keys::many() } else { changed };
            self.changed(BTreeMap::from([(heir, changed)]));
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

    /// The watches of these that have this key in their range.
    pub(crate) fn of_key<'a>(&'a self, id: TableId, key: &'a [u8]) -> impl Iterator<Item = u64> + 'a {
        let all = self.by_table.get(&id).into_iter().flatten().copied();
        all.filter(move |watch| {
            self.watches.get(watch).is_some_and(|Watch { rows, .. }| {
                *rows.lower <= *key && rows.upper.as_deref().is_none_or(|upper| key < upper)
            })
        })
    }

    /// These were changed, by a transaction that is done.
    pub(crate) fn changed(&mut self, changed: BTreeMap<u64, Keys>) {
        for (number, keys) in changed {
            let Some(watch) = self.watches.get_mut(&number) else { continue };
            match keys.are_many {
                true => watch.changed = Keys::many(),
                false => keys.keys.iter().for_each(|(key, original)| watch.changed.add(key, original)),
            }
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
