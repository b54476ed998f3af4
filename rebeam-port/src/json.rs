//! JSON as plain values, and back.

use rebeam_protocol::value::Value;
use serde_json::{Map, Number, Value as Json};

/// A value as JSON.
///
/// # Errors
/// What JSON does not have, in words.
pub(crate) fn to_json(value: &Value) -> Result<Json, String> {
    let list = |items: &[Value]| items.iter().map(to_json).collect::<Result<Vec<_>, _>>().map(Json::Array);
    Ok(match value {
        Value::None => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(value) => {
            let number = Number::from_i128(*value).ok_or_else(|| format!("{value} is too large for JSON"))?;
            Json::Number(number)
        }
        Value::Float(value) => Json::Number(Number::from_f64(*value).ok_or_else(|| format!("{value} is not JSON"))?),
        Value::Str(text) => Json::String(text.clone()),
        Value::List(items) | Value::Tuple(items) => list(items)?,
        Value::Dict(items) => {
            let item = |(key, value): &(Value, Value)| match key {
                Value::Str(key) => Ok((key.clone(), to_json(value)?)),
                other => Err(format!("a key of a JSON object is text: not {other}")),
            };
            Json::Object(items.iter().map(item).collect::<Result<Map<_, _>, String>>()?)
        }
        Value::Bytes(_) => return Err("bytes are not JSON".into()),
        Value::Set(_) => return Err("a set is not JSON".into()),
        Value::Text { kind, text } => return Err(format!("{text} is not JSON, but a {kind}")),
    })
}

/// JSON as a value.
pub(crate) fn to_value(json: &Json) -> Value {
    match json {
        Json::Null => Value::None,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match number.as_i128() {
            Some(whole) => Value::Int(whole),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::Str(text.clone()),
        Json::Array(items) => Value::List(items.iter().map(to_value).collect()),
        Json::Object(items) => {
            Value::Dict(items.iter().map(|(key, value)| (Value::Str(key.clone()), to_value(value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_json_has_comes_back_and_the_rest_is_named() {
        let text = r#"{"b":[1,-2.5,null,true,"é",18446744073709551615],"a":{}}"#;
        let value = to_value(&serde_json::from_str(text).unwrap());
        assert_eq!(to_json(&value).unwrap().to_string(), text);
        assert_eq!(to_json(&Value::Tuple(vec![Value::Int(1)])).unwrap().to_string(), "[1]");
        for value in [
            Value::Bytes(vec![1]),
            Value::Float(f64::NAN),
            Value::Int(i128::MAX),
            Value::Dict(vec![(Value::Int(1), Value::None)]),
            Value::Set(Vec::new()),
            Value::Text { kind: "date".into(), text: "2026-01-01".into() },
        ] {
            assert!(to_json(&Value::List(vec![value])).is_err());
        }
    }
}
