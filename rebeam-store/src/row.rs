//! How keys and rows lie in the file: `table key` → `version expiry original value`.
//!
//! A table's key is its number in eight bytes, so its rows lie together; in a bag the key is followed by eight bytes that
//! count up. What is known of a table itself stands before its first row, under a key that no value has ([`crate::key`]
//! begins with other bytes).

use rebeam_protocol::table::{Extent, TableId};

/// Bytes of the number of a table.
const TABLE: usize = 8;

/// Bytes of the number of a value in a bag.
const PLACE: usize = 8;

/// Bytes that the key of a row may have. LMDB takes 1982 in all.
pub const LONGEST_KEY: usize = 1900;

/// What the keys of all rows of a table begin with.
pub fn prefix(id: TableId) -> [u8; TABLE] {
    id.0.to_be_bytes()
}

/// The first key that a row of a table may have.
pub fn first(id: TableId) -> Vec<u8> {
    of(id, &[1])
}

/// The key of a row, or what the keys of several begin with.
pub fn of(id: TableId, key: &[u8]) -> Vec<u8> {
    [&prefix(id), key].concat()
}

/// Under this number stands when rows expire, the next one first: `time row's key`, without a value.
pub(crate) const EXPIRIES: TableId = TableId(u64::MAX);

/// The key that says when a row expires.
pub(crate) fn of_expiry(expires: u64, whole: &[u8]) -> Vec<u8> {
    [&prefix(EXPIRIES), &expires.to_be_bytes(), whole].concat()
}

/// When which row expires, by such a key.
pub(crate) fn expiry_of(key: &[u8]) -> Option<(u64, &[u8])> {
    let (expires, whole) = key.get(TABLE..)?.split_first_chunk()?;
    Some((u64::from_be_bytes(*expires), whole))
}

/// Under this number stands which rows of tables that evict were written when, the oldest of each table first.
pub(crate) const AGES: TableId = TableId(u64::MAX - 1);

/// What the keys begin with that say how old the rows of a table are.
pub(crate) fn ages_of(id: TableId) -> Vec<u8> {
    of(AGES, &prefix(id))
}

/// The key that says which transaction has put a row.
pub(crate) fn of_age(id: TableId, version: u64, whole: &[u8]) -> Vec<u8> {
    [&ages_of(id), &version.to_be_bytes()[..], whole].concat()
}

/// Which row such a key is about.
pub(crate) fn row_of_age(key: &[u8]) -> Option<&[u8]> {
    key.get(2 * TABLE + 8..)
}

/// Under this number stand the extents of the file of arrays that rows have: `offset`, with the length as its value. It is
/// the first of those that are no table's.
pub(crate) const EXTENTS: TableId = TableId(u64::MAX - 2);

/// The key of an extent.
pub(crate) fn of_extent(offset: u64) -> Vec<u8> {
    of(EXTENTS, &offset.to_be_bytes())
}

/// The extent that such a key and its value are about.
pub(crate) fn extent_of(key: &[u8], value: &[u8]) -> Option<Extent> {
    let offset = u64::from_be_bytes(*key.get(TABLE..)?.first_chunk()?);
    Some(Extent { offset, length: u64::from_le_bytes(*value.first_chunk()?) })
}

/// The key of a value in a bag.
pub(crate) fn of_bag(id: TableId, key: &[u8], place: u64) -> Vec<u8> {
    [&prefix(id), key, &place.to_be_bytes()].concat()
}

/// The bytes of a row's key, without its table; `None` if it is what is known of the table.
pub fn key_of(whole: &[u8], is_bag: bool) -> Option<&[u8]> {
    let key = whole.get(TABLE..)?;
    let length = key.len().checked_sub(if is_bag { PLACE } else { 0 })?;
    (key.first() != Some(&0)).then(|| &key[..length])
}

/// A row's value as it lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// The transaction that has put it.
    pub version: u64,
    /// When it expires, in milliseconds; 0: it does not.
    pub expires: u64,
    /// The key itself, if it does not follow from the key's bytes.
    pub original: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

impl<'a> Row<'a> {
    /// As it lies in the file.
    pub(crate) fn encode(self) -> Vec<u8> {
        let length = (self.original.len() as u32).to_le_bytes();
        [&self.version.to_le_bytes(), &self.expires.to_le_bytes(), &length[..], self.original, self.value].concat()
    }

    /// From how it lies in the file; `None` if it is none.
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (version, bytes) = bytes.split_first_chunk()?;
        let (expires, bytes) = bytes.split_first_chunk()?;
        let (length, bytes) = bytes.split_first_chunk()?;
        let (original, value) = bytes.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        Some(Row { version: u64::from_le_bytes(*version), expires: u64::from_le_bytes(*expires), original, value })
    }

    /// Whether it counts as gone at this time.
    pub fn is_expired(&self, now: impl FnOnce() -> u64) -> bool {
        self.expires != 0 && self.expires <= now()
    }
}

/// What is known of a table itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// How many rows it has.
    pub rows: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// The next number of a value in a bag.
    pub(crate) next: u64,
}

impl Size {
    /// Under which key it is.
    pub fn key(id: TableId) -> Vec<u8> {
        of(id, &[0])
    }

    pub(crate) fn encode(self) -> Vec<u8> {
        [self.rows, self.bytes, self.next].into_iter().flat_map(u64::to_le_bytes).collect()
    }

    /// From how it lies in the file; of a table without rows there may be nothing.
    pub fn decode(bytes: Option<&[u8]>) -> Self {
        let mut numbers = bytes.unwrap_or_default().chunks_exact(8);
        let mut next = || numbers.next().and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
        Size { rows: next(), bytes: next(), next: next() }
    }
}
