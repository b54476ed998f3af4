//! Who holds what in the registries of a node: names, groups, and the registries of the tree. And who watches a key.
//!
//! Only bookkeeping, by incarnation: what belongs to one ends with it. Who may do what is decided in [`crate::core`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use rebeam_protocol::address::Registry;
use rebeam_protocol::id::Pid;
use rebeam_protocol::ledger::{Record, RegistryId};
use rebeam_protocol::table::{RowWatch, Table, TableId};
use rustc_hash::FxBuildHasher;

pub(crate) type Key = Arc<[u8]>;

/// What a record takes beside its key and its value, roughly.
const RECORD: usize = 48;

/// Something under a key.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Counts up over all entries of a node.
    pub(crate) number: u64,
    pub(crate) holder: Pid,
    pub(crate) value: Bytes,
}

/// An entry that has come, that has another value, or that is gone.
#[derive(Clone, Debug)]
pub struct EntryChange {
    pub(crate) registry: RegistryId,
    pub(crate) which: Registry,
    pub(crate) number: u64,
    pub(crate) key: Key,
    pub(crate) holder: Pid,
    /// `None`: it is gone.
    pub(crate) value: Option<Bytes>,
}

impl EntryChange {
    /// The table that it is about, if it is about one: with whose it is and what, unless it is gone.
    pub fn table(&self) -> Option<(TableId, Option<(Pid, Table)>)> {
        let is_table = self.registry == RegistryId::TABLES;
        let there = self.value.as_deref().and_then(|value| Some((self.holder, Table::decode(value)?)));
        is_table.then_some((TableId(self.number), there))
    }

    /// As the ledger says it.
    pub fn record(&self) -> Record<'_> {
        let entry = self.value.as_ref().map(|value| (self.holder, &**value));
        Record { registry: self.registry, number: self.number, key: &self.key, entry }
    }
}

#[derive(Debug)]
struct Keys {
    which: Registry,
    is_unique: bool,
    keys: HashMap<Key, Vec<Entry>, FxBuildHasher>,
}

/// Somebody who is told of changes.
#[derive(Debug)]
struct Watch {
    watcher: Pid,
    what: Watched,
}

#[derive(Debug)]
enum Watched {
    /// The entries under a key.
    Key(Registry, Key),
    /// Rows of a table, which has this key. The store knows when they change.
    Rows(RowWatch, Key),
}

#[derive(Debug)]
pub(crate) struct Registries {
    tables: HashMap<RegistryId, Keys, FxBuildHasher>,
    /// Every entry by its number, so oldest first: where it is.
    by_number: BTreeMap<u64, (RegistryId, Key)>,
    /// Per incarnation, where it has how many entries.
    held: HashMap<Pid, BTreeMap<(RegistryId, Key), usize>, FxBuildHasher>,
    watches: HashMap<u64, Watch, FxBuildHasher>,
    /// Per incarnation, in the order in which they began.
    watchers: HashMap<Pid, BTreeSet<u64>, FxBuildHasher>,
    /// By registry, over its restarts.
    watched: HashMap<(Registry, Key), BTreeSet<u64>, FxBuildHasher>,
    /// Of tables, by the number of the entry.
    heirs: HashMap<u64, Heir, FxBuildHasher>,
    next: u64,
    bytes: usize,
}

/// Who is to have a table when its owner ends.
#[derive(Clone, Debug)]
pub(crate) struct Heir {
    pub(crate) pid: Pid,
    /// What to say with it.
    pub(crate) data: Bytes,
}

impl Default for Registries {
    /// With the names, the groups and the tables, which are always there.
    fn default() -> Self {
        let mut registries = Registries {
            tables: HashMap::default(),
            by_number: BTreeMap::new(),
            held: HashMap::default(),
            watches: HashMap::default(),
            watchers: HashMap::default(),
            watched: HashMap::default(),
            heirs: HashMap::default(),
            next: 0,
            bytes: 0,
        };
        registries.begin(RegistryId::NAMES, Registry::Names, true);
        registries.begin(RegistryId::GROUPS, Registry::Groups, false);
        registries.begin(RegistryId::TABLES, Registry::Tables, true);
        registries
    }
}

