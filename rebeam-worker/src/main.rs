//! `rebeam-worker`: becomes the user's own Python, as `rebeam._boot` then goes on.
//!
//! The launcher opens the libpython of the user's interpreter at run time and runs it with the path of the user's
//! `python` as its name, so that `sys.executable`, the virtual environment, `subprocess` and `multiprocessing` are what
//! they would be without Re:BEAM. An interpreter that is not linked against a shared libpython is executed instead:
//! from `rebeam._boot` on the path is the same. It must not know the protocol, nor anything else of Python's.
//!
//! Started by the supervisor only, its descriptors in place: `rebeam-worker zygote|worker PYTHON LIBPYTHON|-`, or
//! `rebeam-worker keeper MARK` (see [`keeper`]) or `rebeam-worker store new|restored DIRECTORY BYTES BYTES` (see [`store`]), which
//! are no Python at all; nor is `rebeam-worker port`, which stands before a foreign program (see `rebeam-port`).

mod keeper;
mod store;

use std::ffi::{CString, OsString, c_char, c_int};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

/// What runs in the interpreter. The role is its first argument.
const BOOT: &str = "from rebeam._boot import main; main()";

/// The exit code for an interpreter that cannot be started.
const CANNOT_START: u8 = 3;

type PyBytesMain = unsafe extern "C" fn(c_int, *mut *mut c_char) -> c_int;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).peekable();
    if args.next_if(|role| role == "keeper").is_some() {
        keeper::keep(&args.next().unwrap_or_default());
        return ExitCode::SUCCESS;
    }
    if args.next_if(|role| role == "store").is_some() {
        return match store::serve(args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        };
    }
    if args.next_if(|role| role == "port").is_some() {
        return match rebeam_port::serve() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        };
    }
    let (Some(role), Some(python), Some(libpython)) = (args.next(), args.next(), args.next()) else {
        return fail("this program is started by `rebeam`; run `rebeam --help`");
    };
    let words = [python.clone(), "-P".into(), "-c".into(), BOOT.into(), role];
    let Ok(words) = words.into_iter().map(c_string).collect::<Result<Vec<_>, _>>() else {
        return fail("the path of the interpreter holds a NUL byte");
    };
    reset_signals();
    // Should memory run out, the kernel is to take an actor rather than the supervisor.
    let _ = std::fs::write("/proc/self/oom_score_adj", "300");
    if libpython == "-" {
        let Err(error) = nix::unistd::execv(&words[0], &words);
        return fail(&format!("failed to execute `{}`: {error}", python.display()));
    }
    match embed(libpython, &words) {
        Ok(code) => ExitCode::from(code as u8),
        Err(error) => fail(&error),
    }
}

/// Takes back what Rust's runtime did to signals before `main`: an interpreter that finds its handler for SIGSEGV, or
/// SIGPIPE ignored, would not behave as it does without us.
fn reset_signals() {
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGPIPE] {
        // SAFETY: the default action needs no handler, and there is no other thread.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Loads libpython into this process and runs it like its own `main`.
fn embed(libpython: OsString, words: &[CString]) -> Result<c_int, String> {
    let name = libpython.display().to_string();
    let path = c_string(libpython).map_err(|error| error.to_string())?;
    // SAFETY: `path` is a C string; initialisers of libpython have no demands on the process.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if library.is_null() {
        return Err(format!("failed to load `{name}`: {}", dl_error()));
    }
    // SAFETY: `library` is a handle that dlopen gave, the symbol's name a C string.
    let symbol = unsafe { libc::dlsym(library, c"Py_BytesMain".as_ptr()) };
    if symbol.is_null() {
        return Err(format!("`{name}` is not a Python library: {}", dl_error()));
    }
    let mut argv: Vec<*mut c_char> = words.iter().map(|word| word.as_ptr().cast_mut()).collect();
    argv.push(std::ptr::null_mut());
    // SAFETY: since Python 3.8 `Py_BytesMain` has this signature; it reads `argc` strings of `argv`, which live on.
    let code = unsafe {
        let py_bytes_main = std::mem::transmute::<*mut libc::c_void, PyBytesMain>(symbol);
        py_bytes_main(words.len() as c_int, argv.as_mut_ptr())
    };
    Ok(code)
}

fn dl_error() -> String {
    // SAFETY: dlerror gives null or a C string that stays until the next call of the dl functions in this thread.
    unsafe {
        let text = libc::dlerror();
        if text.is_null() { "no reason given".into() } else { std::ffi::CStr::from_ptr(text).to_string_lossy().into() }
    }
}

fn c_string(text: OsString) -> Result<CString, std::ffi::NulError> {
    CString::new(text.into_vec())
}

#[expect(clippy::print_stderr, reason = "there is no channel yet, and the supervisor reads this")]
fn fail(message: &str) -> ExitCode {
    eprintln!("rebeam-worker: {message}");
    ExitCode::from(CANNOT_START)
}
