//! Pickles of calls, written by hand: how an actor gets a message of a class of its own from a process without Python.
//!
//! The opcodes are those of `pickletools` in CPython's library, of protocol 4 at most.

use rebeam_protocol::value::Value;

/// The pickle of what a function of a module gives for these arguments. (What has a text of its own comes as that text.)
pub fn call(module: &str, function: &str, arguments: &[Value]) -> Vec<u8> {
    let mut bytes = vec![0x80, 4, b'c'];
    bytes.extend_from_slice(format!("{module}\n{function}\n").as_bytes());
    bytes.push(b'(');
    arguments.iter().for_each(|value| put(&mut bytes, value));
    bytes.extend_from_slice(b"tR.");
    bytes
}

/// The pickle of a value.
pub fn of(value: &Value) -> Vec<u8> {
    let mut bytes = vec![0x80, 4];
    put(&mut bytes, value);
    bytes.push(b'.');
    bytes
}

fn put(bytes: &mut Vec<u8>, value: &Value) {
    let sized = |bytes: &mut Vec<u8>, code: u8, content: &[u8]| {
        bytes.push(code);
        bytes.extend((content.len() as u64).to_le_bytes());
        bytes.extend_from_slice(content);
    };
    let all = |bytes: &mut Vec<u8>, items: &[Value]| items.iter().for_each(|item| put(bytes, item));
    match value {
        Value::None => bytes.push(b'N'),
        Value::Bool(value) => bytes.push(if *value { 0x88 } else { 0x89 }),
        Value::Int(value) => {
            bytes.extend([0x8a, 16]);
            bytes.extend(value.to_le_bytes());
        }
        Value::Float(value) => {
            bytes.push(b'G');
            bytes.extend(value.to_be_bytes());
        }
        Value::Str(text) | Value::Text { text, .. } => sized(bytes, 0x8d, text.as_bytes()),
        Value::Bytes(content) => sized(bytes, 0x8e, content),
        Value::Tuple(items) => {
            bytes.push(b'(');
            all(bytes, items);
            bytes.push(b't');
        }
        Value::List(items) => {
            bytes.extend(b"](");
            all(bytes, items);
            bytes.push(b'e');
        }
        Value::Set(items) => {
            bytes.extend([0x8f, b'(']);
            all(bytes, items);
            bytes.push(0x90);
        }
        Value::Dict(items) => {
            bytes.extend(b"}(");
            for (key, value) in items {
                put(bytes, key);
                put(bytes, value);
            }
            bytes.push(b'u');
        }
    }
}
