//! Plain values: the only content that may come from outside a tree.
//!
//! Nothing that comes from outside is ever unpickled. A value is what JSON has, and what Python has beside it that is
//! still data: bytes, tuples, sets, keys of any hashable sort.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A plain value. Integers beyond 128 bits are `Text`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// `None`, JSON's `null`.
    None,
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i128),
    /// A floating-point number.
    Float(f64),
    /// Text.
    Str(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A list, or a JSON array.
    List(Vec<Value>),
    /// A tuple.
    Tuple(Vec<Value>),
    /// A dictionary in its order, or a JSON object.
    Dict(Vec<(Value, Value)>),
    /// A set, in no order.
    Set(Vec<Value>),
    /// What has a text by which it is made again: a date, a decimal number.
    Text {
        /// What it is, a word of `rebeam._plain`.
        kind: String,
        /// Its text.
        text: String,
    },
}

/// As Python would write it, text in quotes.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, open: &str, items: &[Value], close: &str| {
            f.write_str(open)?;
            for (index, item) in items.iter().enumerate() {
                write!(f, "{}{item}", if index > 0 { ", " } else { "" })?;
            }
            f.write_str(close)
        };
        match self {
            Value::None => f.write_str("None"),
            Value::Bool(value) => f.write_str(if *value { "True" } else { "False" }),
            Value::Int(value) => write!(f, "{value}"),
            Value::Float(value) => write!(f, "{value:?}"),
            Value::Str(text) => write!(f, "{text:?}"),
            Value::Bytes(bytes) => write!(f, "b\"{}\"", bytes.escape_ascii()),
            Value::Text { text, .. } => write!(f, "{text:?}"),
            Value::List(items) => list(f, "[", items, "]"),
            Value::Tuple(items) if items.len() == 1 => list(f, "(", items, ",)"),
            Value::Tuple(items) => list(f, "(", items, ")"),
            Value::Set(items) => list(f, "{", items, "}"),
            Value::Dict(items) => {
                f.write_str("{")?;
                for (index, (key, value)) in items.iter().enumerate() {
                    write!(f, "{}{key}: {value}", if index > 0 { ", " } else { "" })?;
                }
                f.write_str("}")
            }
        }
    }
}

/// How deep a value may nest, so that no decoder's stack can be run over.
pub const MAX_DEPTH: usize = 64;

/// Decodes a value, and refuses nesting beyond [`MAX_DEPTH`] before it recurses.
///
/// # Errors
/// A text that says what is wrong with the bytes.
pub fn decode(bytes: &[u8]) -> Result<Value, String> {
    check_depth(bytes)?;
    postcard::from_bytes(bytes).map_err(|error| format!("the bytes of a plain value do not decode: {error}"))
}

/// Encodes a value.
pub fn encode(value: &Value) -> Vec<u8> {
    postcard::to_stdvec(value).unwrap_or_default()
}

/// Walks the encoding without recursion: a stack of how many values each open container still expects.
fn check_depth(bytes: &[u8]) -> Result<(), String> {
    let broken = || "the bytes of a plain value break off".to_string();
    let mut rest = bytes;
    let mut open: Vec<u128> = vec![1];
    while let Some(expected) = open.last_mut() {
        if *expected == 0 {
            open.pop();
            continue;
        }
        *expected -= 1;
        let tag = varint(&mut rest).ok_or_else(broken)?;
        let skipped = match tag {
            0 => 0,
            1 => 1,
            2 => {
                varint(&mut rest).ok_or_else(broken)?;
                0
            }
            3 => 8,
            4 | 5 => varint(&mut rest).ok_or_else(broken)?,
            6..=9 => {
                let length = varint(&mut rest).ok_or_else(broken)?;
                open.push(if tag == 8 { length.saturating_mul(2) } else { length });
                if open.len() > MAX_DEPTH {
                    return Err(format!("a plain value may nest {MAX_DEPTH} levels deep, not more"));
                }
                0
            }
            10 => {
                let kind = varint(&mut rest).and_then(|length| usize::try_from(length).ok()).ok_or_else(broken)?;
                rest = rest.get(kind..).ok_or_else(broken)?;
                varint(&mut rest).ok_or_else(broken)?
            }
            _ => return Err(format!("a plain value of the unknown kind {tag}")),
        };
        let skipped = usize::try_from(skipped).map_err(|_| broken())?;
        rest = rest.get(skipped..).ok_or_else(broken)?;
    }
    Ok(())
}

fn varint(rest: &mut &[u8]) -> Option<u128> {
    let mut value = 0u128;
    for shift in (0..=126).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u128::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::None),
            any::<bool>().prop_map(Value::Bool),
            any::<i128>().prop_map(Value::Int),
            (-1e300..1e300f64).prop_map(Value::Float),
            ".*".prop_map(Value::Str),
            proptest::collection::vec(any::<u8>(), 0..20).prop_map(Value::Bytes),
            (".*", ".*").prop_map(|(kind, text)| Value::Text { kind, text }),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::List),
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::Tuple),
                proptest::collection::vec((inner.clone(), inner.clone()), 0..5).prop_map(Value::Dict),
                proptest::collection::vec(inner, 0..5).prop_map(Value::Set),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_value_survives_the_round_trip(value in values()) {
            prop_assert_eq!(decode(&encode(&value)), Ok(value));
        }

        #[test]
        fn rubbish_is_an_error_and_not_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn a_bomb_of_lists_is_refused() {
        let bomb = [6u8, 1].repeat(100_000);
        assert!(decode(&bomb).is_err_and(|error| error.contains("64 levels")));
    }
}
