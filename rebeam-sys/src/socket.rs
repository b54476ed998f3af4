//! Stream sockets between processes of one machine, with descriptors that travel beside the bytes.
//!
//! A descriptor goes with the first byte of a send; a receive that brings one ends behind it, so what is received with a
//! descriptor is known to belong to it. This is the one place that takes control messages apart.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, getsockopt, sendmsg, socketpair};
use nix::sys::time::TimeSpec;
use rebeam_protocol::hash::fnv1a;

/// How many descriptors one receive may bring.
const MOST_DESCRIPTORS: usize = 16;

/// What a receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes; 0 if the other side is gone.
    pub count: usize,
    /// Whether descriptors came with them: then more bytes may be there.
    pub has_descriptors: bool,
    /// Whether some of those could not be taken: too many were sent, or too many files are open here.
    pub are_cut_off: bool,
}

/// A buffer that grows by what is received.
pub trait Spare {
    /// Room behind what is there.
    fn spare(&mut self) -> &mut [MaybeUninit<u8>];

    /// # Safety
    /// The first `count` bytes of [`Spare::spare`] have been written.
    unsafe fn add(&mut self, count: usize);
}

impl Spare for BytesMut {
    fn spare(&mut self) -> &mut [MaybeUninit<u8>] {
        self.spare_capacity_mut()
    }

    unsafe fn add(&mut self, count: usize) {
        // SAFETY: the caller's.
        unsafe { self.set_len(self.len() + count) };
    }
}

/// Room for control messages, aligned as they have to be.
#[repr(C, align(8))]
struct Control([MaybeUninit<u8>; Control::SIZE]);

impl Control {
    const SIZE: usize = 16 + MOST_DESCRIPTORS * size_of::<RawFd>();
}

/// Receives once into the spare room of a buffer, without waiting; descriptors are appended in order.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] if there is nothing, and those of the system.
pub fn receive(
    socket: impl AsFd,
    buffer: &mut impl Spare,
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<Received> {
    let spare = buffer.spare();
    let mut part = libc::iovec { iov_base: spare.as_mut_ptr().cast(), iov_len: spare.len() };
    let mut control = Control([MaybeUninit::uninit(); Control::SIZE]);
    // SAFETY: msghdr is plain data for which zero is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = Control::SIZE as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the kernel writes at most `iov_len` bytes to the spare room and `msg_controllen` to `control`, both of
    // which outlive the call.
    let count = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) };
    let Ok(count) = usize::try_from(count) else { return Err(io::Error::last_os_error()) };
    let before = descriptors.len();
    if message.msg_controllen > 0 {
        take_descriptors(&message, descriptors);
    }
    // SAFETY: the kernel has written so many bytes to the spare room.
    unsafe { buffer.add(count) };
    let are_cut_off = message.msg_flags & libc::MSG_CTRUNC != 0;
    Ok(Received { count, has_descriptors: descriptors.len() > before, are_cut_off })
}

/// Takes the descriptors out of a message that the kernel has filled.
fn take_descriptors(message: &libc::msghdr, descriptors: &mut VecDeque<OwnedFd>) {
    // SAFETY: the kernel has filled the control buffer of this message, whose parts are walked by the C library's own
    // macros; each descriptor found in one was made for us by this receive, and is owned from here on.
    unsafe {
        let mut part = libc::CMSG_FIRSTHDR(message);
        while let Some(header) = part.as_ref() {
            if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
                let bytes = header.cmsg_len - libc::CMSG_LEN(0) as usize;
                let data: *const RawFd = libc::CMSG_DATA(part).cast();
                for place in 0..bytes / size_of::<RawFd>() {
                    descriptors.push_back(OwnedFd::from_raw_fd(data.add(place).read_unaligned()));
                }
            }
            part = libc::CMSG_NXTHDR(message, part);
        }
    }
}

/// Sends what the socket takes, without waiting; the descriptors go with the first byte.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] if there is no room, and those of the system. Nobody is killed by SIGPIPE.
pub fn send(socket: impl AsFd, parts: &[IoSlice<'_>], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    Ok(sendmsg::<()>(socket.as_fd().as_raw_fd(), parts, control, flags, None)?)
}

/// Waits until there is something to read, for so long at most (`None`: forever); false if the time is over.
///
/// # Errors
/// [`io::ErrorKind::Interrupted`] when a signal came, and those of the system.
pub fn wait_readable(socket: BorrowedFd<'_>, left: Option<Duration>) -> io::Result<bool> {
    let mut polled = [PollFd::new(socket, PollFlags::POLLIN)];
    Ok(ppoll(&mut polled, left.map(TimeSpec::from_duration), None)? > 0)
}

/// Waits until there is room to write, however often signals come.
///
/// # Errors
/// Those of the system.
pub fn wait_writable(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut polled = [PollFd::new(socket, PollFlags::POLLOUT)];
    loop {
        match poll(&mut polled, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            result => return Ok(result.map(drop)?),
        }
    }
}

/// Whether a socket can be read from, or written to, at this moment.
pub fn is_ready(socket: BorrowedFd<'_>, events: PollFlags) -> bool {
    let mut polled = [PollFd::new(socket, events)];
    poll(&mut polled, PollTimeout::ZERO).is_ok() && polled[0].revents().is_some_and(|found| found.intersects(events))
}

/// Waits until a socket has something to read or is closed; false if that took longer than `most`, or a signal came.
///
/// # Errors
/// Those of the system.
pub fn waits_for_input(socket: BorrowedFd<'_>, most: Duration) -> io::Result<bool> {
    let mut polled = [PollFd::new(socket, PollFlags::POLLIN)];
    let most = PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX);
    match poll(&mut polled, most) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A connected pair of stream sockets; neither survives an exec by accident.
///
/// # Errors
/// Those of the system.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?)
}

