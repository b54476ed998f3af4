//! What the store does for actors: it knows which tables there are, who owns them, and carries operations out.
//!
//! Operations that are there at once are carried out in one transaction, which costs little more than one of them does.
//! Each is still done as a whole or not at all: if one cannot be done, each is carried out in a transaction of its own.

use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::os::fd::OwnedFd;

use rebeam_protocol::id::{Pid, ProcessId, RequestId};
use rebeam_protocol::table::{
    ARRAYS, Access, Bytes, Extent, NewRow, Only, Operation, Outcome, PLAIN, RowWatch, Table, TableError, TableId,
    TableKind,
};
use rebeam_protocol::value::{self, Value};
use rebeam_sys::memory;

use crate::arrays;
use crate::row::{self, EXPIRIES, EXTENTS, LONGEST_KEY, Row, Size};
use crate::store::{Store, Write};
use crate::watches::{Keys, Told, Watches};
use crate::{Error, Result};

/// Rows of a table that is gone that are removed at once, so that others have their turn.
const ROWS_PER_TURN: usize = 1000;

/// What a row takes beside its key and its value, roughly.
const BESIDE: u64 = 32;

/// An operation of an actor.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// On which table.
    pub id: TableId,
    /// Who wants it.
    pub by: Pid,
    /// An encoded [`Operation`].
    pub operation: &'a [u8],
    /// The memory in which the arrays of its rows are, if there are some.
    pub arrays: Option<&'a OwnedFd>,
}

/// The tables of a node.
#[derive(Debug)]
pub struct Tables {
    /// Where their rows are.
    pub store: Store,
    known: BTreeMap<TableId, (Pid, Table)>,
    gone: VecDeque<TableId>,
    /// Bytes of all rows, and how many there may be.
    bytes: u64,
    most_bytes: u64,
    /// How many bytes an answer may have.
    most_answer: usize,
    /// Whether any row may expire.
    has_expiries: bool,
    /// Who is to put a row under which key, and who waits for that.
    claims: Claims,
    answers: Vec<Answer>,
    watches: Watches,
}

/// An encoded [`Outcome`], or why nothing was done.
pub type Done = std::result::Result<Vec<u8>, TableError>;

/// An answer that comes by itself: to the request with this number.
pub type Answer = (u64, Done);

/// By table and key.
type Claims = BTreeMap<(TableId, Vec<u8>), Claim>;

#[derive(Debug)]
struct Claim {
    holder: Claimant,
    /// In their order, each with the number for its answer.
    waiters: VecDeque<(u64, Claimant)>,
}

/// Who claims a key: one request of a process.
pub type Claimant = (ProcessId, RequestId);

/// How an operation can fail.
enum Failure {
    /// By its own fault: the others are done.
    Own(TableError),
    /// The transaction cannot go on.
    Store(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Store(error)
    }
}

type Tried<T> = std::result::Result<T, Failure>;

