//! Keys as bytes whose order is the order of what they stand for.
//!
//! Any two keys have an order, over types too: `None`, numbers, text, bytes, what has a text of its own (dates and the
//! like), tuples. Numbers are ordered by value, so `1`, `1.0` and `True` have the same bytes, unless the type of numbers
//! is asked for ([`Numbers::ByType`]): then it follows the value, and the three are neighbours (MAP-15).
//!
//! ```text
//! None     02
//! number   03 class [exponent fraction] [type]     class: 0 -inf, 1 negative, 2 zero, 3 positive, 4 inf
//! text     04 UTF-8, each 00 as 00 FF, then 00 01
//! bytes    05 likewise
//! of text  06 kind as text is, [what orders it, as bytes are], text as text is
//! tuple    07 its items, then 00
//! ```
//!
//! No key is the beginning of another one, so the rows of one key, or of tuples that begin alike, are those whose keys begin so.
//!
//! A finite number is `1.fraction` times two to the exponent: two bytes, then seven bits of the fraction in each byte, whose
//! lowest bit says whether more follow. Of a negative one all these bits are turned over.

use rebeam_protocol::value::{MAX_DEPTH, Value};

use crate::order;

/// Whether numbers of the same value are the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// `1`, `1.0` and `True` are one key.
    ByValue,
    /// They are three, next to each other.
    ByType,
}

/// Why a value is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoKey {
    /// It can be changed, or holds what can.
    #[error("a key is text, a number, bytes, None, a date or the like, or a tuple of those: no {0}")]
    Kind(&'static str),
    /// It is not even equal to itself.
    #[error("not-a-number is no key: it is not equal to itself")]
    NotANumber,
    /// Tuples within tuples, and so on.
    #[error("a key may nest {MAX_DEPTH} tuples")]
    TooDeep,
}

const NONE: u8 = 2;
const NUMBER: u8 = 3;
const TEXT: u8 = 4;
const BYTES: u8 = 5;
const OF_TEXT: u8 = 6;
const TUPLE: u8 = 7;

const END: u8 = 0;
const ESCAPED: u8 = 0xFF;
/// Follows [`END`] where text ends: without it text would be the beginning of any that goes on with a zero.
const ENDED: u8 = 1;

const MINUS_INFINITE: u8 = 0;
const NEGATIVE: u8 = 1;
const ZERO: u8 = 2;
const POSITIVE: u8 = 3;
const INFINITE: u8 = 4;

const INT: u8 = 0;
const FLOAT: u8 = 1;
const BOOL: u8 = 2;

/// Added to exponents: those of floats go from -1074 to 1023, those of integers to 127.
const BIAS: i32 = 2048;

/// The bytes of a key.
///
/// # Errors
/// Why it is none.
pub fn encode(value: &Value, numbers: Numbers) -> Result<Vec<u8>, NoKey> {
    let mut bytes = Vec::new();
    put(&mut bytes, value, numbers, 0)?;
    Ok(bytes)
}

/// The bytes that the keys of all tuples begin with that begin with these items.
///
/// # Errors
/// As [`encode`].
pub fn encode_prefix(items: &[Value], numbers: Numbers) -> Result<Vec<u8>, NoKey> {
    let mut bytes = vec![TUPLE];
    items.iter().try_for_each(|item| put(&mut bytes, item, numbers, 1))?;
    Ok(bytes)
}

fn put(bytes: &mut Vec<u8>, value: &Value, numbers: Numbers, depth: usize) -> Result<(), NoKey> {
    if depth > MAX_DEPTH {
        return Err(NoKey::TooDeep);
    }
    match value {
        Value::None => bytes.push(NONE),
        Value::Bool(value) => number(bytes, Number::of_int((*value).into()), numbers, BOOL),
        Value::Int(value) => number(bytes, Number::of_int(*value), numbers, INT),
        Value::Float(value) => number(bytes, Number::of_float(*value)?, numbers, FLOAT),
        Value::Str(text) => escaped(bytes, TEXT, text.as_bytes()),
        Value::Bytes(value) => escaped(bytes, BYTES, value),
        Value::Text { kind, text } => {
            escaped(bytes, OF_TEXT, kind.as_bytes());
            match order::of(kind, text).map_err(|order::NotANumber| NoKey::NotANumber)? {
                None => escaped(bytes, TEXT, text.as_bytes()),
                Some((order, text)) => {
                    escaped(bytes, BYTES, &order);
                    escaped(bytes, TEXT, text.as_bytes());
                }
            }
        }
        Value::Tuple(items) => {
            bytes.push(TUPLE);
            items.iter().try_for_each(|item| put(bytes, item, numbers, depth + 1))?;
            bytes.push(END);
        }
        Value::List(_) => return Err(NoKey::Kind("list")),
        Value::Dict(_) => return Err(NoKey::Kind("dict")),
        Value::Set(_) => return Err(NoKey::Kind("set")),
    }
    Ok(())
}

