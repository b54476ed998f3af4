//! A stream of any bytes, cut into frames as the supervisor does: no panic, no allocation before the bound is checked.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rebeam_protocol::frame::{self, PREFIX};
use rebeam_protocol::worker::{ToSupervisor};

const LIMIT: usize = 1 << 16;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok(Some(length)) = frame::length(rest, LIMIT) {
        assert!(length <= LIMIT);
        let Some(body) = rest.get(PREFIX..PREFIX + length) else { return };
        if let Ok((message, offset)) = frame::decode::<ToSupervisor>(body) {
            assert!(offset <= body.len());
            let mut again = Vec::new();
            frame::encode(&message, &body[offset..], usize::MAX, &mut again).expect("no limit");
            let (same, _) = frame::decode::<ToSupervisor>(&again[PREFIX..]).expect("what was encoded");
            assert_eq!(same, message);
        }
        rest = &rest[PREFIX + length..];
    }
});
