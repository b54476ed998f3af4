//! The exit codes of `rebeam`, each with one meaning.

/// What the exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitCode {
    /// The tree gave up; or a request to a running node was refused or failed.
    GaveUp = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// Start-up failed.
    StartFailed = 3,
    /// A batch is done, but for dead items.
    DeadItems = 4,
    /// A batch ended early, and goes on when it is run again.
    Unfinished = 5,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        std::process::ExitCode::from(code as u8)
    }
}