fn escaped(bytes: &mut Vec<u8>, tag: u8, content: &[u8]) {
    bytes.push(tag);
    for byte in content {
        bytes.push(*byte);
        if *byte == END {
            bytes.push(ESCAPED);
        }
    }
    bytes.extend([END, ENDED]);
}

/// A number, whatever its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Zero,
    Infinite {
        is_negative: bool,
    },
    Finite {
        is_negative: bool,
        exponent: i32,
        /// What follows the leading one, from the highest bit.
        fraction: u128,
    },
}

impl Number {
    fn of_int(value: i128) -> Self {
        let size = value.unsigned_abs();
        if size == 0 {
            return Number::Zero;
        }
        let zeros = size.leading_zeros();
        // Shifted in two steps: the leading one itself falls out.
        let fraction = (size << zeros) << 1;
        Number::Finite { is_negative: value < 0, exponent: 127 - zeros as i32, fraction }
    }

    fn of_float(value: f64) -> Result<Self, NoKey> {
        let is_negative = value.is_sign_negative();
        if value.is_nan() {
            return Err(NoKey::NotANumber);
        }
        if value.is_infinite() {
            return Ok(Number::Infinite { is_negative });
        }
        let bits = value.to_bits();
        let (exponent, mantissa) = ((bits >> 52 & 0x7FF) as i32, u128::from(bits & ((1 << 52) - 1)));
        Ok(match (exponent, mantissa) {
            (0, 0) => Number::Zero,
            (0, mantissa) => {
                let zeros = mantissa.leading_zeros();
                let fraction = (mantissa << zeros) << 1;
                Number::Finite { is_negative, exponent: 127 - zeros as i32 - 1074, fraction }
            }
            (exponent, mantissa) => Number::Finite { is_negative, exponent: exponent - 1023, fraction: mantissa << 76 },
        })
    }

    /// As an integer, if it is one of 128 bits.
    fn to_int(self) -> Option<i128> {
        let (is_negative, exponent, fraction) = match self {
            Number::Zero => return Some(0),
            Number::Infinite { .. } => return None,
            Number::Finite { is_negative, exponent, fraction } => (is_negative, exponent, fraction),
        };
        let bits = 128 - fraction.trailing_zeros().min(128) as i32;
        if !(0..=127).contains(&exponent) || bits > exponent {
            return None;
        }
        let size = 1u128 << exponent | fraction.checked_shr(128 - exponent as u32).unwrap_or(0);
        if is_negative { 0i128.checked_sub_unsigned(size) } else { i128::try_from(size).ok() }
    }

    fn to_float(self) -> f64 {
        let (is_negative, size) = match self {
            Number::Zero => return 0.0,
            Number::Infinite { is_negative } => (is_negative, f64::INFINITY),
            Number::Finite { is_negative, exponent, fraction } => {
                let mantissa = (fraction >> 76) as u64;
                let bits = if exponent >= -1022 {
                    ((exponent + 1023) as u64) << 52 | mantissa
                } else {
                    (1 << 52 | mantissa) >> (-1022 - exponent)
                };
                (is_negative, f64::from_bits(bits))
            }
        };
        if is_negative { -size } else { size }
    }
}