impl Entry {
    /// It, as if it had just come.
    fn come(&self, registry: RegistryId, table: &Keys, key: &Key) -> EntryChange {
        let (which, key, value) = (table.which.clone(), key.clone(), Some(self.value.clone()));
        EntryChange { registry, which, number: self.number, key, holder: self.holder, value }
    }
}

impl Registries {
    /// A registry begins, empty.
    pub(crate) fn begin(&mut self, id: RegistryId, which: Registry, is_unique: bool) {
        self.tables.insert(id, Keys { which, is_unique, keys: HashMap::default() });
    }

    /// A registry ends, with all its entries.
    pub(crate) fn end(&mut self, id: RegistryId) -> Vec<EntryChange> {
        let Some(table) = self.tables.get(&id) else { return Vec::new() };
        let mut held: Vec<(u64, Key, Pid)> = table
            .keys
            .iter()
            .flat_map(|(key, entries)| entries.iter().map(|entry| (entry.number, key.clone(), entry.holder)))
            .collect();
        held.sort();
        let changes =
            held.iter().flat_map(|(number, key, holder)| self.take(id, key, *holder, Some(*number))).collect();
        self.tables.remove(&id);
        changes
    }

    /// Whether a key of this registry has one holder at most; `None` if there is no such registry.
    pub(crate) fn is_unique(&self, id: RegistryId) -> Option<bool> {
        self.tables.get(&id).map(|table| table.is_unique)
    }

    /// How many keys of a registry have entries.
    pub(crate) fn key_count(&self, id: RegistryId) -> usize {
        self.tables.get(&id).map_or(0, |table| table.keys.len())
    }

    /// What is under a key, oldest first.
    pub(crate) fn entries(&self, id: RegistryId, key: &[u8]) -> &[Entry] {
        self.tables.get(&id).and_then(|table| table.keys.get(key)).map_or(&[], Vec::as_slice)
    }

    /// Makes an entry.
    pub(crate) fn enter(&mut self, id: RegistryId, key: &[u8], holder: Pid, value: Bytes) -> Option<EntryChange> {
        let table = self.tables.get_mut(&id)?;
        let key: Key = match table.keys.get_key_value(key) {
            Some((known, _)) => known.clone(),
            None => key.into(),
        };
        self.next += 1;
        self.bytes += RECORD + key.len() + value.len();
        let entry = Entry { number: self.next, holder, value: value.clone() };
        table.keys.entry(key.clone()).or_insert_with(|| Vec::with_capacity(1)).push(entry);
        self.by_number.insert(self.next, (id, key.clone()));
        *self.held.entry(holder).or_default().entry((id, key.clone())).or_default() += 1;
        let which = table.which.clone();
        Some(EntryChange { registry: id, which, number: self.next, key, holder, value: Some(value) })
    }

    /// Gives the entry of a holder another value.
    pub(crate) fn update(&mut self, id: RegistryId, key: &[u8], holder: Pid, value: Bytes) -> Option<EntryChange> {
        let number = self.entries(id, key).iter().find(|entry| entry.holder == holder)?.number;
        self.update_one(id, key, number, value)
    }

    /// Gives one entry another value.
    pub(crate) fn update_one(&mut self, id: RegistryId, key: &[u8], number: u64, value: Bytes) -> Option<EntryChange> {
        let table = self.tables.get_mut(&id)?;
        let key = table.keys.get_key_value(key)?.0.clone();
        let entry = table.keys.get_mut(&key)?.iter_mut().find(|entry| entry.number == number)?;
        self.bytes = self.bytes + value.len() - entry.value.len();
        entry.value = value.clone();
        let (holder, which) = (entry.holder, table.which.clone());
        Some(EntryChange { registry: id, which, number, key, holder, value: Some(value) })
    }

