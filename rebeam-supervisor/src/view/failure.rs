//! What went wrong, as a person is told: one line, what it came from, what to do. Only [`crate::cli::render`] prints it.

use std::error::Error;
use std::fmt;

use crate::view::exit_code::ExitCode;

/// An end of the program that is not success.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: ExitCode,
    pub(crate) message: String,
    /// A traceback or a certificate, many lines long.
    pub(crate) detail: Option<String>,
    pub(crate) causes: Vec<String>,
    pub(crate) hints: Vec<String>,
    /// Whether it has been told already.
    pub(crate) is_told: bool,
}

impl Failure {
    pub(crate) fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Failure { code, message: message.into(), detail: None, causes: Vec::new(), hints: Vec::new(), is_told: false }
    }

    /// Wrong usage or configuration.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Failure::new(ExitCode::Usage, message)
    }

    /// Start-up failed.
    pub(crate) fn start(message: impl Into<String>) -> Self {
        Failure::new(ExitCode::StartFailed, message)
    }

    /// A request to a running node failed.
    pub(crate) fn request(message: impl Into<String>) -> Self {
        Failure::new(ExitCode::GaveUp, message)
    }

    pub(crate) fn detail(mut self, text: String) -> Self {
        self.detail = Some(text);
        self
    }

    pub(crate) fn cause(mut self, text: String) -> Self {
        self.causes.push(text);
        self
    }

    pub(crate) fn because(self, error: &dyn Error) -> Self {
        self.because_of(Some(error))
    }

    pub(crate) fn because_of(mut self, mut error: Option<&dyn Error>) -> Self {
        while let Some(cause) = error {
            self.causes.push(cause.to_string().trim_end().to_owned());
            error = cause.source();
        }
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, "\n{detail}")?;
        }
        self.causes.iter().try_for_each(|cause| write!(f, "\ncaused by: {cause}"))?;
        self.hints.iter().try_for_each(|hint| write!(f, "\nhint: {hint}"))
    }
}
