//! The core in virtual time: a world of processes that do what a test says.

mod bounds;
mod delivery;
mod health;
mod mail;
mod model;
mod names;
mod process;
mod recycling;
mod reload;
mod supervision;
mod waits;
mod world;
