//! Between JSON and plain values.

use rebeam_protocol::value::Value;
use serde_json::{Map, Number, Value as Json};

/// An argument of `call` and `cast`: a JSON value, or a bare word.
pub(crate) fn argument(text: &str) -> Value {
    serde_json::from_str(text).map_or_else(|_| Value::Str(text.to_owned()), |json| from_json(&json))
}

/// Positional and keyword arguments, as a message holds them.
pub(crate) fn arguments(texts: &[String]) -> Value {
    let mut args = Vec::new();
    let mut kwargs = Vec::new();
    for text in texts {
        match text.split_once('=') {
            Some((key, value)) if is_identifier(key) => kwargs.push((Value::Str(key.to_owned()), argument(value))),
            _ => args.push(argument(text)),
        }
    }
    Value::Tuple(vec![Value::List(args), Value::Dict(kwargs)])
}

fn is_identifier(text: &str) -> bool {
    let mut characters = text.chars();
    characters.next().is_some_and(|first| first.is_alphabetic() || first == '_')
        && characters.all(|other| other.is_alphanumeric() || other == '_')
}

/// A plain value from JSON.
pub(crate) fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::None,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::Int(value.into()),
            (None, Some(value)) => Value::Int(value.into()),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::Str(text.clone()),
        Json::Array(items) => Value::List(items.iter().map(from_json).collect()),
        Json::Object(items) => {
            Value::Dict(items.iter().map(|(key, value)| (Value::Str(key.clone()), from_json(value))).collect())
        }
    }
}

/// The nearest that JSON has: tuples and sets become arrays, bytes text, keys strings.
pub(crate) fn to_json(value: &Value) -> Json {
    let all = |items: &[Value]| Json::Array(items.iter().map(to_json).collect());
    match value {
        Value::None => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(value) => match (i64::try_from(*value), u64::try_from(*value)) {
            (Ok(value), _) => Json::Number(value.into()),
            (_, Ok(value)) => Json::Number(value.into()),
            _ => Json::String(value.to_string()),
        },
        Value::Float(value) => Number::from_f64(*value).map_or(Json::Null, Json::Number),
        Value::Str(text) | Value::Text { text, .. } => Json::String(text.clone()),
        Value::Bytes(bytes) => Json::String(String::from_utf8_lossy(bytes).into_owned()),
        Value::List(items) | Value::Tuple(items) | Value::Set(items) => all(items),
        Value::Dict(items) => {
            let key = |key: &Value| match to_json(key) {
                Json::String(text) => text,
                other => other.to_string(),
            };
            Json::Object(items.iter().map(|(k, value)| (key(k), to_json(value))).collect::<Map<_, _>>())
        }
    }
}

/// As JSON from which [`from_exact_json`] makes the same value again: what JSON does not have is an object with one key
/// that begins with `$`.
pub(crate) fn to_exact_json(value: &Value) -> Json {
    let all = |items: &[Value]| Json::Array(items.iter().map(to_exact_json).collect());
    let tagged = |tag: &str, content: Json| Json::Object([(format!("${tag}"), content)].into_iter().collect());
    match value {
        Value::Int(value) if i64::try_from(*value).is_err() => tagged("int", Json::String(value.to_string())),
        Value::Float(value) if !value.is_finite() => tagged("float", Json::String(value.to_string())),
        Value::Bytes(bytes) => tagged("bytes", bytes.iter().map(|byte| Json::from(*byte)).collect()),
        Value::Text { kind, text } => tagged(kind, Json::String(text.clone())),
        Value::List(items) => all(items),
        Value::Tuple(items) => tagged("tuple", all(items)),
        Value::Set(items) => tagged("set", all(items)),
        Value::Dict(items) => {
            let is_plain = |(key, _): &(Value, Value)| matches!(key, Value::Str(key) if !key.starts_with('$'));
            if items.iter().all(is_plain) {
                let key = |key: &Value| if let Value::Str(key) = key { key.clone() } else { String::new() };
                Json::Object(items.iter().map(|(k, value)| (key(k), to_exact_json(value))).collect())
            } else {
                let pair = |(key, value): &(Value, Value)| Json::Array(vec![to_exact_json(key), to_exact_json(value)]);
                tagged("dict", items.iter().map(pair).collect())
            }
        }
        plain => to_json(plain),
    }
}