impl Tables {
    /// Of a store whose rows may have this many bytes, and its answers that many.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn new(mut store: Store, most_bytes: u64, most_answer: usize) -> Result<Self> {
        // What is there already comes from a store before.
        let bytes = store.write(|write| Ok(sizes(write)?.values().map(|size| size.bytes).sum()))?;
        Ok(Tables {
            store,
            known: BTreeMap::new(),
            gone: VecDeque::new(),
            bytes,
            most_bytes,
            most_answer,
            has_expiries: true,
            claims: BTreeMap::new(),
            answers: Vec::new(),
            watches: Watches::default(),
        })
    }

    /// There is this table, or it has another owner.
    pub fn note(&mut self, id: TableId, owner: Pid, table: Table) {
        self.known.insert(id, (owner, table));
    }

    /// There is no such table any more. Its rows go by and by.
    pub fn forget(&mut self, id: TableId) {
        self.known.remove(&id);
        self.gone.push_back(id);
        self.watches.gone(id);
        let answers = &mut self.answers;
        self.claims.retain(|(of, _), claim| {
            if *of == id {
                answers.extend(claim.waiters.drain(..).map(|(tag, _)| (tag, Err(TableError::NoTable))));
            }
            *of != id
        });
    }

    /// An actor wants to be the one who puts a row under a key where nothing is. The answer is among
    /// [`take_answers`](Self::take_answers), at once or later.
    ///
    /// # Errors
    /// Those of the store.
    pub fn claim(&mut self, tag: u64, id: TableId, by: Claimant, key: &[u8], now: u64) -> Result<()> {
        let request = Request { id, by: by.0.pid, operation: &[], arrays: None };
        let refused = match permitted(&self.known, &request) {
            Ok(table) if table.kind.is_bag() => {
                Some(TableError::BadRequest("a key of a bag may have further values at any time".into()))
            }
            Ok(_) => None,
            Err(error) => Some(error),
        };
        let refused = refused.or_else(|| check_key(key).err().map(|_| TableError::BadRequest("no key".into())));
        if let Some(error) = refused {
            self.answers.push((tag, Err(error)));
        } else if self.is_there(id, key, now)? {
            self.answers.push((tag, outcome(&Outcome::There)));
        } else {
            match self.claims.entry((id, key.to_vec())) {
                Entry::Vacant(entry) => {
                    entry.insert(Claim { holder: by, waiters: VecDeque::new() });
                    self.answers.push((tag, outcome(&Outcome::Granted)));
                }
                Entry::Occupied(mut entry) => entry.get_mut().waiters.push_back((tag, by)),
            }
        }
        Ok(())
    }

    /// An actor does not put a row after all, or does not wait any longer: if it was its turn, it is the next one's.
    pub fn release(&mut self, tag: u64, id: TableId, by: Claimant, key: &[u8]) {
        self.answers.push((tag, outcome(&Outcome::Done(0))));
        let answers = &mut self.answers;
        let Entry::Occupied(mut entry) = self.claims.entry((id, key.to_vec())) else { return };
        let claim = entry.get_mut();
        claim.waiters.retain(|(_, waiter)| *waiter != by);
        if claim.holder == by && !claim.pass_on(answers) {
            entry.remove();
        }
    }

    /// A process has ended: it puts nothing any more, and waits for nothing.
    pub fn ended(&mut self, by: ProcessId) {
        let answers = &mut self.answers;
        self.claims.retain(|_, claim| {
            claim.waiters.retain(|(_, waiter)| waiter.0 != by);
            claim.holder.0 != by || claim.pass_on(answers)
        });
    }

    /// A transaction that has changed this is done: who watches or waits for it is told.
    fn tell(&mut self, changed: ChangedKeys, now: u64) -> Result<()> {
        self.watches.changed(changed.watched);
        for place in changed.claimed {
            if self.is_there(place.0, &place.1, now)?
                && let Some(claim) = self.claims.remove(&place)
            {
                self.answers.extend(claim.waiters.into_iter().map(|(tag, _)| (tag, outcome(&Outcome::There))));
            }
        }
        Ok(())
    }

    /// The answers that have come by themselves since the last time.
    pub fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    /// Rows are watched from now on. `has_missed`: they were already, and nobody knows what has changed meanwhile.
    ///
    /// # Errors
    /// [`TableError::NoTable`].
    pub fn watch(&mut self, rows: RowWatch, has_missed: bool) -> std::result::Result<(), TableError> {
        let Some((_, table)) = self.known.get(&rows.id) else { return Err(TableError::NoTable) };
        self.watches.begin(rows, table.kind, has_missed);
        Ok(())
    }

    /// Rows are watched no longer. Another watch may take the place of this one: it tells what this one has not, and, with
    /// `has_missed`, that there was more.
    pub fn unwatch(&mut self, watch: u64, heir: Option<u64>, has_missed: bool) {
        self.watches.end(watch, heir, has_missed);
    }

    /// An actor looks at what a watch has told it last.
    pub fn seen(&mut self, watch: u64, by: Pid) {
        self.watches.seen(watch, by);
    }

    /// What those who watch are to be told since the last time.
    pub fn take_told(&mut self) -> Vec<Told> {
        self.watches.take_told()
    }

    fn is_there(&self, id: TableId, key: &[u8], now: u64) -> Result<bool> {
        let row = self.store.get(&row::of(id, key))?.and_then(Row::decode);
        Ok(row.is_some_and(|row| !row.is_expired(|| now)))
    }

    /// There are no tables but those that were noted: what else is in the file goes by and by.
    ///
    /// # Errors
    /// Those of the store.
    pub fn forget_others(&mut self) -> Result<()> {
        let there = self.store.write(|write| Ok(sizes(write)?.into_keys().collect::<Vec<_>>()))?;
        self.gone.extend(there.into_iter().filter(|id| !self.known.contains_key(id)));
        Ok(())
    }

    /// When the next row expires.
    ///
    /// # Errors
    /// Those of the store.
    pub fn next_expiry(&mut self) -> Result<Option<u64>> {
        if !self.has_expiries {
            return Ok(None);
        }
        let first = self.store.first(&row::prefix(EXPIRIES))?;
        let next = first.and_then(|(key, _)| row::expiry_of(key)).map(|(expires, _)| expires);
        self.has_expiries = next.is_some();
        Ok(next)
    }

    /// Removes some rows that have expired; true if there may be more.
    ///
    /// # Errors
    /// Those of the store.
    pub fn expire(&mut self, now: u64) -> Result<bool> {
        if !self.has_expiries || self.next_expiry()?.is_none_or(|next| next > now) {
            return Ok(false);
        }
        let Tables { store, known, watches, claims, .. } = self;
        let expired = store.write(|write| {
            let mut changed = Changed::new(watches, claims);
            let expired = expire(write, known, now, ROWS_PER_TURN, &mut changed)?;
            Ok((expired, changed.keys))
        });
        let Some(((count, freed), changed)) = self.if_room(expired)? else { return Ok(false) };
        self.tell(changed, now)?;
        self.bytes = self.bytes.saturating_sub(freed);
        Ok(count == ROWS_PER_TURN)
    }

    /// What came of housekeeping; `None` if even that needs more room than there is: it is done another time.
    fn if_room<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(result) => Ok(Some(result)),
            Err(Error::Full) => {
                self.store.release();
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes some rows of tables that are gone; true if there may be more.
    ///
    /// # Errors
    /// Those of the store.
    pub fn clear_up(&mut self) -> Result<bool> {
        let Some(id) = self.gone.front().copied() else { return Ok(false) };
        let cleared = self.store.write(|write| {
            let mut size = Size::decode(write.get(&Size::key(id))?);
            let before = size.bytes;
            let keys = keys(write, &row::first(id), &row::prefix(id), ROWS_PER_TURN)?;
            for (key, weight) in &keys {
                forget_row(write, None, key)?;
                write.delete(key)?;
                size.bytes = size.bytes.saturating_sub(*weight);
            }
            let ages = row::ages_of(id);
            let ages = self::keys(write, &ages, &ages, ROWS_PER_TURN)?;
            ages.iter().try_for_each(|(key, _)| write.delete(key).map(drop))?;
            let is_empty = keys.len().max(ages.len()) < ROWS_PER_TURN;
            if is_empty {
                write.delete(&Size::key(id))?;
            } else {
                write.put(&Size::key(id), &size.encode())?;
            }
            Ok((is_empty, if is_empty { before } else { before.saturating_sub(size.bytes) }))
        });
        let Some((is_empty, freed)) = self.if_room(cleared)? else { return Ok(false) };
        self.bytes = self.bytes.saturating_sub(freed);
        if is_empty {
            self.gone.pop_front();
        }
        Ok(!self.gone.is_empty())
    }

    /// Carries operations out, in their order, at this time. For each an encoded [`Outcome`], or why it was not done.
    ///
    /// # Errors
    /// [`Error::Damaged`]: nothing can be done with this store any more.
    pub fn operate(&mut self, requests: &[Request<'_>], now: u64) -> Result<Vec<Done>> {
        let mut tried = self.try_all(requests, now);
        if matches!(tried, Err(Error::Full)) {
            self.store.release();
            tried = self.try_all(requests, now);
        }
        match tried {
            Ok(results) => Ok(results),
            Err(error @ Error::Damaged(_)) => Err(error),
            Err(_) if requests.len() > 1 => {
                let mut results = Vec::with_capacity(requests.len());
                for request in requests {
                    results.extend(self.operate(std::slice::from_ref(request), now)?);
                }
                Ok(results)
            }
            Err(error) => Ok(vec![failed(&error)]),
        }
    }

    fn try_all(&mut self, requests: &[Request<'_>], now: u64) -> Result<Vec<Done>> {
        let Tables { store, known, bytes, most_bytes, most_answer, has_expiries, watches, claims, .. } = self;
        if store.dead_bytes() > 0 {
            store.release();
        }
        let dead = store.dead_bytes();
        let (results, after, may_expire, changed) = store.write(|write| {
            let mut changed = Changed::new(watches, claims);
            let mut all = *bytes;
            let mut may_expire = *has_expiries;
            // What has expired is there for nobody.
            let mut expired = if may_expire { ROWS_PER_TURN } else { 0 };
            while expired == ROWS_PER_TURN {
                let (count, freed) = expire(write, known, now, ROWS_PER_TURN, &mut changed)?;
                all = all.saturating_sub(freed);
                expired = count;
            }
            let mut results = Vec::with_capacity(requests.len());
            for request in requests {
                let done = permitted(known, request).map_err(Failure::Own).and_then(|table| {
                    let operation = postcard::from_bytes(request.operation)
                        .map_err(|error| bad(format!("no operation: {error}")))?;
                    let taken = i128::from(all) + i128::from(dead) + i128::from(write.gone_bytes());
                    let most = Most { free: i128::from(*most_bytes) - taken, answer: *most_answer };
                    let arrays = request.arrays.map(OwnedFd::try_clone).transpose().map_err(Error::from)?;
                    let mut change = Change::begin(write, request.id, table, &mut changed)?;
                    change.arrays = arrays.map(File::from);
                    let before = change.size.bytes;
                    let outcome = change.carry_out(&operation, most)?;
                    may_expire |= change.may_expire;
                    let after = change.finish()?;
                    all = (all + after).saturating_sub(before);
                    Ok(outcome)
                });
                results.push(match done {
                    Ok(outcome) => Ok(outcome),
                    Err(Failure::Own(error)) => Err(error),
                    Err(Failure::Store(error)) => return Err(error),
                });
            }
            Ok((results, all, may_expire, changed.keys))
        })?;
        *bytes = after;
        *has_expiries = may_expire;
        self.tell(changed, now)?;
        Ok(results)
    }
}

impl Claim {
    /// The first who waits is to put the row; false if nobody does.
    fn pass_on(&mut self, answers: &mut Vec<Answer>) -> bool {
        let Some((tag, next)) = self.waiters.pop_front() else { return false };
        self.holder = next;
        answers.push((tag, outcome(&Outcome::Granted)));
        true
    }
}

fn outcome(outcome: &Outcome<'_>) -> Done {
    postcard::to_stdvec(outcome).map_err(|error| TableError::BadRequest(error.to_string()))
}

fn failed(error: &Error) -> Done {
    Err(match error {
        Error::Full => TableError::Full,
        other => TableError::Unavailable(other.to_string()),
    })
}

fn bad(text: impl Into<String>) -> Failure {
    Failure::Own(TableError::BadRequest(text.into()))
}

fn permitted(known: &BTreeMap<TableId, (Pid, Table)>, request: &Request<'_>) -> std::result::Result<Table, TableError> {
    let (owner, table) = known.get(&request.id).ok_or(TableError::NoTable)?;
    match table.access {
        Access::Public => Ok(*table),
        Access::Protected | Access::Private if *owner == request.by => Ok(*table),
        Access::Protected | Access::Private => Err(TableError::NotYours),
    }
}

/// What a row takes, with its arrays and what says when it expires.
fn weight(whole: &[u8], row: &[u8]) -> u64 {
    let decoded = Row::decode(row);
    let expires = decoded.is_some_and(|row| row.expires != 0);
    let arrays = decoded.and_then(|row| Extent::of(row.value)).map_or(0, |(extent, _)| arrays::pages(extent.length));
    let own = (whole.len() as u64 + row.len() as u64 + BESIDE).saturating_add(arrays);
    if expires { own.saturating_add(whole.len() as u64 + BESIDE) } else { own }
}

/// Removes rows that have expired, so many at most; how many those were, and their bytes.
fn expire(
    write: &mut Write<'_>,
    known: &BTreeMap<TableId, (Pid, Table)>,
    now: u64,
    most: usize,
    changed: &mut Changed<'_>,
) -> Result<(usize, u64)> {
    let expired: Vec<Vec<u8>> = {
        let mut rows = write.rows(&row::prefix(EXPIRIES))?;
        let mut expired = Vec::new();
        while expired.len() < most
            && let Some((key, _)) = rows.next_row()?
            && row::expiry_of(key).is_some_and(|(expires, _)| expires <= now)
        {
            expired.push(key.to_vec());
        }
        expired
    };
    let mut freed = 0;
    for key in &expired {
        let Some((_, whole)) = row::expiry_of(key) else { continue };
        let id = TableId(whole.first_chunk().map_or(0, |id| u64::from_be_bytes(*id)));
        let table = known.get(&id).map_or(Table::new(TableKind::Set, Access::Public), |(_, table)| *table);
        if let Some(weight) = write.get(whole)?.map(|row| weight(whole, row)) {
            let mut change = Change::begin(write, id, table, changed)?;
            freed += weight;
            change.remove(whole, weight)?;
            change.finish()?;
        }
        write.delete(key)?;
    }
    Ok((expired.len(), freed))
}

/// A row is about to go, or to be put anew: nothing else says anything of it any more, nor is kept for it. Which table it is
/// of matters if that evicts.
fn forget_row(write: &mut Write<'_>, evicts: Option<TableId>, whole: &[u8]) -> Result<()> {
    let Some(row) = write.get(whole)?.and_then(Row::decode) else { return Ok(()) };
    let (version, expires, extent) = (row.version, row.expires, Extent::of(row.value));
    let extent = extent.map(|(extent, _)| extent);
    if expires != 0 {
        write.delete(&row::of_expiry(expires, whole))?;
    }
    if let Some(id) = evicts {
        write.delete(&row::of_age(id, version, whole))?;
    }
    extent.map_or(Ok(()), |extent| write.drop_array(extent))
}

/// Every table that has rows.
fn sizes(write: &Write<'_>) -> Result<BTreeMap<TableId, Size>> {
    let mut rows = write.rows(&[])?;
    let mut sizes = BTreeMap::new();
    let mut from = Some(Vec::new());
    while let Some(first) = from.take() {
        rows.seek(&first);
        if let Some((key, value)) = rows.next_row()? {
            // The first row of each says what is known of it.
            let id = TableId(key.first_chunk().map_or(0, |id| u64::from_be_bytes(*id)));
            if id >= EXTENTS {
                break;
            }
            sizes.insert(id, Size::decode(Some(value)));
            from = id.0.checked_add(1).map(|next| row::prefix(TableId(next)).to_vec());
        }
    }
    Ok(sizes)
}

/// Keys that begin so, from one on, each with what its row takes; this many at most.
fn keys(write: &Write<'_>, from: &[u8], prefix: &[u8], most: usize) -> Result<Vec<(Vec<u8>, u64)>> {
    let mut rows = write.rows(prefix)?;
    rows.seek(from);
    let mut found = Vec::new();
    while found.len() < most
        && let Some((key, value)) = rows.next_row()?
    {
        found.push((key.to_vec(), weight(key, value)));
    }
    Ok(found)
}

/// How much an operation may use.
#[derive(Clone, Copy)]
struct Most {
    /// Bytes of rows that may still come; negative if more is kept for those who look at it than may be.
    free: i128,
    /// Bytes of an answer.
    answer: usize,
}

/// Keys that a transaction changes.
#[derive(Default)]
struct ChangedKeys {
    /// Those that somebody watches, by the watch.
    watched: BTreeMap<u64, Keys>,
    /// Those that somebody claims.
    claimed: Vec<(TableId, Vec<u8>)>,
}

/// Notes what a transaction changes.
struct Changed<'a> {
    watches: &'a Watches,
    claims: &'a Claims,
    keys: ChangedKeys,
}

impl<'a> Changed<'a> {
    fn new(watches: &'a Watches, claims: &'a Claims) -> Self {
        Changed { watches, claims, keys: ChangedKeys::default() }
    }

    /// A row has come, has another value, or is gone.
    fn note(&mut self, id: TableId, key: &[u8], original: &[u8]) {
        for watch in self.watches.of_key(id, key) {
            self.keys.watched.entry(watch).or_default().add(key, original);
        }
        if !self.claims.is_empty() {
            let place = (id, key.to_vec());
            if self.claims.contains_key(&place) {
                self.keys.claimed.push(place);
            }
        }
    }
}

/// One operation under way.
struct Change<'w, 'store, 'watches> {
    write: &'w mut Write<'store>,
    changed: &'w mut Changed<'watches>,
    id: TableId,
    table: Table,
    size: Size,
    was: Size,
    /// The memory in which the arrays of the rows are that come.
    arrays: Option<File>,
    /// Whether a row that was put expires.
    may_expire: bool,
}

