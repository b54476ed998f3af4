//! Foreign programs: what is declared of one, for the port that stands between it and the supervisor.
//!
//! To the supervisor a port is an actor's process like any other. This is its start payload, and no more than it needs.

use serde::{Deserialize, Serialize};

use crate::address::Address;

/// A program, and how to get on with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The program and its arguments; looked up in `PATH` unless it has a slash.
    pub argv: Vec<String>,
    /// What its input and output are.
    pub stdio: Stdio,
    /// Who gets what it writes: lines, bytes, notifications.
    pub output: Option<Address>,
    /// Who answers its requests, and hears its notifications.
    pub handler: Option<Address>,
    /// When it is ready.
    pub ready: Ready,
    /// The parameters, as JSON, of the request `initialize` that it is sent first, if it is.
    pub initialize: Option<String>,
    /// How many milliseconds it may take to be ready when it is started again; `None`: no limit.
    pub start_ms: Option<u64>,
    /// The signal that asks it to stop.
    pub stop_signal: i32,
    /// After how many milliseconds it is killed, if it has not ended; `None`: never.
    pub stop_ms: Option<u64>,
    /// After how many milliseconds without use it is stopped, to be started by the next message; `None`: never.
    pub idle_ms: Option<u64>,
    /// How many bytes a line, or a JSON-RPC message, may have.
    pub max_line: u64,
}

/// What the standard input and output of a program are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// It reads nothing; what it writes goes to the log.
    Log,
    /// Bytes.
    Raw,
    /// Lines of text.
    Lines,
    /// JSON-RPC 2.0.
    JsonRpc {
        /// How messages are told apart.
        framing: Framing,
        /// How it learns that nobody waits for an answer any more.
        cancel: Cancel,
    },
}

/// How messages of JSON-RPC are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Framing {
    /// Each is a line (Model Context Protocol).
    Lines,
    /// Each has a header with its `Content-Length` (Language Server Protocol).
    Headers,
}

/// The notification by which a request is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cancel {
    /// None.
    Never,
    /// `notifications/cancelled` (Model Context Protocol).
    Mcp,
    /// `$/cancelRequest` (Language Server Protocol).
    Lsp,
}

/// When a program is ready. Until then its actor is starting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ready {
    /// When it runs.
    AtOnce,
    /// When it has written a line that has this in it, to either output.
    Line(String),
    /// When a connection to this host and port is accepted.
    Tcp(String, u16),
    /// When a connection to this socket is accepted.
    Unix(String),
    /// When there is this file.
    File(String),
    /// When a `GET` of this path from this host and port is answered with a status from 200 to 399.
    Http(String, u16, String),
}

impl Program {
    /// As a start payload.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// From a start payload.
    ///
    /// # Errors
    /// It is none, in words.
    pub fn decode(payload: &[u8]) -> Result<Self, String> {
        postcard::from_bytes(payload).map_err(|error| format!("no program: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_comes_back_from_its_bytes() {
        let program = Program {
            argv: vec!["cat".into(), "-".into()],
            stdio: Stdio::JsonRpc { framing: Framing::Headers, cancel: Cancel::Lsp },
            output: Some(Address::Name("a".into())),
            handler: None,
            ready: Ready::Http("localhost".into(), 80, "/".into()),
            initialize: Some("{}".into()),
            start_ms: Some(60_000),
            stop_signal: 15,
            stop_ms: Some(5000),
            idle_ms: Some(5),
            max_line: 1 << 20,
        };
        assert_eq!(Program::decode(&program.encode()), Ok(program));
        assert!(Program::decode(b"\xff\xff").is_err());
    }
}