/// From what [`to_exact_json`] has made.
///
/// # Errors
/// It is not of that form, in words.
pub(crate) fn from_exact_json(json: &Json) -> Result<Value, String> {
    let all = |items: &[Json]| items.iter().map(from_exact_json).collect::<Result<Vec<_>, _>>();
    let object = match json {
        Json::Array(items) => return Ok(Value::List(all(items)?)),
        Json::Object(object) => object,
        plain => return Ok(from_json(plain)),
    };
    let tagged = object.iter().next().filter(|_| object.len() == 1);
    let tagged = tagged.and_then(|(key, content)| Some((key.strip_prefix('$')?, content)));
    let Some((tag, content)) = tagged else {
        let pair = |(key, value): (&String, &Json)| Ok((Value::Str(key.clone()), from_exact_json(value)?));
        return Ok(Value::Dict(object.iter().map(pair).collect::<Result<_, String>>()?));
    };
    let wrong = || format!("`${tag}` is not followed by what it needs: {content}");
    let items = || content.as_array().map(Vec::as_slice).ok_or_else(wrong);
    let text = || content.as_str().ok_or_else(wrong);
    Ok(match tag {
        // Of more than 128 bits it is text to us.
        "int" => text()?.parse().map_or(Value::Text { kind: "int".into(), text: text()?.to_owned() }, Value::Int),
        "float" => Value::Float(text()?.parse().map_err(|_| wrong())?),
        "bytes" => {
            let byte = |byte: &Json| byte.as_u64().and_then(|byte| u8::try_from(byte).ok());
            Value::Bytes(items()?.iter().map(byte).collect::<Option<_>>().ok_or_else(wrong)?)
        }
        "tuple" => Value::Tuple(all(items()?)?),
        "set" => Value::Set(all(items()?)?),
        "dict" => {
            let pair = |pair: &Json| match pair.as_array().map(Vec::as_slice) {
                Some([key, value]) => Ok((from_exact_json(key)?, from_exact_json(value)?)),
                _ => Err(wrong()),
            };
            Value::Dict(items()?.iter().map(pair).collect::<Result<_, String>>()?)
        }
        kind => Value::Text { kind: kind.to_owned(), text: text()?.to_owned() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_json_comes_back_as_it_was() {
        let text = |kind: &str| Value::Text { kind: kind.into(), text: "2026-01-01".into() };
        let values = vec![
            Value::None,
            Value::Bool(true),
            Value::Int(i128::MAX),
            Value::Int(-5),
            Value::Float(1.0),
            Value::Float(f64::NEG_INFINITY),
            Value::Bytes(vec![0, 255]),
            text("date"),
            Value::Tuple(vec![Value::List(Vec::new()), Value::Set(vec![Value::Str("$x".into())])]),
            Value::Dict(vec![(Value::Str("$a".into()), Value::None)]),
            Value::Dict(vec![(Value::Str("a".into()), Value::Int(1)), (Value::Str("b".into()), Value::None)]),
            Value::Dict(vec![(Value::Tuple(Vec::new()), Value::Int(1))]),
        ];
        for value in values {
            let json = to_exact_json(&value).to_string();
            let back = serde_json::from_str(&json).map_err(|error| error.to_string());
            assert_eq!(back.and_then(|back| from_exact_json(&back)), Ok(value), "{json}");
        }
        for wrong in [r#"{"$bytes": "x"}"#, r#"{"$dict": [[1]]}"#, r#"{"$int": 5}"#, r#"{"$date": []}"#] {
            let json: Json = serde_json::from_str(wrong).expect("JSON");
            assert!(from_exact_json(&json).is_err(), "{wrong}");
        }
    }

    #[test]
    fn arguments_are_json_bare_words_or_keywords() {
        let texts = ["7", "word", "[1, null]", "by=2", "\"a=b\"", "not json=", "-3"].map(str::to_owned);
        let expected = serde_json::json!([[7, "word", [1, null], "a=b", "not json=", -3], {"by": 2}]);
        assert_eq!(to_json(&arguments(&texts)), expected);
    }
}