    /// Sets who has a table when its owner ends.
    pub(crate) fn set_heir(&mut self, number: u64, heir: Option<Heir>) {
        match heir {
            Some(heir) => drop(self.heirs.insert(number, heir)),
            None => drop(self.heirs.remove(&number)),
        }
    }

    /// Who has a table when its owner ends.
    pub(crate) fn heir(&self, number: u64) -> Option<&Heir> {
        self.heirs.get(&number)
    }

    /// Passes the one entry under a key to another holder. Whoever was to have it then, is not any more.
    pub(crate) fn pass(&mut self, id: RegistryId, key: &[u8], to: Pid) -> Option<EntryChange> {
        let table = self.tables.get_mut(&id)?;
        let key = table.keys.get_key_value(key)?.0.clone();
        let entry = table.keys.get_mut(&key)?.first_mut()?;
        let from = std::mem::replace(&mut entry.holder, to);
        let place = (id, key.clone());
        if let Some(held) = self.held.get_mut(&from) {
            held.remove(&place);
            if held.is_empty() {
                self.held.remove(&from);
            }
        }
        *self.held.entry(to).or_default().entry(place).or_default() += 1;
        self.heirs.remove(&entry.number);
        let (which, number, value) = (table.which.clone(), entry.number, Some(entry.value.clone()));
        Some(EntryChange { registry: id, which, number, key, holder: to, value })
    }

    /// Takes out all entries that a holder has under a key, or the last one.
    pub(crate) fn leave(&mut self, id: RegistryId, key: &[u8], holder: Pid, is_one: bool) -> Vec<EntryChange> {
        let own = self.entries(id, key).iter().filter(|entry| entry.holder == holder);
        match own.last().map(|entry| entry.number) {
            None => Vec::new(),
            Some(last) => self.take(id, key, holder, is_one.then_some(last)),
        }
    }

    /// Takes out the entries of a holder under a key: one, or all.
    fn take(&mut self, id: RegistryId, key: &[u8], holder: Pid, one: Option<u64>) -> Vec<EntryChange> {
        let Some(table) = self.tables.get_mut(&id) else { return Vec::new() };
        let Some((key, _)) = table.keys.get_key_value(key) else { return Vec::new() };
        let key = key.clone();
        let Some(entries) = table.keys.get_mut(&key) else { return Vec::new() };
        let is_taken = |entry: &Entry| entry.holder == holder && one.is_none_or(|one| one == entry.number);
        let taken: Vec<Entry> = entries.iter().filter(|entry| is_taken(entry)).cloned().collect();
        entries.retain(|entry| !is_taken(entry));
        for entry in &taken {
            self.by_number.remove(&entry.number);
            self.heirs.remove(&entry.number);
        }
        if entries.is_empty() {
            table.keys.remove(&key);
        }
        if let Some(held) = self.held.get_mut(&holder) {
            let place = (id, key.clone());
            let left = held.get_mut(&place).map(|count| {
                *count -= taken.len();
                *count
            });
            if left == Some(0) {
                held.remove(&place);
            }
            if held.is_empty() {
                self.held.remove(&holder);
            }
        }
        self.bytes -= taken.iter().map(|entry| RECORD + key.len() + entry.value.len()).sum::<usize>();
        let which = table.which.clone();
        let gone = |entry: Entry| EntryChange {
            registry: id,
            which: which.clone(),
            number: entry.number,
            key: key.clone(),
            holder,
            value: None,
        };
        taken.into_iter().map(gone).collect()
    }

    /// Takes out one entry, if it is there.
    pub(crate) fn take_out(&mut self, id: RegistryId, key: &[u8], holder: Pid, number: u64) -> Vec<EntryChange> {
        self.take(id, key, holder, Some(number))
    }

    /// The entries of an incarnation.
    pub(crate) fn held_by(&self, holder: Pid) -> impl Iterator<Item = (RegistryId, &Key, u64)> {
        let places = self.held.get(&holder).into_iter().flat_map(BTreeMap::keys);
        places.flat_map(move |(id, key)| {
            let own = self.entries(*id, key).iter().filter(move |entry| entry.holder == holder);
            own.map(move |entry| (*id, key, entry.number))
        })
    }

