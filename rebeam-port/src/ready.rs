//! When a program is ready that says so by accepting connections, or by a file: a thread tries until it does.

use std::io::{self, PipeReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rebeam_protocol::program::Ready;

const PAUSE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(2);

/// What can be read from as soon as it is ready; `None`: there is nothing to try.
///
/// # Errors
/// Those of the system.
pub(crate) fn watch(ready: &Ready) -> io::Result<Option<PipeReader>> {
    if matches!(ready, Ready::AtOnce | Ready::Line(_)) {
        return Ok(None);
    }
    let (reader, mut writer) = io::pipe()?;
    let ready = ready.clone();
    thread::Builder::new().stack_size(128 * 1024).spawn(move || {
        while !is_ready(&ready) {
            thread::sleep(PAUSE);
        }
        let _ = writer.write_all(b"!");
    })?;
    Ok(Some(reader))
}

fn is_ready(ready: &Ready) -> bool {
    match ready {
        Ready::AtOnce | Ready::Line(_) => true,
        Ready::Tcp(host, port) => connect(host, *port).is_some(),
        Ready::Unix(path) => UnixStream::connect(path).is_ok(),
        Ready::File(path) => Path::new(path).exists(),
        Ready::Http(host, port, path) => connect(host, *port).is_some_and(|stream| answers(stream, host, path)),
    }
}

fn connect(host: &str, port: u16) -> Option<TcpStream> {
    let mut addresses = (host, port).to_socket_addrs().ok()?;
    addresses.find_map(|address| TcpStream::connect_timeout(&address, PATIENCE).ok())
}

fn answers(mut stream: TcpStream, host: &str, path: &str) -> bool {
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nUser-Agent: rebeam\r\n\r\n");
    let mut head = [0; 12];
    // `HTTP/1.1 200`
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_exact(&mut head).is_ok()
        && head.starts_with(b"HTTP/1.")
        && matches!(head[9], b'2' | b'3')
}

/// Whether this is a regular expression that lines can be looked through for.
///
/// # Errors
/// It is none, in words.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    regex_lite::Regex::new(pattern).map(drop).map_err(|error| error.to_string())
}
