//! Where a running node is found: a directory per project with a lock and a socket.
//!
//! The lock, not the socket, says whether the node lives: it goes with the process however that ends, so a socket
//! without a holder of the lock is stale and taken over. Beside it the node has a socket with a name in Linux's abstract
//! namespace, which is lock and socket in one. It is found by who finds no socket in the directory: where nothing can be
//! written, as in a container with a read-only root, or where a cleaner of temporary files has been. What that took is made
//! anew ([`NodeDir::restore`]).

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use rebeam_protocol::hash::fnv1a;
use rebeam_sys::socket::{SOCKET, abstract_name_of, bind_abstract, bind_node, connect_abstract, peer_process};

/// A node's directory and name, held for as long as this lives.
#[derive(Debug)]
pub(crate) struct NodeDir {
    path: PathBuf,
    /// The name. None where another user has it, who may not keep us from running.
    name: Option<UnixListener>,
    /// What is held of the directory. None where nothing can be written.
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    lock: Flock<File>,
    project: PathBuf,
    /// Whether somebody has chosen the place.
    is_chosen: bool,
    /// The socket's device and inode, once it is open.
    socket: Option<(u64, u64)>,
}

/// Why a node cannot have its directory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeDirError {
    /// Another process has it.
    #[error("this project is running already, as process {os_pid}")]
    Taken { os_pid: String },
    /// Somebody else has made it, or could change it.
    #[error("`{}` {why}", path.display())]
    NotOurs { path: PathBuf, why: &'static str },
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
    node_dir.join(SOCKET)
}

/// Whether an open file is the one at a path.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.metadata()) {
        (Ok(file), Ok(path)) => (file.dev(), file.ino()) == (path.dev(), path.ino()),
        _ => false,
    }
}

/// Device and inode of what is at a path.
fn place_of(path: &Path) -> Option<(u64, u64)> {
    let metadata = path.symlink_metadata().ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl NodeDir {
    /// Takes the name and the directory, or says who has them. If the directory cannot be made and nobody has chosen it, the
    /// name has to do.
    pub(crate) fn take(path: &Path, project: &Path, is_chosen: bool) -> Result<Self, NodeDirError> {
        let name = take_name(path)?;
        let held = match take_directory(path, project, is_chosen) {
            Err(NodeDirError::Io { source, .. }) if !is_chosen && name.is_some() && cannot_be_written(&source) => None,
            taken => Some(taken?),
        };
        Ok(NodeDir { path: path.to_owned(), name, held })
    }

    /// Opens the control sockets.
    pub(crate) fn listen(&mut self) -> io::Result<Vec<UnixListener>> {
        let named = self.name.as_ref().map(UnixListener::try_clone).transpose()?;
        let listeners: Vec<UnixListener> = self.open()?.into_iter().chain(named).collect();
        for listener in &listeners {
            listener.set_nonblocking(true)?;
        }
        Ok(listeners)
    }

    /// Opens the socket in the directory.
    fn open(&mut self) -> io::Result<Option<UnixListener>> {
        let Some(held) = &mut self.held else { return Ok(None) };
        let listener = bind_node(&self.path)?;
        listener.set_nonblocking(true)?;
        held.socket = place_of(&socket_in(&self.path));
        Ok(Some(listener))
    }

    /// Makes anew what was removed of the directory; gives the socket, if that was.
    pub(crate) fn restore(&mut self) -> io::Result<Option<UnixListener>> {
        let Some(held) = &mut self.held else { return Ok(None) };
        if !is_at(&held.lock, &self.path.join("lock")) {
            held.lock = take_directory(&self.path, &held.project, held.is_chosen).map_err(io::Error::other)?.lock;
        }
        let is_there = held.socket.is_some() && place_of(&socket_in(&self.path)) == held.socket;
        if is_there { Ok(None) } else { self.open() }
    }

    /// The socket as people read it.
    pub(crate) fn socket(&self) -> String {
        match &self.held {
            Some(_) => socket_in(&self.path).display().to_string(),
            None => format!("@{}", abstract_name_of(&self.path)),
        }
    }
}

/// Takes the abstract name of a node's directory.
fn take_name(path: &Path) -> Result<Option<UnixListener>, NodeDirError> {
    let name = abstract_name_of(path);
    match bind_abstract(&name) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => match connect_abstract(&name) {
            Ok(holder) => {
                let os_pid = peer_process(&holder).map_or_else(|_| "?".to_owned(), |os_pid| os_pid.to_string());
                Err(NodeDirError::Taken { os_pid })
            }
            Err(_) => Ok(None),
        },
        // There are no such names here: the lock in the directory has to do.
        Err(_) => Ok(None),
    }
}