    /// The watches of an incarnation.
    pub(crate) fn watches_of(&self, watcher: Pid) -> impl ExactSizeIterator<Item = u64> {
        static NONE: BTreeSet<u64> = BTreeSet::new();
        self.watchers.get(&watcher).unwrap_or(&NONE).iter().copied()
    }

    /// An incarnation has ended, or is about to: it holds nothing any more.
    pub(crate) fn release(&mut self, holder: Pid) -> Vec<EntryChange> {
        let held = self.held.remove(&holder).unwrap_or_default();
        held.into_keys().flat_map(|(id, key)| self.take(id, &key, holder, None)).collect()
    }

    /// Bytes of all records, roughly.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Every entry, oldest first, as if it had just come.
    pub(crate) fn all(&self) -> Vec<EntryChange> {
        let entry = |(number, (id, key)): (&u64, &(RegistryId, Key))| {
            let table = self.tables.get(id)?;
            // Under a key they stand in order, too.
            let entries = table.keys.get(key)?;
            let entry = &entries[entries.binary_search_by_key(number, |entry| entry.number).ok()?];
            Some(entry.come(*id, table, key))
        };
        self.by_number.iter().filter_map(entry).collect()
    }

    /// Every entry of one registry, oldest first.
    pub(crate) fn all_of(&self, id: RegistryId) -> Vec<EntryChange> {
        let Some(table) = self.tables.get(&id) else { return Vec::new() };
        let entries = table.keys.iter().flat_map(|(key, entries)| entries.iter().map(move |entry| (key, entry)));
        let mut all: Vec<EntryChange> = entries.map(|(key, entry)| entry.come(id, table, key)).collect();
        all.sort_by_key(|change| change.number);
        all
    }

    pub(crate) fn watch(&mut self, watch: u64, watcher: Pid, registry: Registry, key: &[u8]) {
        let key: Key = key.into();
        self.watched.entry((registry.clone(), key.clone())).or_default().insert(watch);
        self.watches.insert(watch, Watch { watcher, what: Watched::Key(registry, key) });
        self.watchers.entry(watcher).or_default().insert(watch);
    }

    pub(crate) fn watch_rows(&mut self, rows: RowWatch, key: &[u8]) {
        let (watch, watcher) = (rows.watch, rows.by);
        self.watches.insert(watch, Watch { watcher, what: Watched::Rows(rows, key.into()) });
        self.watchers.entry(watcher).or_default().insert(watch);
    }

    /// Who watches rows, and of which table, by the number of the watch.
    pub(crate) fn row_watch(&self, watch: u64) -> Option<(&RowWatch, &Key)> {
        match &self.watches.get(&watch)?.what {
            Watched::Rows(rows, key) => Some((rows, key)),
            Watched::Key(..) => None,
        }
    }

    /// The watch of the same rows that the same incarnation has begun after this one.
    pub(crate) fn later_watch(&self, watch: u64) -> Option<u64> {
        let (rows, _) = self.row_watch(watch)?;
        let is_same = |other: &RowWatch| {
            other.watch > watch && (other.id, &other.lower, &other.upper) == (rows.id, &rows.lower, &rows.upper)
        };
        let others = self.watches_of(rows.by).filter_map(|other| self.row_watch(other));
        others.map(|(other, _)| other).find(|other| is_same(other)).map(|other| other.watch)
    }

    /// How many watches of rows an incarnation has.
    pub(crate) fn row_watches_of(&self, watcher: Pid) -> usize {
        self.watches_of(watcher).filter(|watch| self.row_watch(*watch).is_some()).count()
    }

    /// Every watch of rows, the oldest first.
    pub(crate) fn row_watches(&self) -> Vec<RowWatch> {
        let rows = self.watches.keys().filter_map(|watch| self.row_watch(*watch));
        let mut rows: Vec<RowWatch> = rows.map(|(rows, _)| rows.clone()).collect();
        rows.sort_unstable_by_key(|rows| rows.watch);
        rows
    }

