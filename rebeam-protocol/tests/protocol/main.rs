//! The bytes of the protocol: golden ones that only change with the version, and round trips of any.

mod golden;
mod round_trip;
