//! Any bytes as each of the messages that come from outside the supervisor, and as a plain value.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rebeam_protocol::outside::Asked;
use rebeam_protocol::frame;
use rebeam_protocol::value;
use rebeam_protocol::zygote::FromZygote;

fuzz_target!(|bytes: &[u8]| {
    let _ = frame::decode::<Asked>(bytes);
    let _ = frame::decode::<FromZygote>(bytes);
    if let Ok(decoded) = value::decode(bytes) {
        let again = value::decode(&value::encode(&decoded)).expect("what was encoded");
        assert_eq!(format!("{again:?}"), format!("{decoded:?}"));
    }
});