    /// Ends a watch of this incarnation; true if it was one of rows.
    pub(crate) fn unwatch(&mut self, watcher: Pid, watch: u64) -> bool {
        if self.watches.get(&watch).is_none_or(|found| found.watcher != watcher) {
            return false;
        }
        let Some(Watch { what, .. }) = self.watches.remove(&watch) else { return false };
        if let Some(own) = self.watchers.get_mut(&watcher) {
            own.remove(&watch);
            if own.is_empty() {
                self.watchers.remove(&watcher);
            }
        }
        let Watched::Key(registry, key) = what else { return true };
        let place = (registry, key);
        if let Some(watches) = self.watched.get_mut(&place) {
            watches.remove(&watch);
            if watches.is_empty() {
                self.watched.remove(&place);
            }
        }
        false
    }

    /// Who is to be told of a change: watch and watcher.
    pub(crate) fn watchers(&self, change: &EntryChange) -> Vec<(u64, Pid)> {
        if self.watched.is_empty() {
            return Vec::new();
        }
        let watches = self.watched.get(&(change.which.clone(), change.key.clone())).into_iter().flatten();
        watches.filter_map(|watch| Some((*watch, self.watches.get(watch)?.watcher))).collect()
    }

    /// How many records are kept.
    pub(crate) fn len(&self) -> usize {
        self.tables.len() + self.held.values().map(BTreeMap::len).sum::<usize>() + self.watches.len()
    }

    /// # Panics
    /// If the books do not agree: that is a bug of this crate.
    pub(crate) fn check(&self, is_alive: impl Fn(Pid) -> bool) {
        let mut count = 0;
        for (id, table) in &self.tables {
            for (key, entries) in &table.keys {
                assert!(!entries.is_empty(), "an empty key is kept");
                assert!(!table.is_unique || entries.len() == 1, "two holders of {key:?} in {id:?}");
                count += entries.len();
                for entry in entries {
                    assert!(is_alive(entry.holder), "a dead {} holds {key:?} in {id:?}", entry.holder);
                    let held = self.held.get(&entry.holder).and_then(|held| held.get(&(*id, key.clone())));
                    assert!(held.is_some(), "{} does not know what it holds", entry.holder);
                }
            }
        }
        let held: usize = self.held.values().flat_map(BTreeMap::values).sum();
        assert_eq!(held, count, "entries that nobody has");
    }
}

#[cfg(test)]
mod tests {
    use rebeam_protocol::id::NodeStart;

    use super::*;

    #[test]
    fn all_entries_come_oldest_first_over_registries_keys_and_changes() {
        let holder = |serial| Pid { at: NodeStart::default(), serial };
        let mut registries = Registries::default();
        let enter = |registries: &mut Registries, id, key: &[u8], serial| {
            registries.enter(id, key, holder(serial), Bytes::new()).expect("it is entered").number
        };
        let numbers: Vec<u64> = (0..100u64)
            .map(|serial| {
                let (id, key) =
                    if serial % 3 == 0 { (RegistryId::NAMES, serial) } else { (RegistryId::GROUPS, serial % 2) };
                enter(&mut registries, id, &key.to_le_bytes(), serial)
            })
            .collect();
        registries.update(RegistryId::NAMES, &3u64.to_le_bytes(), holder(3), Bytes::from("new"));
        for serial in (0..100).step_by(5) {
            assert_eq!(registries.release(holder(serial)).len(), 1);
        }
        let all = registries.all();
        let left: Vec<u64> =
            numbers.iter().enumerate().filter(|(at, _)| at % 5 != 0).map(|(_, number)| *number).collect();
        assert_eq!(all.iter().map(|change| change.number).collect::<Vec<_>>(), left);
        assert!(all.iter().all(|change| change.holder.serial + 1 == change.number));
        assert_eq!(all[2].value.as_deref(), Some(&b"new"[..]));
        registries.end(RegistryId::GROUPS);
        assert!(registries.all().iter().all(|change| change.registry == RegistryId::NAMES));
    }
}