/// A connected pair of stream sockets: the first does not block, the second does; neither survives an exec by accident.
///
/// # Errors
/// Those of the system.
pub fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = pair()?;
    set_nonblocking(&ours)?;
    Ok((ours, theirs))
}

/// Has reads and writes on a descriptor not wait.
///
/// # Errors
/// Those of the system.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Opens a socket with a name in Linux's abstract namespace, which goes with it.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] if somebody has the name, and those of the system.
pub fn bind_abstract(name: &str) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

/// Connects to a socket in the abstract namespace, if it belongs to this user or to root: anybody may take a name there.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] if it belongs to somebody else, and those of the system.
pub fn connect_abstract(name: &str) -> io::Result<UnixStream> {
    let stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    let peer = getsockopt(&stream, PeerCredentials)?.uid();
    let own = nix::unistd::getuid().as_raw();
    if peer == own || peer == 0 { Ok(stream) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

/// The process at the other end of a socket.
///
/// # Errors
/// Those of the system.
pub fn peer_process(stream: &UnixStream) -> io::Result<i32> {
    Ok(getsockopt(stream, PeerCredentials)?.pid())
}

/// The name in the abstract namespace of the node that has a directory. Several containers may share a network, and even
/// their processes, so it tells the namespaces of process ids and of mounts apart.
pub fn abstract_name_of(node_dir: &Path) -> String {
    let namespace = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap_or_default();
    let (pid, mnt) = (namespace("pid"), namespace("mnt"));
    let hash = fnv1a(resolved(node_dir).as_os_str().as_encoded_bytes());
    format!("rebeam/{}/{}/{}/{hash:016x}", nix::unistd::getuid(), pid.display(), mnt.display())
}

/// A path without links on the way to its last part, as far as it is there; the rest may be made later, or be gone.
fn resolved(path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut above = whole.ancestors().skip(1);
    let there = above.find_map(|base| Some((base.canonicalize().ok()?, whole.strip_prefix(base).ok()?)));
    there.map_or(whole.clone(), |(base, rest)| base.join(rest))
}

/// Opens a node's control socket in its directory.
///
/// # Errors
/// Those of the system.
pub fn bind_node(node_dir: &Path) -> io::Result<UnixListener> {
    with_short_path(node_dir, |path| {
        let _ = std::fs::remove_file(path);
        UnixListener::bind(path)
    })
}

/// Connects to the node that has a directory: by its socket there, or else by its abstract name, if that belongs to this
/// user or to root. A socket in a directory that somebody else could have made is not trusted, unless that place
/// `is_chosen` by whoever connects.
///
/// # Errors
/// Nobody listens, and those of the system.
pub fn connect_node(node_dir: &Path, is_chosen: bool) -> io::Result<UnixStream> {
    let connect = |path: &Path| {
        let stream = UnixStream::connect(path)?;
        let peer = getsockopt(&stream, PeerCredentials)?.uid();
        let own = nix::unistd::getuid().as_raw();
        // Root may control the node of whoever has the directories on the way to its socket.
        let is_theirs = || own == 0 && belongs_to(node_dir, peer);
        let is_trusted = is_chosen || peer == own || is_theirs();
        if is_trusted { Ok(stream) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    };
    with_short_path(node_dir, connect).or_else(|error| {
        connect_abstract(&abstract_name_of(node_dir)).map_err(|other| match other.kind() {
            io::ErrorKind::PermissionDenied => other,
            _ => error,
        })
    })
}

/// Whether a directory and the one that it lies in are a user's own, or root's, and nobody else can change them.
fn belongs_to(directory: &Path, uid: u32) -> bool {
    let is_owned = |path: &Path| {
        path.symlink_metadata()
            .is_ok_and(|found| found.is_dir() && (found.uid() == uid || found.uid() == 0) && found.mode() & 0o022 == 0)
    };
    is_owned(directory) && directory.parent().is_some_and(|base| is_owned(base) && base.parent().is_some_and(is_owned))
}

/// Does something with a node's control socket by a path that is short enough for a socket (`sockaddr_un` has room for 107
/// bytes): where its own is not, by way of its directory's descriptor.
fn with_short_path<T>(node_dir: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let path = node_dir.join(SOCKET);
    if path.as_os_str().len() <= LONGEST {
        return act(&path);
    }
    let directory = std::fs::File::open(node_dir)?;
    act(Path::new(&format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd())))
}

/// The longest path that a socket may have, by `sockaddr_un`.
const LONGEST: usize = 107;

/// The name of the control socket in a node's directory.
pub const SOCKET: &str = "control.sock";