impl<'w, 'store, 'watches> Change<'w, 'store, 'watches> {
    fn begin(
        write: &'w mut Write<'store>,
        id: TableId,
        table: Table,
        changed: &'w mut Changed<'watches>,
    ) -> Result<Self> {
        let size = Size::decode(write.get(&Size::key(id))?);
        Ok(Change { write, changed, id, table, size, was: size, arrays: None, may_expire: false })
    }

    /// Notes what has become of the table's size; gives its bytes.
    fn finish(self) -> Result<u64> {
        if self.size != self.was {
            self.write.put(&Size::key(self.id), &self.size.encode())?;
        }
        Ok(self.size.bytes)
    }

    fn carry_out(&mut self, operation: &Operation<'_>, most: Most) -> Tried<Vec<u8>> {
        let outcome = match operation {
            Operation::Put { rows, only } => {
                rows.iter().try_for_each(|row| check_key(row.key))?;
                for row in rows {
                    if !self.holds(row.key, *only)? {
                        return encoded(&Outcome::Refused);
                    }
                }
                let before = self.size.rows;
                self.make_room(rows, most.free)?;
                for row in rows {
                    // What becomes of a row keeps its time, unless it is given another.
                    let expires = if row.expires == 0 && matches!(only, Only::IfVersion(_)) {
                        self.expiry(row.key)?
                    } else {
                        row.expires
                    };
                    self.put(&NewRow { expires, ..*row })?;
                }
                self.evict()?;
                Outcome::Done(self.size.rows.saturating_sub(before))
            }
            Operation::Delete { key, only } => {
                check_key(key)?;
                if !self.holds(key, *only)? {
                    return encoded(&Outcome::Refused);
                }
                Outcome::Done(self.delete_key(key)?)
            }
            Operation::DeleteValue { key, value } => {
                if !self.table.kind.is_bag() {
                    return Err(bad("a value alone is removed from a bag"));
                }
                check_key(key)?;
                Outcome::Done(self.delete_value(key, value)?)
            }
            Operation::DeletePrefix { prefix } => {
                if !prefix.is_empty() {
                    check_key(prefix)?;
                }
                let from = if prefix.is_empty() { row::first(self.id) } else { row::of(self.id, prefix) };
                let prefix = row::of(self.id, prefix);
                let mut count = 0;
                loop {
                    let keys = keys(self.write, &from, &prefix, ROWS_PER_TURN)?;
                    keys.iter().try_for_each(|(key, weight)| self.remove(key, *weight))?;
                    count += keys.len() as u64;
                    if keys.len() < ROWS_PER_TURN {
                        break Outcome::Done(count);
                    }
                }
            }
            Operation::Take { key } => {
                check_key(key)?;
                let values = self.values(key)?;
                // Of others, whoever takes one reads it first, and removes what it has read.
                if values.iter().any(|value| Extent::of(value).is_some()) {
                    return Err(bad("a value with arrays is read before it is removed"));
                }
                if values.iter().map(|value| value.len() + 16).sum::<usize>() > most.answer {
                    return Err(bad("what is under the key is larger than an answer may be"));
                }
                self.delete_key(key)?;
                return encoded(&Outcome::Taken(values.iter().map(|value| Bytes(value)).collect()));
            }
            Operation::Add { row, by } => return self.add(row, by, most.free),
        };
        encoded(&outcome)
    }

