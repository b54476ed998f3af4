//! Where a running node is found: a directory per project with a lock and a socket.
//!
//! The lock, not the socket, says whether the node lives: it goes with the process however that ends, so a socket
//! without a holder of the lock is stale and taken over. Where nothing can be written, as in a container with a read-only
//! root, the socket has a name in Linux's abstract namespace instead, which is lock and socket in one.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use rebeam_protocol::hash::fnv1a;
use rebeam_sys::socket::{abstract_name_of, bind_abstract, connect_abstract};

/// The longest path that a socket may have, by `sockaddr_un`.
const LONGEST: usize = 107;

/// A node's directory, held for as long as this lives.
#[derive(Debug)]
pub(crate) struct NodeDir {
    path: PathBuf,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Directory {
        _lock: Flock<File>,
    },
    /// The socket itself.
    Abstract(UnixListener),
}

/// Why a node cannot have its directory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeDirError {
    /// Another process has it.
    #[error("this project is running already, as process {os_pid}")]
    Taken { os_pid: String },
    /// The path is too long for a socket.
    #[error("the path of the control socket is {length} bytes long, where the system allows {LONGEST}: `{}`", path.display())]
    TooLong { path: PathBuf, length: usize },
    /// It belongs to somebody else.
    #[error("`{}` belongs to another user", path.display())]
    NotOurs { path: PathBuf },
    /// The system says no.
    #[error("failed to {verb} `{}`", path.display())]
    Io {
        verb: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The directory of the node of a project.
pub(crate) fn path_for(project: &Path, runtime_dir: Option<&Path>) -> PathBuf {
    let uid = nix::unistd::getuid();
    let base = match runtime_dir {
        Some(path) => path.to_owned(),
        None => match std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()) {
            Some(path) => Path::new(&path).join("rebeam"),
            None => std::env::temp_dir().join(format!("rebeam-{uid}")),
        },
    };
    base.join(format!("{:016x}", fnv1a(project.as_os_str().as_encoded_bytes())))
}

/// The socket in a node's directory.
pub(crate) fn socket_in(node_dir: &Path) -> PathBuf {
    node_dir.join("control.sock")
}

/// Whether an open file is the one at a path.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.metadata()) {
        (Ok(file), Ok(path)) => (file.dev(), file.ino()) == (path.dev(), path.ino()),
        _ => false,
    }
}

impl NodeDir {
    /// Takes the directory, or says who has it. If it cannot be made and nobody has chosen it, takes a name in its stead.
    pub(crate) fn take(path: &Path, project: &Path, is_chosen: bool) -> Result<Self, NodeDirError> {
        match Self::take_directory(path, project) {
            Err(NodeDirError::Io { source, .. }) if !is_chosen && cannot_be_written(&source) => {
                let io = |verb| {
                    let path = path.to_owned();
                    move |source| NodeDirError::Io { verb, path, source }
                };
                let listener = bind_abstract(&abstract_name(path)).map_err(|error| match error.kind() {
                    io::ErrorKind::AddrInUse => NodeDirError::Taken { os_pid: "?".into() },
                    _ => io("open an abstract socket for")(error),
                })?;
                Ok(NodeDir { path: path.to_owned(), held: Held::Abstract(listener) })
            }
            taken => taken,
        }
    }

    fn take_directory(path: &Path, project: &Path) -> Result<Self, NodeDirError> {
        let io = |verb, path: &Path| {
            let path = path.to_owned();
            move |source| NodeDirError::Io { verb, path, source }
        };
        let socket = socket_in(path);
        let length = socket.as_os_str().len();
        if length > LONGEST {
            return Err(NodeDirError::TooLong { path: socket, length });
        }
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io("create the directory", path))?;
        let metadata = path.metadata().map_err(io("look at", path))?;
        if metadata.uid() != nix::unistd::getuid().as_raw() || metadata.mode() & 0o077 != 0 {
            return Err(NodeDirError::NotOurs { path: path.to_owned() });
        }
        let lock = path.join("lock");
        let mut file = loop {
            let mut options = OpenOptions::new();
            let file =
                options.create(true).truncate(false).read(true).write(true).open(&lock).map_err(io("open", &lock))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                // Its last holder may have removed it between the opening and the locking: then this is no lock.
                Ok(file) if is_at(&file, &lock) => break file,
                Ok(_) => DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io("create", path))?,
                Err((mut file, _)) => {
                    let mut holder = String::new();
                    let _ = file.read_to_string(&mut holder);
                    let os_pid = holder.lines().next().unwrap_or("?").to_owned();
                    return Err(NodeDirError::Taken { os_pid });
                }
            }
        };
        file.set_len(0).map_err(io("write", &lock))?;
        write!(file, "{}\n{}\n", std::process::id(), project.display()).map_err(io("write", &lock))?;
        let _ = std::fs::remove_file(&socket);
        Ok(NodeDir { path: path.to_owned(), held: Held::Directory { _lock: file } })
    }

    /// Opens the control socket.
    pub(crate) fn listen(&self) -> io::Result<UnixListener> {
        let listener = match &self.held {
            Held::Directory { .. } => UnixListener::bind(socket_in(&self.path))?,
            Held::Abstract(listener) => listener.try_clone()?,
        };
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// The socket as people read it.
    pub(crate) fn socket(&self) -> String {
        match &self.held {
            Held::Directory { .. } => socket_in(&self.path).display().to_string(),
            Held::Abstract(_) => format!("@{}", abstract_name(&self.path)),
        }
    }
}

/// Where the socket of a node would be, as people read it; does not take it.
pub(crate) fn probe(path: &Path, is_chosen: bool) -> Result<String, NodeDirError> {
    let base = path.ancestors().skip(1).find(|base| base.exists()).unwrap_or(Path::new("/"));
    let writable = nix::unistd::access(base, nix::unistd::AccessFlags::W_OK);
    match (writable, is_chosen) {
        (Ok(()), _) => Ok(socket_in(path).display().to_string()),
        (Err(_), false) => Ok(format!("@{}", abstract_name(path))),
        (Err(error), true) => Err(NodeDirError::Io { verb: "write to", path: base.to_owned(), source: error.into() }),
    }
}

/// Connects to the node that has a directory, or, if nobody has chosen that, the name in its stead.
pub(crate) fn connect(path: &Path, is_chosen: bool) -> io::Result<UnixStream> {
    let in_directory = UnixStream::connect(socket_in(path));
    if in_directory.is_ok() || is_chosen {
        return in_directory;
    }
    connect_abstract(&abstract_name(path))
}

fn abstract_name(path: &Path) -> String {
    abstract_name_of(&path.file_name().unwrap_or_default().to_string_lossy())
}

fn cannot_be_written(error: &io::Error) -> bool {
    use io::ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), ReadOnlyFilesystem | PermissionDenied | NotFound | StorageFull)
}

impl Drop for NodeDir {
    fn drop(&mut self) {
        if matches!(self.held, Held::Abstract(_)) {
            return;
        }
        let _ = std::fs::remove_file(socket_in(&self.path));
        let _ = std::fs::remove_file(self.path.join("lock"));
        let _ = std::fs::remove_dir(&self.path);
    }
}
