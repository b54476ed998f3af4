//! `rebeam`: the supervisor, and the command line that speaks to it. There is no Python in this program.

mod cli;
mod config;
mod printer;
mod python;
mod shell;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::run(&cli::args::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            cli::render::failure(&failure);
            failure.code.into()
        }
    }
}
