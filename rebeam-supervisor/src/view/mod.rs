//! What a person or a program is shown, as data and as text: failures with their exit codes, certificates, lists.
//!
//! Nothing here prints, asks or waits: the shell and the command line both draw from it, and it knows neither.

pub(crate) mod crash;
pub(crate) mod exit_code;
pub(crate) mod failure;
pub(crate) mod members;
pub(crate) mod reload;
pub(crate) mod text;
pub(crate) mod values;
