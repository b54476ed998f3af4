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

fn from_json(json: &Json) -> Value {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_json_bare_words_or_keywords() {
        let texts = ["7", "word", "[1, null]", "by=2", "\"a=b\"", "not json=", "-3"].map(str::to_owned);
        let expected = serde_json::json!([[7, "word", [1, null], "a=b", "not json=", -3], {"by": 2}]);
        assert_eq!(to_json(&arguments(&texts)), expected);
    }
}
