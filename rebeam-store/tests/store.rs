//! What a store and its readers do in one process.

#![allow(clippy::unwrap_used, reason = "a test fails by that")]

use rebeam_store::{Error, Reader, ReaderId, Snapshot, Store};

const MAP: usize = 1 << 30;

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Files(tempfile::tempdir().unwrap())
    }

    fn store(&self, map_size: usize) -> Store {
        Store::create(self.0.path(), map_size).unwrap()
    }
}

fn reader(store: &mut Store) -> (ReaderId, Reader) {
    let (id, fds) = store.attach().unwrap();
    let reader = Reader::open(fds, store.map_size()).unwrap();
    (id, reader)
}

fn put(store: &mut Store, rows: &[(&str, &str)]) {
    store.write(|write| rows.iter().try_for_each(|(key, value)| write.put(key.as_bytes(), value.as_bytes()))).unwrap();
}

fn get(snapshot: &Snapshot, key: &str) -> Option<String> {
    let value = snapshot.get(key.as_bytes()).unwrap();
    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

fn forwards(snapshot: &Snapshot, prefix: &str) -> Vec<String> {
    let mut rows = snapshot.rows(prefix.as_bytes()).unwrap();
    let key = |(key, _): (&[u8], &[u8])| String::from_utf8(key.to_vec()).unwrap();
    std::iter::from_fn(|| rows.next_row().unwrap().map(key)).collect()
}

fn backwards(snapshot: &Snapshot, prefix: &str) -> Vec<String> {
    let mut rows = snapshot.rows(prefix.as_bytes()).unwrap();
    let key = |(key, _): (&[u8], &[u8])| String::from_utf8(key.to_vec()).unwrap();
    std::iter::from_fn(|| rows.previous_row().unwrap().map(key)).collect()
}

/// ETS-005, ETS-007.
#[test]
fn a_snapshot_is_of_one_moment_and_the_next_has_what_was_written() {
    let files = Files::new();
    let mut store = files.store(MAP);
    let (_, reader) = reader(&mut store);
    let empty = reader.snapshot().unwrap();
    put(&mut store, &[("a", "1"), ("b", "2")]);
    let first = reader.snapshot().unwrap();
    for turn in 0..1000 {
        put(&mut store, &[("a", &turn.to_string())]);
    }
    assert_eq!(get(&empty, "a"), None);
    assert_eq!((get(&first, "a").as_deref(), get(&first, "b").as_deref()), (Some("1"), Some("2")));
    assert_eq!(get(&reader.snapshot().unwrap(), "a").as_deref(), Some("999"));
    assert!(empty.version() < first.version());
    assert_eq!(store.kept(), 3, "two snapshots, and the newest transaction");
    drop((empty, first));
    assert_eq!(store.kept(), 1);
}

#[test]
fn rows_are_walked_from_either_end() {
    let files = Files::new();
    let mut store = files.store(MAP);
    let (_, reader) = reader(&mut store);
    put(&mut store, &["a", "b", "ba", "bb", "c", "\u{10FFFF}"].map(|key| (key, "")));
    let snapshot = reader.snapshot().unwrap();
    assert_eq!(forwards(&snapshot, "b"), ["b", "ba", "bb"]);
    assert_eq!(backwards(&snapshot, "b"), ["bb", "ba", "b"]);
    assert_eq!(backwards(&snapshot, "\u{10FFFF}"), ["\u{10FFFF}"]);
    assert_eq!(forwards(&snapshot, "").len(), 6);
    assert_eq!(backwards(&snapshot, "").len(), 6);
    assert!(forwards(&snapshot, "d").is_empty() && backwards(&snapshot, "d").is_empty());
    let mut rows = snapshot.rows(b"b").unwrap();
    rows.seek(b"bab");
    assert_eq!(rows.next_row().unwrap().unwrap().0, b"bb");
}

/// ETS-005.
#[test]
fn what_fails_halfway_has_changed_nothing() {
    let files = Files::new();
    let mut store = files.store(MAP);
    let (_, reader) = reader(&mut store);
    put(&mut store, &[("a", "1")]);
    let failed = store.write(|write| {
        write.put(b"a", b"2")?;
        Err::<(), _>(Error::Full)
    });
    assert!(matches!(failed, Err(Error::Full)));
    store
        .write(|write| {
            write.put(b"b", b"1")?;
            write.put(b"c", b"1")?;
            assert_eq!(write.get(b"b")?, Some(&b"1"[..]));
            Ok(())
        })
        .unwrap();
    let snapshot = reader.snapshot().unwrap();
    assert_eq!(["a", "b", "c"].map(|key| get(&snapshot, key).unwrap()), ["1", "1", "1"]);
}

#[test]
fn a_full_map_is_an_error_and_the_rows_stay() {
    let files = Files::new();
    let mut store = files.store(1 << 20);
    let (_, reader) = reader(&mut store);
    put(&mut store, &[("a", "1")]);
    let big = vec![7; 2 << 20];
    assert!(matches!(store.write(|write| write.put(b"big", &big)), Err(Error::Full)));
    put(&mut store, &[("b", "2")]);
    let snapshot = reader.snapshot().unwrap();
    assert_eq!(forwards(&snapshot, ""), ["a", "b"]);
}

#[test]
fn pins_that_are_wrong_harm_nobody_but_their_reader() {
    let files = Files::new();
    let mut store = files.store(MAP);
    let (_, reader) = reader(&mut store);
    let (liar, fds) = store.attach().unwrap();
    let words = rebeam_sys::memory::SharedWords::new(&fds.pins, rebeam_store::pins::PAGE).unwrap();
    for index in 0..rebeam_store::pins::PAGE / 8 {
        words.word(8 * index).store(u64::MAX, std::sync::atomic::Ordering::SeqCst);
    }
    let snapshot = reader.snapshot().unwrap();
    for turn in 0..100 {
        put(&mut store, &[("a", &turn.to_string())]);
    }
    assert_eq!(store.kept(), 2);
    words.word(8).store(1, std::sync::atomic::Ordering::SeqCst);
    drop(snapshot);
    assert!(store.kept() <= 2);
    store.detach(liar);
    assert_eq!(store.kept(), 1);
}

#[test]
fn many_snapshots_of_one_process_are_refused_at_some_point_and_are_there_again() {
    let files = Files::new();
    let mut store = files.store(MAP);
    let (_, reader) = reader(&mut store);
    put(&mut store, &[("a", "1")]);
    let many: Vec<Snapshot> = (0..rebeam_store::pins::PLACES).map(|_| reader.snapshot().unwrap()).collect();
    assert!(reader.snapshot().unwrap_err().to_string().contains("snapshots open already"));
    drop(many);
    assert_eq!(get(&reader.snapshot().unwrap(), "a").as_deref(), Some("1"));
    assert_eq!(store.kept(), 1);
}

#[test]
fn the_next_store_goes_on_and_old_snapshots_stay_as_they_were() {
    let files = Files::new();
    let mut store = files.store(MAP);
    let (_, reader_of_one) = reader(&mut store);
    put(&mut store, &[("a", "1")]);
    let old = reader_of_one.snapshot().unwrap();
    let [data, arrays] = store.files().unwrap();
    drop(store);
    let mut store = Store::restore(&data, arrays, files.0.path(), MAP).unwrap();
    assert_eq!(std::fs::read_dir(files.0.path()).unwrap().count(), 0, "nothing is left to be cleared up");
    let (_, reader_of_two) = reader(&mut store);
    put(&mut store, &[("a", "2"), ("b", "1")]);
    assert_eq!(forwards(&old, ""), ["a"]);
    assert_eq!(get(&old, "a").as_deref(), Some("1"));
    assert_eq!(get(&reader_of_two.snapshot().unwrap(), "a").as_deref(), Some("2"));
}

#[test]
fn nobody_maps_the_rows_or_the_store_s_page_to_write_to_them() {
    let files = Files::new();
    let mut store = files.store(MAP);
    let (_, fds) = store.attach().unwrap();
    assert!(rebeam_sys::memory::SharedWords::new(&fds.page, rebeam_store::pins::PAGE).is_err());
    let data = std::fs::File::from(fds.data);
    assert!(std::io::Write::write(&mut &data, b"x").is_err());
    assert!(data.set_len(0).is_err());
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(data.metadata().unwrap().permissions().mode() & 0o777, 0o444);
}

/// Of all pages that a reader has looked at, none is its own.
#[test]
fn the_store_keeps_what_it_has_written_mapped() {
    let files = Files::new();
    let mut store = files.store(MAP);
    let (_, reader) = reader(&mut store);
    let rows: Vec<String> = (0..100_000).map(|index| format!("{index:06}")).collect();
    store.write(|write| rows.iter().try_for_each(|row| write.put(row.as_bytes(), &[7; 200]))).unwrap();
    assert!(store.used() > 20 << 20);
    let snapshot = reader.snapshot().unwrap();
    assert_eq!(forwards(&snapshot, "").len(), rows.len());
    // The page is mapped by the reader's part of this process and by the store's, and so by more than one mapping.
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mapped = |line: &str| line.strip_prefix("Rss:").and_then(|rest| rest.trim().split(' ').next()?.parse().ok());
    let of_rows = smaps.split("memfd:rebeam-rows").skip(1);
    let sizes: Vec<u64> = of_rows.filter_map(|mapping| mapping.lines().find_map(mapped)).collect();
    let used_kib = (store.used() >> 10) as u64;
    assert!(sizes.iter().filter(|size| **size > used_kib * 8 / 10).count() >= 2, "{sizes:?} of {used_kib}");
}