    /// Whether there is room for rows, in the table and in all of them together.
    fn make_room(&self, rows: &[NewRow<'_>], free: i128) -> Tried<()> {
        let mut growth: i128 = 0;
        let mut replaced = BTreeSet::new();
        for new in rows {
            self.check_value(new.value)?;
            let whole = row::of(self.id, new.key);
            let row = Row { version: 0, expires: new.expires, original: new.original, value: new.value }.encode();
            let comes = weight(&whole, &row);
            if self.table.max_bytes.is_some_and(|max| comes > max) {
                return Err(Failure::Own(TableError::AtLimit));
            }
            growth += i128::from(comes);
            // What is replaced twice by one operation is there twice until that is done.
            if !self.table.kind.is_bag() && (rows.len() == 1 || replaced.insert(new.key)) {
                growth -= self.write.get(&whole)?.map_or(0, |row| i128::from(weight(&whole, row)));
            }
        }
        // What needs no more room may also replace something where too much is kept, unless it is arrays.
        let brings_arrays = rows.iter().any(|row| row.value.first() == Some(&ARRAYS));
        if growth > if brings_arrays { free } else { free.max(0) } {
            return Err(Failure::Own(TableError::Full));
        }
        let max = self.table.max_bytes.filter(|_| !self.table.evicts());
        if max.is_some_and(|max| i128::from(self.size.bytes) + growth > i128::from(max)) {
            return Err(Failure::Own(TableError::AtLimit));
        }
        Ok(())
    }

    /// Whether the arrays of a value are where it says.
    fn check_value(&self, value: &[u8]) -> Tried<()> {
        if value.first() != Some(&ARRAYS) {
            return Ok(());
        }
        let (extent, _) = Extent::of(value).ok_or_else(|| bad("a value is cut off"))?;
        let memory = self.arrays.as_ref().ok_or_else(|| bad("arrays without their memory"))?;
        let end = extent.offset.checked_add(extent.length).filter(|_| extent.length > 0);
        let end = end.ok_or_else(|| bad("arrays beyond their memory"))?;
        if self.table.kind.is_bag() {
            return Err(bad("values of a bag have no arrays: they are compared"));
        }
        memory::check_sealed(memory, end).map_err(bad)
    }

    /// A value as it is to lie in a row: its arrays are copied.
    fn placed<'a>(&mut self, value: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        match (Extent::of(value), &self.arrays) {
            (Some((extent, rest)), Some(memory)) => Ok(self.write.add_array(memory, extent)?.encode(rest).into()),
            _ => Ok(value.into()),
        }
    }

    /// Removes the rows that were written longest ago, until the others are as many bytes as they may.
    fn evict(&mut self) -> Tried<()> {
        let Some(max) = self.table.max_bytes.filter(|_| self.table.evicts()) else { return Ok(()) };
        while self.size.bytes > max {
            let oldest = keys(self.write, &row::ages_of(self.id), &row::ages_of(self.id), 1)?;
            let Some((age, _)) = oldest.into_iter().next() else { return Ok(()) };
            let whole = row::row_of_age(&age).unwrap_or_default();
            match self.write.get(whole)?.map(|row| weight(whole, row)) {
                Some(weight) => self.remove(whole, weight)?,
                None => drop(self.write.delete(&age)?),
            }
        }
        Ok(())
    }

    /// When the row under a key expires.
    fn expiry(&self, key: &[u8]) -> Result<u64> {
        Ok(self.write.get(&row::of(self.id, key))?.and_then(Row::decode).map_or(0, |row| row.expires))
    }

    fn forget_row(&mut self, whole: &[u8]) -> Result<()> {
        forget_row(self.write, self.table.evicts().then_some(self.id), whole)
    }

    /// The rows under a key: the whole key, and the value as it lies there.
    fn under(&self, key: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let whole = row::of(self.id, key);
        if !self.table.kind.is_bag() {
            let value = self.write.get(&whole)?.map(<[u8]>::to_vec);
            return Ok(value.map(|value| (whole, value)).into_iter().collect());
        }
        let mut rows = self.write.rows(&whole)?;
        let mut found = Vec::new();
        while let Some((key, value)) = rows.next_row()? {
            found.push((key.to_vec(), value.to_vec()));
        }
        Ok(found)
    }

    fn values(&self, key: &[u8]) -> Result<Vec<Vec<u8>>> {
        let rows = self.under(key)?;
        Ok(rows.iter().filter_map(|(_, value)| Some(Row::decode(value)?.value.to_vec())).collect())
    }

    fn holds(&self, key: &[u8], only: Only) -> Tried<bool> {
        Ok(match only {
            Only::Always => true,
            Only::IfNew => self.under(key)?.is_empty(),
            Only::IfVersion(_) if self.table.kind.is_bag() => return Err(bad("a key of a bag has no version")),
            Only::IfVersion(version) => {
                let row = self.write.get(&row::of(self.id, key))?.and_then(Row::decode);
                row.is_some_and(|row| row.version == version)
            }
        })
    }

    fn put(&mut self, new: &NewRow<'_>) -> Tried<()> {
        let NewRow { key, original, expires, value } = *new;
        let placed = self.placed(value)?;
        let row = Row { version: self.write.version(), expires, original, value: &placed }.encode();
        let whole = match self.table.kind {
            TableKind::Bag if self.values(key)?.iter().any(|there| there == value) => return Ok(()),
            TableKind::Bag | TableKind::DuplicateBag => {
                self.size.next += 1;
                row::of_bag(self.id, key, self.size.next)
            }
            TableKind::Set | TableKind::OrderedSet => {
                let whole = row::of(self.id, key);
                if let Some(weight) = self.write.get(&whole)?.map(|row| weight(&whole, row)) {
                    self.forget_row(&whole)?;
                    self.size.bytes = self.size.bytes.saturating_sub(weight);
                    self.size.rows = self.size.rows.saturating_sub(1);
                }
                whole
            }
        };
        self.write.put(&whole, &row)?;
        if expires != 0 {
            self.write.put(&row::of_expiry(expires, &whole), &[])?;
            self.may_expire = true;
        }
        if self.table.evicts() {
            self.write.put(&row::of_age(self.id, self.write.version(), &whole), &[])?;
        }
        self.changed.note(self.id, key, original);
        self.size.rows += 1;
        self.size.bytes += weight(&whole, &row);
        Ok(())
    }

    fn remove(&mut self, whole: &[u8], weight: u64) -> Result<()> {
        if let (Some(key), Some(row)) = (row::key_of(whole, self.table.kind.is_bag()), self.write.get(whole)?) {
            self.changed.note(self.id, key, Row::decode(row).map_or(&[], |row| row.original));
        }
        self.forget_row(whole)?;
        self.write.delete(whole)?;
        self.size.rows = self.size.rows.saturating_sub(1);
        self.size.bytes = self.size.bytes.saturating_sub(weight);
        Ok(())
    }

    fn delete_key(&mut self, key: &[u8]) -> Tried<u64> {
        let rows = self.under(key)?;
        rows.iter().try_for_each(|(whole, row)| self.remove(whole, weight(whole, row)))?;
        Ok(rows.len() as u64)
    }

    fn delete_value(&mut self, key: &[u8], value: &[u8]) -> Tried<u64> {
        let is_it = |there: &[u8]| Row::decode(there).is_some_and(|row| row.value == value);
        let rows: Vec<_> = self.under(key)?.into_iter().filter(|(_, there)| is_it(there)).collect();
        rows.iter().try_for_each(|(whole, row)| self.remove(whole, weight(whole, row)))?;
        Ok(rows.len() as u64)
    }

    fn add(&mut self, new: &NewRow<'_>, by: &Value, free: i128) -> Tried<Vec<u8>> {
        if self.table.kind.is_bag() {
            return Err(bad("there are no counters in a bag"));
        }
        check_key(new.key)?;
        let there = self.write.get(&row::of(self.id, new.key))?.map(<[u8]>::to_vec);
        let row = there.as_deref().and_then(Row::decode);
        let value = row.map_or(new.value, |row| row.value);
        let Some((&encoding, value)) = value.split_first() else { return encoded(&Outcome::Refused) };
        let number = if encoding == PLAIN { value::decode(value).ok() } else { None };
        let sum = match (number, by) {
            (Some(Value::Int(number)), Value::Int(by)) => {
                Value::Int(number.checked_add(*by).ok_or_else(|| bad("the sum has more than 128 bits"))?)
            }
            (Some(Value::Int(number)), Value::Float(by)) => Value::Float(number as f64 + by),
            (Some(Value::Float(number)), Value::Int(by)) => Value::Float(number + *by as f64),
            (Some(Value::Float(number)), Value::Float(by)) => Value::Float(number + by),
            (Some(_) | None, _) => return Err(bad("what is under the key is no number")),
        };
        let value = [&[PLAIN], &value::encode(&sum)[..]].concat();
        let original = row.map_or(new.original, |row| row.original);
        // One that is to expire does so, too, after it has counted.
        let expires = if new.expires != 0 { new.expires } else { row.map_or(0, |row| row.expires) };
        let row = NewRow { key: new.key, original, expires, value: &value };
        self.make_room(&[row], free)?;
        self.put(&row)?;
        self.evict()?;
        encoded(&Outcome::Sum(sum))
    }
}

fn encoded(result: &Outcome<'_>) -> Tried<Vec<u8>> {
    outcome(result).map_err(Failure::Own)
}

fn check_key(key: &[u8]) -> Tried<()> {
    match key {
        [] | [0 | 1, ..] => Err(bad("no key")),
        key if key.len() > LONGEST_KEY => Err(bad(format!("a key of {} bytes: it may have {LONGEST_KEY}", key.len()))),
        _ => Ok(()),
    }
}