fn number(bytes: &mut Vec<u8>, number: Number, numbers: Numbers, of_type: u8) {
    bytes.push(NUMBER);
    match number {
        Number::Zero => bytes.push(ZERO),
        Number::Infinite { is_negative } => bytes.push(if is_negative { MINUS_INFINITE } else { INFINITE }),
        Number::Finite { is_negative, exponent, mut fraction } => {
            let (class, turned) = if is_negative { (NEGATIVE, u8::MAX) } else { (POSITIVE, 0) };
            bytes.push(class);
            let exponent = ((exponent + BIAS) as u16).to_be_bytes();
            bytes.extend(exponent.map(|byte| byte ^ turned));
            loop {
                let (group, rest) = ((fraction >> 121) as u8, fraction << 7);
                bytes.push((group << 1 | u8::from(rest != 0)) ^ turned);
                if rest == 0 {
                    break;
                }
                fraction = rest;
            }
        }
    }
    if numbers == Numbers::ByType {
        bytes.push(of_type);
    }
}

/// The key that these bytes stand for; `None` if they stand for none. Numbers by value come back as integers if they can.
pub fn decode(bytes: &[u8], numbers: Numbers) -> Option<Value> {
    let mut rest = bytes;
    let value = take(&mut rest, numbers, 0)?;
    rest.is_empty().then_some(value)
}

fn take(rest: &mut &[u8], numbers: Numbers, depth: usize) -> Option<Value> {
    if depth > MAX_DEPTH {
        return None;
    }
    Some(match byte(rest)? {
        NONE => Value::None,
        NUMBER => {
            let value = take_number(rest)?;
            match (numbers, value.to_int()) {
                (Numbers::ByValue, Some(int)) => Value::Int(int),
                (Numbers::ByValue, None) => Value::Float(value.to_float()),
                (Numbers::ByType, int) => match byte(rest)? {
                    INT => Value::Int(int?),
                    FLOAT => Value::Float(value.to_float()),
                    BOOL => Value::Bool(int? != 0),
                    _ => return None,
                },
            }
        }
        TEXT => Value::Str(String::from_utf8(take_escaped(rest)?).ok()?),
        BYTES => Value::Bytes(take_escaped(rest)?),
        OF_TEXT => {
            let kind = String::from_utf8(take_escaped(rest)?).ok()?;
            if rest.first() == Some(&BYTES) {
                *rest = &rest[1..];
                take_escaped(rest)?;
            }
            let text = (byte(rest)? == TEXT).then(|| take_escaped(rest))??;
            Value::Text { kind, text: String::from_utf8(text).ok()? }
        }
        TUPLE => {
            let mut items = Vec::new();
            while *rest.first()? != END {
                items.push(take(rest, numbers, depth + 1)?);
            }
            *rest = &rest[1..];
            Value::Tuple(items)
        }
        _ => return None,
    })
}

fn byte(rest: &mut &[u8]) -> Option<u8> {
    let (first, others) = rest.split_first()?;
    *rest = others;
    Some(*first)
}

fn take_escaped(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        match byte(rest)? {
            END => match byte(rest)? {
                ESCAPED => content.push(END),
                ENDED => return Some(content),
                _ => return None,
            },
            other => content.push(other),
        }
    }
}

fn take_number(rest: &mut &[u8]) -> Option<Number> {
    let is_negative = match byte(rest)? {
        ZERO => return Some(Number::Zero),
        MINUS_INFINITE => return Some(Number::Infinite { is_negative: true }),
        INFINITE => return Some(Number::Infinite { is_negative: false }),
        NEGATIVE => true,
        POSITIVE => false,
        _ => return None,
    };
    let turned = if is_negative { u8::MAX } else { 0 };
    let exponent = u16::from_be_bytes([byte(rest)? ^ turned, byte(rest)? ^ turned]);
    let exponent = i32::from(exponent) - BIAS;
    let mut fraction = 0u128;
    for shift in (0..=121).rev().step_by(7) {
        let group = byte(rest)? ^ turned;
        fraction |= u128::from(group >> 1) << shift;
        if group & 1 == 0 {
            return (-1074..=1023).contains(&exponent).then_some(Number::Finite { is_negative, exponent, fraction });
        }
    }
    // The last group has two bits: 128 is 18 times 7 and 2.
    let group = byte(rest)? ^ turned;
    fraction |= u128::from(group >> 1) >> 5;
    (group & 1 == 0 && (-1074..=1023).contains(&exponent)).then_some(Number::Finite { is_negative, exponent, fraction })
}