/// Makes the directory of a node, and takes the lock in it.
fn take_directory(path: &Path, project: &Path, is_chosen: bool) -> Result<Held, NodeDirError> {
    let io = |verb, path: &Path| {
        let path = path.to_owned();
        move |source| NodeDirError::Io { verb, path, source }
    };
    // The one above is ours to make as well, unless somebody has chosen it: then it is as they have made it.
    let base = path.parent().map(|base| (base, if is_chosen { Level::Chosen } else { Level::Base }));
    for (path, level) in base.into_iter().chain([(path, Level::Own)]) {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io("create the directory", path))?;
        let metadata = if level == Level::Chosen { path.metadata() } else { path.symlink_metadata() };
        if let Some(why) = distrust(&metadata.map_err(io("look at", path))?, level) {
            return Err(NodeDirError::NotOurs { path: path.to_owned(), why });
        }
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
    Ok(Held { lock: file, project: project.to_owned(), is_chosen, socket: None })
}

/// Whose work a directory on the way to a node's socket is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    /// Somebody has chosen it, and may have made it anyhow.
    Chosen,
    /// We make it, for all nodes of a user.
    Base,
    /// The node's own.
    Own,
}

/// Why what is at a path must not be used as a directory of ours: what others may change there, they may replace.
fn distrust(found: &Metadata, level: Level) -> Option<&'static str> {
    const STICKY: u32 = 0o1000;
    let own = nix::unistd::getuid().as_raw();
    if found.file_type().is_symlink() {
        return Some("is a link");
    }
    let is_chosen = level == Level::Chosen;
    let (others_may, why) = match level {
        Level::Chosen => (0o002, "can be changed by other users, and is not sticky"),
        Level::Base => (0o022, "can be changed by other users"),
        Level::Own => (0o077, "is open to other users"),
    };
    let is_open = found.mode() & others_may != 0 && !(is_chosen && found.mode() & STICKY != 0);
    match found.uid() {
        uid if uid != own && !(is_chosen && uid == 0) => Some("belongs to another user"),
        _ => is_open.then_some(why),
    }
}

/// Where the socket of a node would be, as people read it; does not take it.
pub(crate) fn probe(path: &Path, is_chosen: bool) -> Result<String, NodeDirError> {
    let base = path.ancestors().skip(1).find(|base| base.exists()).unwrap_or(Path::new("/"));
    let writable = nix::unistd::access(base, nix::unistd::AccessFlags::W_OK);
    match (writable, is_chosen) {
        (Ok(()), _) => Ok(socket_in(path).display().to_string()),
        (Err(_), false) => Ok(format!("@{}", abstract_name_of(path))),
        (Err(error), true) => Err(NodeDirError::Io { verb: "write to", path: base.to_owned(), source: error.into() }),
    }
}

fn cannot_be_written(error: &io::Error) -> bool {
    use io::ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), ReadOnlyFilesystem | PermissionDenied | NotFound | StorageFull)
}

impl Drop for NodeDir {
    fn drop(&mut self) {
        if self.held.is_none() {
            return;
        }
        let _ = std::fs::remove_file(socket_in(&self.path));
        let _ = std::fs::remove_file(self.path.join("lock"));
        let _ = std::fs::remove_dir(&self.path);
    }
}
