//! Readers that are stopped and killed at any moment see no row that was not written, and no moment that never was.
//!
//! Each test starts this program again as a process that writes (and starts the readers), and that one as readers. By
//! default a run takes a few seconds; `REBEAM_TORTURE_S` says how many instead (`make torture-tables`: ten minutes).

#![allow(clippy::unwrap_used, reason = "a test fails by that")]
#![allow(clippy::print_stdout, reason = "so the processes tell each other, and people, how it went")]

use std::io::{BufRead, BufReader, Write as _};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rebeam_store::{Descriptors, Reader, ReaderId, Snapshot, Store};
use rebeam_sys::process::{Group, inherited, spawn};

const MAP: usize = 16 << 30;
const READERS: usize = 6;
/// Whatever is written, these sum up to [`SUM`].
const ACCOUNTS: u64 = 1000;
const SUM: u64 = ACCOUNTS * 1_000_000;
/// Rows whose bytes follow from their first eight.
const ROWS: u64 = 300;
const MOST_BYTES: u64 = 200_000;

/// Which part this process has, and how long, in seconds.
const PART: &str = "REBEAM_TORTURE_PART";
const SECONDS: &str = "REBEAM_TORTURE_S";
/// Readers pin where nobody looks.
const WITHOUT_PINS: &str = "REBEAM_TORTURE_WITHOUT_PINS";

/// A sequence that looks random (Steele and others, "Fast splittable pseudorandom number generators").
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.next() % most
    }
}

fn account(index: u64) -> [u8; 9] {
    key(b'a', index)
}

fn row(index: u64) -> [u8; 9] {
    key(b'r', index)
}

fn key(kind: u8, index: u64) -> [u8; 9] {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

/// The bytes of a row, by its seed: short ones mostly.
fn content(seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let most = [100, 100, 100, 2_000, 2_000, 2_000, 5_000, MOST_BYTES][random.below(8) as usize];
    let length = 16 + random.below(most) as usize;
    let mut bytes = seed.to_le_bytes().to_vec();
    while bytes.len() < length {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?))
}

/// What is wrong with a snapshot, as far as this turn looks.
fn fault(snapshot: &Snapshot, random: &mut Random) -> Option<String> {
    if random.below(20) == 0 {
        let mut rows = snapshot.rows(b"a").unwrap();
        let (mut sum, mut count) = (0u64, 0);
        while let Some((_, value)) = rows.next_row().unwrap() {
            sum = sum.wrapping_add(number(value)?);
            count += 1;
        }
        return ((count, sum) != (ACCOUNTS, SUM)).then(|| format!("{count} accounts with {sum}"));
    }
    let index = random.below(ROWS);
    let Some(value) = snapshot.get(&row(index)).unwrap() else { return Some(format!("row {index} is not there")) };
    let is_whole = number(value).is_some_and(|seed| content(seed) == value);
    (!is_whole).then(|| format!("row {index} is not what was written"))
}

/// Reads until it is killed, or as long as it is told; says how often, and the first thing that was wrong.
#[test]
#[ignore = "a part of the others, which start it"]
fn the_part_of_a_reader() {
    if std::env::var(PART).as_deref() != Ok("reader") {
        return;
    }
    // It goes with the process that started it.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
    // SAFETY: this process was started with them.
    let fds = [3, 4, 5, 6].map(|fd| unsafe { inherited(fd) }.unwrap());
    let reader = Reader::open(Descriptors::from_array(fds), MAP).unwrap();
    let mut random = Random(u64::from(std::process::id()));
    loop {
        for _ in 0..100 {
            let snapshot = reader.snapshot().unwrap();
            if random.below(50) == 0 {
                // As one that walks over much, while it is written to.
                std::thread::sleep(Duration::from_millis(20));
            }
            if let Some(fault) = fault(&snapshot, &mut random) {
                panic!("BAD {fault}");
            }
        }
    }
}

/// The process that writes. It keeps so many readers, and stops and kills them.
struct Writer {
    store: Store,
    random: Random,
    readers: Vec<(ReaderId, i32)>,
    stopped: Vec<(i32, Instant)>,
    /// When the next one is stopped or killed.
    next: Instant,
    faults: u32,
    kills: u32,
    stops: u32,
}

impl Writer {
    fn new(store: Store) -> Self {
        let random = Random(u64::from(std::process::id()));
        Writer {
            store,
            random,
            readers: Vec::new(),
            stopped: Vec::new(),
            next: Instant::now(),
            faults: 0,
            kills: 0,
            stops: 0,
        }
    }

    fn fill(&mut self) {
        self.store
            .write(|write| {
                (0..ACCOUNTS).try_for_each(|index| write.put(&account(index), &1_000_000u64.to_le_bytes()))?;
                (0..ROWS).try_for_each(|index| write.put(&row(index), &content(index)))
            })
            .unwrap();
    }

