//! What the supervisor and the zygote say. Descriptors travel beside a frame, attached to its first byte.

use serde::{Deserialize, Serialize};

use crate::spec::{ChildSpec, SupervisorSpec};

/// From the supervisor to the zygote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToZygote {
    /// Import the application, evaluate its tree and say whether it may be forked.
    Load(Target),
    /// Make a worker. Descriptors: channel, status page, lifeline, stdout, stderr.
    Fork {
        /// Repeated in the answer.
        request: u64,
    },
    /// Import these modules, and no application: this process is to be forked into zygotes.
    Preload(Vec<String>),
    /// Make a zygote, which says `Ready` itself. Descriptors: its control socket, lifeline, the memory for the project's
    /// code, stdout, stderr.
    ForkZygote {
        /// Repeated in the answer.
        request: u64,
    },
    /// Do what is to be done at exit, and end.
    End,
}

/// From the zygote to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromZygote {
    /// The interpreter is up; `version` is [`crate::handshake::VERSION`].
    Ready {
        /// The protocol of the module that answers.
        version: u32,
    },
    /// The application is imported and its tree evaluated.
    Loaded {
        /// The tree; not looked at when it is only imported again after a zygote died.
        tree: Box<SupervisorSpec>,
        /// How the gateway of a client of the control socket is started.
        gateway: Box<ChildSpec>,
        /// Why it must not be forked, if it must not.
        unforkable: Option<String>,
        /// The modules of the project, imported or to be imported.
        modules: Vec<Module>,
        /// Names that they import and that are no modules of the project: the last part of each; `*` if whatever comes
        /// may be imported.
        missing: Vec<String>,
        /// Packages that are none of the project's and took long to import, and how long, in milliseconds.
        slow: Vec<(String, u64)>,
    },
    /// The modules to be imported first are.
    Preloaded {
        /// Why this process must not be forked, if it must not.
        unforkable: Option<String>,
    },
    /// It could not be.
    LoadFailed(LoadError),
    /// A worker was made.
    Forked {
        /// Of the request.
        request: u64,
        /// The process, a child of the supervisor.
        os_pid: u32,
    },
    /// The process must not be forked any more, though it could be once.
    Unforkable {
        /// Of the request that was not carried out.
        request: u64,
        /// Why not.
        reason: String,
    },
    /// None could be made.
    ForkFailed {
        /// Of the request.
        request: u64,
        /// The system's words.
        error: String,
    },
}

/// One module of the project, or one file of it that is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Its name; of a file that is run, its path.
    pub name: String,
    /// Its file, by the bytes of its path.
    pub path: Vec<u8>,
    /// A digest of its source.
    pub own: u64,
    /// A digest of its source and of everything of the project that it imports.
    pub closure: u64,
}

/// What `rebeam up` was pointed at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// A module name, or the absolute path of a file.
    pub source: Source,
    /// The attribute; `None`: `tree`, or the only supervisor there is.
    pub attribute: Option<String>,
    /// Modules to import before the application.
    pub preload: Vec<String>,
    /// Whether it is forked once it is imported.
    pub fork: Fork,
    /// Foreign programs to run with it, in this order: the name of each, and its options as JSON.
    pub programs: Vec<(String, String)>,
}

/// Whether actors are forks of a process that has imported the application, or fresh interpreters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fork {
    /// Forks, unless the import has opened or started what forks must not share.
    #[default]
    Auto,
    /// Forks, whatever the import has opened or started.
    Always,
    /// Fresh interpreters.
    Never,
}

/// Where the application is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A module, found on the path with the project directory first.
    Module(String),
    /// A file, by the bytes of its path.
    File(Vec<u8>),
}

/// Why an application could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadError {
    /// Whose fault it is; decides the exit code.
    pub kind: LoadErrorKind,
    /// One line that names the user's own thing.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The user's own frames, if code of theirs raised.
    pub traceback: Option<String>,
}

/// The sorts of load errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadErrorKind {
    /// No such file, module or attribute, an attribute of the wrong type, or a spec that is not valid.
    Usage,
    /// The application's own code raised.
    Raised,
}
