//! The ledger: who holds which name, key or place in a group, in memory that all processes of a node share.
//!
//! It is a log that the supervisor alone writes and that whoever wants to look reads on from where it was. So a change
//! costs the supervisor one record, however many actors there are, and who never looks pays nothing. When most of the
//! log is out of date, what still holds is written anew into the other half of the memory, and a new *epoch* begins:
//! readers start over. Records may repeat what a reader knows: the last word about a number counts.
//!
//! This module holds the layout and the records: mapping the memory is the business of each side.

use serde::{Deserialize, Serialize};

use crate::id::Pid;
use crate::value::{self, Value};

/// Byte offset of the word that says how far the log goes: its epoch, and the bytes that are written.
pub const STATE: usize = 0;

/// Byte offset of a word that is not about entries, but for all workers, too: 1 while they are to make no more memory for
/// large buffers, since each of those takes a descriptor of the supervisor.
pub const FEW_DESCRIPTORS: usize = 8;

/// Byte offset of another such word: how many stores of tables have ended. What was opened before is out of date.
pub const STORES: usize = 16;

/// Byte offset of the first half.
const START: usize = 4096;

/// Bytes that one epoch may have.
pub const HALF: usize = 64 * 1024 * 1024;

/// Bytes of the memory. Only what was written to takes any.
pub const SIZE: usize = START + 2 * HALF;

/// The value of the name of a registry whose keys have one holder each, and of one whose keys may have many.
pub const UNIQUE: &[u8] = b"unique";
/// See [`UNIQUE`].
pub const DUPLICATE: &[u8] = b"duplicate";

/// Bytes of records that hold; there is always room to write them anew.
pub const MOST: usize = HALF / 2;

/// Bytes that a key may have, encoded.
pub const MOST_KEY: usize = 4 * 1024;

/// Bytes that the value of an entry may have.
pub const MOST_VALUE: usize = 64 * 1024;

/// How far the log goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// Counts up with each new beginning.
    pub epoch: u32,
    /// Bytes that are written, a multiple of 8.
    pub length: u32,
}

impl Tail {
    /// From the word at [`STATE`].
    pub fn of(word: u64) -> Self {
        Tail { epoch: (word >> 32) as u32, length: word as u32 }
    }

    /// The word at [`STATE`].
    pub fn word(self) -> u64 {
        u64::from(self.epoch) << 32 | u64::from(self.length)
    }

    /// The byte offset of a position within this epoch.
    pub fn offset(self, position: u32) -> usize {
        START + (self.epoch as usize & 1) * HALF + position as usize
    }
}

/// One registry of a node. A registry of the tree has the serial of its incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RegistryId(pub u64);

impl RegistryId {
    /// The names of actors and supervisors.
    pub const NAMES: RegistryId = RegistryId(0);
    /// The groups: each is a key, its members are entries.
    pub const GROUPS: RegistryId = RegistryId(u64::MAX);
    /// The tables: each is a key, held by its owner, with a [`crate::table::Table`] as its value.
    pub const TABLES: RegistryId = RegistryId(u64::MAX - 1);
}

/// A record: an entry that is there from now on (or has another value), or one that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record<'a> {
    /// In which registry.
    pub registry: RegistryId,
    /// The entry's number; counts up, so that entries under one key have an order.
    pub number: u64,
    /// Under which key: an encoded [`Value`].
    pub key: &'a [u8],
    /// Who holds it, and the value, which only workers understand; `None`: it is gone.
    pub entry: Option<(Pid, &'a [u8])>,
}

/// The key of a name or a group.
pub fn text_key(text: &str) -> Vec<u8> {
    value::encode(&Value::Str(text.to_owned()))
}

/// A key as it reads: text as it is, anything else as Python would write it, roughly.
pub fn key_label(key: &[u8]) -> String {
    match value::decode(key) {
        Ok(Value::Str(text)) => text,
        Ok(value) => value.to_string(),
        Err(_) => "?".to_owned(),
    }
}

/// The words of a record, as they stand in the log: its length in bytes, then the record itself, filled up with zeros.
pub fn encode(record: &Record<'_>) -> Vec<u64> {
    let body = postcard::to_stdvec(record).unwrap_or_default();
    let mut words = vec![body.len() as u64];
    words.extend(body.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    }));
    words
}

/// The first record of some bytes of the log, and how many of them it takes; `None` if they break off.
pub fn decode(bytes: &[u8]) -> Option<(Record<'_>, usize)> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let record = postcard::from_bytes(rest.get(..length)?).ok()?;
    Some((record, 8 + length.next_multiple_of(8)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeStart;

    #[test]
    fn records_follow_one_another() {
        let pid = Pid { at: NodeStart { node: 0, started: 7 }, serial: 3 };
        let key = text_key("a name");
        let records = [
            Record { registry: RegistryId::NAMES, number: 1, key: &key, entry: Some((pid, b"value")) },
            Record { registry: RegistryId(3), number: 300, key: &[], entry: None },
        ];
        let words: Vec<u64> = records.iter().flat_map(encode).collect();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let (first, length) = decode(&bytes).expect("a record");
        let (second, rest) = decode(&bytes[length..]).expect("another");
        assert_eq!([first, second], records);
        assert_eq!(length + rest, bytes.len());
        assert!(decode(&bytes[..length - 8]).is_none(), "it breaks off");
    }

    #[test]
    fn a_tail_is_one_word() {
        let tail = Tail { epoch: 5, length: 64 };
        assert_eq!(Tail::of(tail.word()), tail);
        assert_eq!(tail.offset(8) - Tail { epoch: 4, length: 0 }.offset(8), HALF);
    }
}
