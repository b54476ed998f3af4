//! The first frame each way: who speaks which version, and who the worker is to be.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{ActorId, ProcessId, Version};
use crate::spec::ProcessOptions;

/// The version of what the supervisor and its own processes say to each other: a fingerprint of this crate's sources (see
/// `build.rs`). Both binaries and the module come in one wheel, so it must be equal. Clients from outside have a version of
/// their own, [`crate::outside::VERSION`].
pub const VERSION: u32 = include!(concat!(env!("OUT_DIR"), "/version.rs"));

/// What starts every first frame, so that rubbish is told from another version.
pub const MAGIC: u32 = u32::from_be_bytes(*b"RBEM");

/// Something random that only the processes of one node know.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret")
    }
}

/// The supervisor's first frame. The payload behind it is the start payload (which class, which arguments).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`VERSION`].
    pub version: u32,
    /// Who this process is.
    pub process: ProcessId,
    /// Which actor it is an incarnation of.
    pub actor: ActorId,
    /// The actor's registered name, or its path in the tree if it has none.
    pub label: String,
    /// Whether `label` is a registered name.
    pub named: bool,
    /// How often this actor was started before.
    pub restarts: u32,
    /// The version of the code that it runs.
    pub code: Version,
    /// If it goes on with the state of the process before: by which version of the code that was. The descriptor of the
    /// memory with the state comes with the frame.
    pub takes_over: Option<Version>,
    /// Whether it is to handle no mail until it is told to.
    pub is_suspended: bool,
    /// How its process differs from the others.
    pub options: ProcessOptions,
    /// How many messages it handles at once, where handlers can overlap.
    pub concurrency: u32,
    /// The largest frame either side may send, in bytes.
    pub max_frame: u64,
    /// From which of `logging`'s numbers on it logs; `None`: as the application says.
    pub log_level: Option<u16>,
    /// What Python's `multiprocessing` checks its connections with.
    pub secret: Secret,
}

/// The worker's first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`VERSION`].
    pub version: u32,
    /// Its process id, as it sees it.
    pub os_pid: u32,
}

impl Hello {
    /// Checks the first frame of a worker.
    ///
    /// # Errors
    /// A text that says what is wrong, for the worker's exit reason.
    pub fn check(&self) -> Result<(), String> {
        check(self.magic, self.version)
    }
}

impl Welcome {
    /// Checks the first frame of a supervisor.
    ///
    /// # Errors
    /// A text that says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        check(self.magic, self.version)
    }
}

fn check(magic: u32, version: u32) -> Result<(), String> {
    if magic != MAGIC {
        Err("the first frame is not a handshake".into())
    } else if version != VERSION {
        Err(format!("protocol version {version}, expected {VERSION}: two installations of rebeam are mixed"))
    } else {
        Ok(())
    }
}
