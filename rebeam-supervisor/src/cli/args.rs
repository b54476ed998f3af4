//! What can be said on the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::engine::ArgValueCompleter;

use crate::cli::names;
use crate::config::{Embed, LogFormat};

/// Supervised Python actors, one OS process each.
#[derive(Debug, Parser)]
#[command(name = "rebeam", version, disable_help_subcommand = true, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 as asked; 1 the tree gave up, or a request failed; 2 wrong usage or configuration; 3 start-up failed; 4 a batch is done but for dead items; 5 a batch ended early and goes on when it is run again."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// The project directory [default: the nearest one upwards with `rebeam.toml` or `pyproject.toml`, else this one]
    #[arg(long, global = true, value_name = "DIR", env = "REBEAM_PROJECT")]
    pub(crate) project: Option<PathBuf>,
    /// Where the control sockets of nodes are kept [default: `$XDG_RUNTIME_DIR/rebeam`, else a directory of yours in the temporary directory]
    #[arg(long, global = true, value_name = "DIR", env = "REBEAM_RUNTIME_DIR", hide = true)]
    pub(crate) runtime_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run an application, for development
    Up(Up),
    /// Run an application, for production: JSON logs, health and metrics, fit for process 1 of a container
    Run(Run),
    /// Run a pipeline to its end, or go on with one
    Batch(Batch),
    /// List the actors of the running application
    Ps(Output),
    /// Show the running application as a tree
    Tree(Output),
    /// Call a method of an actor and print its result
    Call(Call),
    /// Cast to a method of an actor, without waiting
    Cast(Cast),
    /// Import the application anew: actors whose code has changed go over to it, with their state and mail
    Reload(Output),
    /// Stop a child of a supervisor; `restart` brings it back
    Stop(Name),
    /// Stop a child if it runs, and start it anew
    Restart(Name),
    /// Show the last deaths of an actor
    Why(Why),
    /// Messages that nobody handled: list them, look at one, send them again
    Dead(Dead),
    /// Show who is called what, or who holds the keys of a registry
    Names(Names),
    /// Show the groups and their members
    Groups(Output),
    /// Tables: list them, look at rows, put some, write them to a file and back
    Table(Table),
    /// Show what actors do right now, by their Python stacks
    Stack(Stack),
    /// Have an actor log from another level on, over its restarts too
    LogLevel(LogLevel),
    /// Say whether the running application is ready; exit code 1 if not
    Health(Output),
    /// Show what this machine or container allows, and where that is said
    Doctor(Doctor),
    /// Stop the running application
    Down(Down),
    /// Print the version
    Version(Output),
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) start: Start,
    /// Do not reload the application when its files are saved; `rebeam reload` does that by hand
    #[arg(long, env = "REBEAM_NO_RELOAD")]
    pub(crate) no_reload: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) start: Start,
    /// Serve /livez, /readyz and /metrics at `ADDRESS:PORT`, or at the socket that `systemd` hands over [default: nowhere]
    #[arg(long, value_name = "ADDRESS", env = "REBEAM_HTTP")]
    pub(crate) http: Option<String>,
    /// A name under which it may be asked over HTTP, beside addresses and `localhost`; may be said several times
    #[arg(long, value_name = "NAME", env = "REBEAM_HTTP_HOST", value_delimiter = ',')]
    pub(crate) http_host: Vec<String>,
    /// How logs look
    #[arg(long, value_enum, env = "REBEAM_LOG_FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// Write logs to this file instead of stdout; SIGHUP opens it anew
    #[arg(long, value_name = "PATH", env = "REBEAM_LOG_FILE")]
    pub(crate) log_file: Option<PathBuf>,
    /// Send spans of calls and handlers to this collector, as `http://localhost:4318` [default: nowhere]
    #[arg(long, value_name = "URL", env = "REBEAM_OTLP")]
    pub(crate) otlp: Option<String>,
    /// Which share of traces is sampled, from 0 to 1 [default: 1]
    #[arg(long, value_name = "SHARE", env = "REBEAM_TRACE_SHARE")]
    pub(crate) trace_share: Option<f64>,
    /// Seconds that a message may wait before the node is not ready [default: 60]
    #[arg(long, value_name = "SECONDS", env = "REBEAM_LONGEST_WAIT")]
    pub(crate) longest_wait: Option<f64>,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Batch {
    #[command(subcommand)]
    pub(crate) about: Option<About>,
    #[command(flatten)]
    pub(crate) start: Start,
    /// Start over: forget the journal and what the sink has written
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Try the dead items again
    #[arg(long)]
    pub(crate) retry_failed: bool,
    /// Only the item with this id; may be said several times
    #[arg(long, value_name = "ID")]
    pub(crate) only: Vec<String>,
    /// Stop when more items than this have failed for good: a number, or a share of those done, as `5%`
    #[arg(long, value_name = "N")]
    pub(crate) max_failures: Option<String>,
    /// Go on though the code, the parameters or the input have changed
    #[arg(long)]
    pub(crate) accept_changes: bool,
    /// Go on with a journal that somebody else has made or may have changed: code that is in it runs as you
    #[arg(long)]
    pub(crate) trust_journal: bool,
    /// Where the journal is kept, in a folder by the pipeline's name [default: `.rebeam/batch` of the project]
    #[arg(long, value_name = "DIR", env = "REBEAM_BATCH_JOURNAL")]
    pub(crate) journal: Option<PathBuf>,
    /// Keep no journal: a run that ends early starts over
    #[arg(long, conflicts_with_all = ["retry_failed", "only", "accept_changes"])]
    pub(crate) no_journal: bool,
    /// Write the report here too, as JSON
    #[arg(long, value_name = "PATH")]
    pub(crate) report: Option<PathBuf>,
    /// Print everything as JSON, one object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// What can be asked of a pipeline's journal.
#[derive(Debug, Subcommand)]
pub(crate) enum About {
    /// How far it is
    Status(OfPipeline),
    /// The dead items, with why
    Dead(OfPipeline),
    /// Have the dead items tried again when it is run next
    Replay(OfPipeline),
    /// Where the last report is
    Report(OfPipeline),
}

#[derive(Debug, Args)]
pub(crate) struct OfPipeline {
    /// The pipeline's name
    pub(crate) name: String,
    /// Where its journal is kept [default: `.rebeam/batch` of the project]
    #[arg(long, value_name = "DIR", env = "REBEAM_BATCH_JOURNAL")]
    pub(crate) journal: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What both ways to run an application can be told.
#[derive(Debug, Args)]
pub(crate) struct Start {
    /// `module:attribute`, `module`, `file.py` or `file.py:attribute` [default: `app` of the project's file]
    #[arg(value_name = "TARGET")]
    pub(crate) target: Option<OsString>,
    /// The Python to run [default: the one beside `rebeam`, of `$VIRTUAL_ENV`, of `.venv`, on the path]
    #[arg(long, value_name = "PATH", env = "REBEAM_PYTHON")]
    pub(crate) python: Option<PathBuf>,
    /// Whether its libpython is loaded or the interpreter executed
    #[arg(long, value_enum, env = "REBEAM_EMBED")]
    pub(crate) embed: Option<Embed>,
    /// Seconds that a stop may take before what is left is killed [default: 25]
    #[arg(long, value_name = "SECONDS", env = "REBEAM_GRACE")]
    pub(crate) grace: Option<f64>,
    /// The largest message, as `64MB` or in bytes; large buffers are not counted [default: 256MiB]
    #[arg(long, value_name = "SIZE", env = "REBEAM_MAX_MESSAGE")]
    pub(crate) max_message: Option<String>,
    /// From which level on actors log: `debug`, `info`, `warning`, `error`, `critical` [default: as the application says]
    #[arg(long, value_name = "LEVEL", env = "REBEAM_LOG_LEVEL")]
    pub(crate) log_level: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Stack {
    /// The actor's name, or its path in the tree [default: all actors]
    #[arg(add = ArgValueCompleter::new(names::complete))]
    pub(crate) name: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogLevel {
    /// The actor's name, or its path in the tree
    #[arg(add = ArgValueCompleter::new(names::complete))]
    pub(crate) name: String,
    /// `debug`, `info`, `warning`, `error` or `critical`
    pub(crate) level: String,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The Python to look at [default: as for `up`]
    #[arg(long, value_name = "PATH", env = "REBEAM_PYTHON")]
    pub(crate) python: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Output {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Call {
    #[command(flatten)]
    pub(crate) message: Message,
    /// Seconds to wait for the answer
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    pub(crate) timeout: f64,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Cast {
    #[command(flatten)]
    pub(crate) message: Message,
}

#[derive(Debug, Args)]
pub(crate) struct Message {
    /// The actor's name
    #[arg(add = ArgValueCompleter::new(names::complete))]
    pub(crate) name: String,
    /// The method
    pub(crate) method: String,
    /// Its arguments: JSON values, bare words are strings; `key=value` for keywords
    #[arg(allow_negative_numbers = true)]
    pub(crate) args: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Name {
    /// The actor's name, or the path of a child in the tree
    #[arg(add = ArgValueCompleter::new(names::complete))]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Why {
    /// The actor's name, or its path in the tree
    #[arg(add = ArgValueCompleter::new(names::complete))]
    pub(crate) name: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Dead {
    #[command(subcommand)]
    pub(crate) command: DeadCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    /// List the dead letters that are kept, oldest first
    List(Output),
    /// Show one with the deaths that made it one
    Show {
        /// Its number
        id: u64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Send them again, as casts; those that have nobody to go to stay
    Replay(Selection),
    /// Forget them
    Drop(Selection),
}

#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Their numbers
    pub(crate) ids: Vec<u64>,
    /// Those that were for this actor
    #[arg(long, value_name = "ACTOR")]
    pub(crate) to: Option<String>,
    /// All of them
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Table {
    #[command(subcommand)]
    pub(crate) command: TableCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TableCommand {
    /// List the tables: kind, access, owner, rows, bytes
    Ls(Output),
    /// Show rows in the order of their keys
    Show {
        /// The table's name
        name: String,
        /// Only rows whose keys begin with these items
        prefix: Vec<String>,
        /// So many at most
        #[arg(long, default_value_t = 100, value_name = "ROWS")]
        limit: u64,
        /// Print a JSON array of pairs
        #[arg(long)]
        json: bool,
    },
    /// Show what is under a key; exit code 1 if nothing is
    Get {
        /// The table's name
        name: String,
        /// The key: JSON, an array for a tuple, or a bare word
        key: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put a value under a key of a public table
    Put {
        /// The table's name
        name: String,
        /// The key: JSON, an array for a tuple, or a bare word
        key: String,
        /// The value: JSON, or a bare word
        value: String,
    },
    /// Write all rows of one moment to stdout, each a line of JSON
    Dump {
        /// The table's name
        name: String,
    },
    /// Put rows that `dump` has written, from stdin, into a public table
    Load {
        /// The table's name
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Names {
    /// A registry of the tree
    #[arg(add = ArgValueCompleter::new(names::complete_registry))]
    pub(crate) registry: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    /// Return at once instead of waiting for the end
    #[arg(long)]
    pub(crate) no_wait: bool,
}
