//! Makes [`VERSION`](src/handshake.rs) of the sources, so that nobody has to remember to raise it.

use std::hash::Hasher;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// FNV-1a, which is the same on every machine.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

fn main() {
    let sources = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("src");
    println!("cargo::rerun-if-changed={}", sources.display());
    let entries = fs::read_dir(&sources).expect("the sources");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    for file in files {
        hash.write(file.file_name().unwrap_or_default().as_encoded_bytes());
        hash.write(&fs::read(&file).expect("a source"));
    }
    let version = (hash.finish() ^ (hash.finish() >> 32)) as u32;
    let target = Path::new(&env::var("OUT_DIR").expect("set by cargo")).join("version.rs");
    fs::write(target, format!("{version:#010x}")).expect("the output directory can be written to");
}