/// The smallest key that is larger than every key with this prefix; `None` if there is none.
pub fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut key = prefix[..=last].to_vec();
    key[last] += 1;
    Some(key)
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use proptest::prelude::*;

    use super::*;

    fn of_value() -> impl Strategy<Value = Value> {
        let number = prop_oneof![
            any::<i128>().prop_map(Value::Int),
            (-300i128..300).prop_map(Value::Int),
            any::<f64>().prop_filter("a number", |it| !it.is_nan()).prop_map(Value::Float),
            (-300i32..300).prop_map(|it| Value::Float(f64::from(it) / 4.0)),
            any::<u64>().prop_map(|it| Value::Float(it as f64)),
            Just(Value::Float(f64::MIN_POSITIVE / 3.0)),
            any::<bool>().prop_map(Value::Bool),
        ];
        let leaf = prop_oneof![
            4 => number,
            1 => Just(Value::None),
            2 => "[\0a\u{1}\u{ff}é]{0,4}".prop_map(Value::Str),
            2 => proptest::collection::vec(prop_oneof![Just(0u8), Just(0xFF), any::<u8>()], 0..4).prop_map(Value::Bytes),
            1 => ("[a-b]{1,2}", "[0-9]{1,3}").prop_map(|(kind, text)| Value::Text { kind, text }),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| proptest::collection::vec(inner, 0..3).prop_map(Value::Tuple))
    }

    fn class(value: &Value) -> u8 {
        match value {
            Value::None => 0,
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => 1,
            Value::Str(_) => 2,
            Value::Bytes(_) => 3,
            Value::Text { .. } => 4,
            _ => 5,
        }
    }

    /// Exactly, as Python compares: an integer with a float is not rounded.
    fn compare_numbers(one: &Value, other: &Value) -> Ordering {
        let int = |value: &Value| match value {
            Value::Bool(value) => Some(i128::from(*value)),
            Value::Int(value) => Some(*value),
            _ => None,
        };
        match (one, other) {
            (Value::Float(one), Value::Float(other)) => one.partial_cmp(other).unwrap(),
            (Value::Float(float), other) => compare_float(*float, int(other).unwrap()),
            (one, Value::Float(float)) => compare_float(*float, int(one).unwrap()).reverse(),
            (one, other) => int(one).unwrap().cmp(&int(other).unwrap()),
        }
    }

    fn compare_float(float: f64, int: i128) -> Ordering {
        const BEYOND: f64 = 170_141_183_460_469_231_731_687_303_715_884_105_728.0;
        if float >= BEYOND {
            return Ordering::Greater;
        }
        if float < -BEYOND {
            return Ordering::Less;
        }
        let whole = float.floor();
        (whole as i128).cmp(&int).then(if float > whole { Ordering::Greater } else { Ordering::Equal })
    }

    fn compare(one: &Value, other: &Value) -> Ordering {
        class(one).cmp(&class(other)).then_with(|| match (one, other) {
            (Value::Str(one), Value::Str(other)) => one.cmp(other),
            (Value::Bytes(one), Value::Bytes(other)) => one.cmp(other),
            (Value::Text { kind, text }, Value::Text { kind: kind_2, text: text_2 }) => {
                (kind, text).cmp(&(kind_2, text_2))
            }
            (Value::Tuple(one), Value::Tuple(other)) => {
                let unequal = one.iter().zip(other).map(|(one, other)| compare(one, other)).find(|it| it.is_ne());
                unequal.unwrap_or_else(|| one.len().cmp(&other.len()))
            }
            (Value::None, Value::None) => Ordering::Equal,
            (one, other) => compare_numbers(one, other),
        })
    }

    /// `-0.0` and `0.0` are one key.
    fn is_same(one: &Value, other: &Value) -> bool {
        match (one, other) {
            (Value::Float(one), Value::Float(other)) => one == other,
            (Value::Tuple(one), Value::Tuple(other)) => {
                one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same(one, other))
            }
            (one, other) => one == other,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 4_000, ..ProptestConfig::default() })]

        /// MAP-15, ETS-004: by value.
        #[test]
        fn the_order_of_keys_is_the_order_of_values(one in of_value(), other in of_value()) {
            let keys = [&one, &other].map(|value| encode(value, Numbers::ByValue).unwrap());
            prop_assert_eq!(keys[0].cmp(&keys[1]), compare(&one, &other));
        }

        /// MAP-15, ETS-004: by type, which changes the order of nothing else.
        #[test]
        fn keys_by_type_are_what_they_were(one in of_value(), other in of_value()) {
            let keys = [&one, &other].map(|value| encode(value, Numbers::ByType).unwrap());
            prop_assert_eq!(keys[0] == keys[1], is_same(&one, &other));
            for (value, key) in [&one, &other].into_iter().zip(&keys) {
                prop_assert!(is_same(&decode(key, Numbers::ByType).unwrap(), value));
            }
            if class(&one) == 1 && class(&other) == 1 && compare(&one, &other).is_ne() {
                prop_assert_eq!(keys[0].cmp(&keys[1]), compare(&one, &other));
            }
        }

        #[test]
        fn keys_by_value_come_back_equal(value in of_value()) {
            let key = encode(&value, Numbers::ByValue).unwrap();
            let back = decode(&key, Numbers::ByValue).unwrap();
            prop_assert_eq!(compare(&back, &value), Ordering::Equal);
        }

        /// Untrusted bytes panic nobody.
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            for numbers in [Numbers::ByValue, Numbers::ByType] {
                let _ = decode(&bytes, numbers);
                let _ = decode(&[&[NUMBER, POSITIVE], &bytes[..]].concat(), numbers);
            }
        }

        #[test]
        fn a_prefix_is_that_of_the_tuples_that_begin_so(
            items in proptest::collection::vec(of_value(), 0..3),
            others in proptest::collection::vec(of_value(), 0..3),
        ) {
            let prefix = encode_prefix(&items, Numbers::ByType).unwrap();
            let longer = Value::Tuple(items.iter().chain(&others).cloned().collect());
            prop_assert!(encode(&longer, Numbers::ByType).unwrap().starts_with(&prefix));
            let begins_so = others.len() >= items.len() && others.iter().zip(&items).all(|(a, b)| is_same(a, b));
            let other = encode(&Value::Tuple(others), Numbers::ByType).unwrap();
            prop_assert_eq!(other.starts_with(&prefix), begins_so);
        }
    }

    #[test]
    fn no_key_is_the_beginning_of_another() {
        let text = |text: &str| Value::Str(text.into());
        let texts = ["", "\0", "\0\0", "a", "a\0", "a\0b", "a\u{1}", "ab"];
        let mut values: Vec<Value> = texts.map(text).to_vec();
        values.extend(texts.map(|it| Value::Bytes(it.as_bytes().to_vec())));
        let tuples: Vec<Value> = values.iter().map(|value| Value::Tuple(vec![value.clone()])).collect();
        values.extend(tuples);
        values.extend([Value::None, Value::Tuple(Vec::new()), Value::Int(1), Value::Int(128), Value::Float(1.5)]);
        for numbers in [Numbers::ByValue, Numbers::ByType] {
            let keys: Vec<Vec<u8>> = values.iter().map(|value| encode(value, numbers).unwrap()).collect();
            for (place, one) in keys.iter().enumerate() {
                for (other_place, other) in keys.iter().enumerate() {
                    assert_eq!(
                        other.starts_with(one),
                        place == other_place,
                        "{} {}",
                        values[place],
                        values[other_place]
                    );
                }
            }
        }
        let prefix = encode_prefix(&[text("a")], Numbers::ByType).unwrap();
        let longer = encode(&Value::Tuple(vec![text("a\0b"), Value::Int(1)]), Numbers::ByType).unwrap();
        assert!(!longer.starts_with(&prefix));
    }

    #[test]
    fn what_can_change_is_no_key() {
        let numbers = Numbers::ByType;
        assert_eq!(encode(&Value::List(vec![]), numbers), Err(NoKey::Kind("list")));
        assert_eq!(encode(&Value::Tuple(vec![Value::Dict(vec![])]), numbers), Err(NoKey::Kind("dict")));
        assert_eq!(encode(&Value::Float(f64::NAN), numbers), Err(NoKey::NotANumber));
        let deep = (0..=MAX_DEPTH).fold(Value::None, |inner, _| Value::Tuple(vec![inner]));
        assert_eq!(encode(&deep, numbers), Err(NoKey::TooDeep));
    }
}