    fn start_reader(&mut self) {
        let (id, Descriptors { data, arrays, page, pins }) = self.store.attach().unwrap();
        let is_blind = std::env::var_os(WITHOUT_PINS).is_some();
        let pins =
            if is_blind { rebeam_sys::memory::create(c"blind", rebeam_store::pins::READER).unwrap() } else { pins };
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["the_part_of_a_reader", "--exact", "--ignored", "--nocapture"]).env(PART, "reader");
        command.stdout(Stdio::null()).stderr(Stdio::inherit());
        let os_pid = spawn(command, &[data.as_fd(), arrays.as_fd(), page.as_fd(), pins.as_fd()], Group::Group).unwrap();
        self.readers.push((id, os_pid));
    }

    fn change(&mut self) {
        let random = &mut self.random;
        self.store
            .write(|write| {
                let [from, to] = [random.below(ACCOUNTS), random.below(ACCOUNTS)].map(account);
                let has = number(write.get(&from)?.unwrap_or_default()).unwrap();
                let amount = random.below(has.max(1));
                write.put(&from, &(has - amount).to_le_bytes())?;
                let has = number(write.get(&to)?.unwrap_or_default()).unwrap();
                write.put(&to, &(has + amount).to_le_bytes())?;
                write.put(&row(random.below(ROWS)), &content(random.next()))
            })
            .unwrap();
    }

    /// Looks after the readers: starts, stops, kills them.
    fn attend(&mut self) {
        use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
        while self.readers.len() < READERS {
            self.start_reader();
        }
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let Some(os_pid) = status.pid() else { break };
            // Not by our hand: it has seen what was never written, or fell over it.
            self.faults += u32::from(!matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)));
            self.stopped.retain(|(stopped, _)| *stopped != os_pid.as_raw());
            if let Some(index) = self.readers.iter().position(|(_, reader)| *reader == os_pid.as_raw()) {
                let (id, _) = self.readers.swap_remove(index);
                self.store.detach(id);
            }
        }
        self.stopped.retain(|(os_pid, until)| {
            let is_over = *until <= Instant::now();
            if is_over {
                let _ = kill(Pid::from_raw(*os_pid), Signal::SIGCONT);
            }
            !is_over
        });
        if self.next > Instant::now() {
            return;
        }
        self.next = Instant::now() + Duration::from_millis(self.random.below(60));
        let Some((_, victim)) = self.readers.get(self.random.below(READERS as u64) as usize).copied() else {
            return;
        };
        if self.random.below(4) > 0 {
            self.kills += 1;
            let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
        } else if !self.stopped.iter().any(|(stopped, _)| *stopped == victim) {
            self.stops += 1;
            let _ = kill(Pid::from_raw(victim), Signal::SIGSTOP);
            self.stopped.push((victim, Instant::now() + Duration::from_millis(1000 + self.random.below(2000))));
        }
    }
}

#[test]
#[ignore = "a part of the others, which start it"]
fn the_part_of_the_writer() {
    if std::env::var(PART).as_deref() != Ok("writer") {
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(Store::create(files.path(), MAP).unwrap());
    writer.fill();
    let seconds: u64 = std::env::var(SECONDS).unwrap().parse().unwrap();
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut changes = 0u64;
    while Instant::now() < end && writer.faults == 0 {
        writer.attend();
        for _ in 0..50 {
            writer.change();
        }
        changes += 50;
    }
    for (_, os_pid) in &writer.readers {
        let _ = kill(Pid::from_raw(*os_pid), Signal::SIGKILL);
    }
    let (used, kept) = (writer.store.used() >> 20, writer.store.kept());
    let Writer { faults, kills, stops, .. } = writer;
    println!("RESULT {faults} {changes} {kills} {stops} {used} {kept}");
    std::io::stdout().flush().unwrap();
}

/// Runs it all; the numbers of its result.
fn run(seconds: u64, with_pins: bool) -> [u64; 6] {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["the_part_of_the_writer", "--exact", "--ignored", "--nocapture"]);
    command.env(PART, "writer").env(SECONDS, seconds.to_string()).stdout(Stdio::piped());
    if !with_pins {
        // What the readers fall over is expected.
        command.env(WITHOUT_PINS, "1").stderr(Stdio::null());
    }
    let mut writer = command.spawn().unwrap();
    let os_pid = Pid::from_raw(writer.id() as i32);
    // The writer is stopped, too, as the system may do with any process.
    let (stop, is_over) = std::sync::mpsc::channel::<()>();
    let stopper = std::thread::spawn(move || {
        let mut random = Random(1);
        while is_over.recv_timeout(Duration::from_millis(100 + random.below(400))).is_err() {
            let _ = kill(os_pid, Signal::SIGSTOP);
            std::thread::sleep(Duration::from_millis(random.below(30)));
            let _ = kill(os_pid, Signal::SIGCONT);
        }
    });
    let lines = BufReader::new(writer.stdout.take().unwrap()).lines().map(Result::unwrap);
    let result = lines.filter_map(|line| line.split_once("RESULT ").map(|(_, rest)| rest.to_owned())).last();
    stop.send(()).unwrap();
    stopper.join().unwrap();
    assert!(writer.wait().unwrap().success());
    let numbers: Vec<u64> = result.unwrap().split(' ').map(|number| number.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

#[test]
fn readers_that_are_stopped_and_killed_see_nothing_that_was_not_written() {
    let seconds = std::env::var(SECONDS).map_or(10, |seconds| seconds.parse().unwrap());
    let [faults, changes, kills, stops, used, kept] = run(seconds, true);
    println!("{changes} changes, {kills} readers killed, {stops} stopped; the file has {used} MiB, {kept} kept");
    assert_eq!(faults, 0);
    assert!(changes > 1000 && kills > 0, "{changes} changes, {kills} kills");
    assert!(kept <= READERS as u64 + 1, "{kept} transactions are kept");
}

/// The test above can fail.
#[test]
fn without_pins_they_do() {
    let [faults, ..] = run(30, false);
    assert!(faults > 0);
}
