//! `rebeam table`: tables of a running node, by this connection's gateway (`rebeam._gateway`), for which they are what they
//! are for any actor. Values are plain data; what is not is named.

use std::io::BufRead;

use rebeam_protocol::message::Outcome;
use rebeam_protocol::outside::{Answer, Request};
use rebeam_protocol::value::{self, Value};
use serde_json::{Value as Json, json};

use crate::cli::args::TableCommand;
use crate::cli::client::{self, Client};
use crate::cli::render;
use crate::view::failure::Failure;
use crate::view::text::{kib, table};
use crate::view::values::{from_exact_json, to_exact_json, to_json};

/// How long an answer may take, in milliseconds.
const PATIENCE_MS: u64 = 60_000;

/// Rows that are asked for, or put, at once.
const ROWS_AT_ONCE: usize = 1000;

pub(crate) fn run(client: &mut Client, command: &TableCommand) -> Result<(), Failure> {
    match command {
        TableCommand::Ls(output) => list(client, output.json),
        TableCommand::Show { name, prefix, limit, json } => show(client, name, prefix, *limit, *json),
        TableCommand::Get { name, key, json } => get(client, name, key, *json),
        TableCommand::Put { name, key, value } => put(client, name, vec![(key_of(key)?, value_of(value)?)]),
        TableCommand::Dump { name } => dump(client, name),
        TableCommand::Load { name } => load(client, name),
    }
}

/// A value as it is written on the command line: JSON, also as `dump` writes it, or a bare word.
fn value_of(text: &str) -> Result<Value, Failure> {
    if let Ok(number) = text.parse() {
        return Ok(Value::Int(number));
    }
    let Ok(json) = serde_json::from_str::<Json>(text) else { return Ok(Value::Str(text.to_owned())) };
    from_exact_json(&json).map_err(|error| Failure::usage(format!("`{text}` is no value: {error}")))
}

/// A key: never a list, but a tuple.
fn key_of(text: &str) -> Result<Value, Failure> {
    fn frozen(value: Value) -> Value {
        match value {
            Value::List(items) | Value::Tuple(items) => Value::Tuple(items.into_iter().map(frozen).collect()),
            other => other,
        }
    }
    value_of(text).map(frozen)
}

fn list(client: &mut Client, as_json: bool) -> Result<(), Failure> {
    let answer = ask(client, "tables", Vec::new())?;
    let Value::List(infos) = answer else { return Err(Failure::request("the node says nothing of its tables")) };
    let infos: Vec<Json> = infos.iter().map(to_json).collect();
    if as_json {
        render::data(&Json::Array(infos).to_string());
        return Ok(());
    }
    let row = |info: &Json| {
        let text = |key: &str| info[key].as_str().unwrap_or_default().to_owned();
        let owner: Vec<String> = info["owner"].as_array().into_iter().flatten().map(Json::to_string).collect();
        let bytes = info["bytes"].as_u64().unwrap_or_default();
        vec![text("name"), text("kind"), text("access"), owner.join("."), info["rows"].to_string(), kib(bytes / 1024)]
    };
    let rows: Vec<Vec<String>> = infos.iter().map(row).collect();
    render::data(&table(&["TABLE", "KIND", "ACCESS", "OWNER", "ROWS", "MEMORY"], &rows));
    Ok(())
}

fn show(client: &mut Client, name: &str, prefix: &[String], limit: u64, as_json: bool) -> Result<(), Failure> {
    let prefix = match prefix {
        [] => Value::None,
        items => Value::Tuple(items.iter().map(|item| key_of(item)).collect::<Result<_, _>>()?),
    };
    // One more, so that it is known whether there are more.
    let most = Value::Int(i128::from(limit) + 1);
    let args = vec![Value::Str(name.into()), prefix, most, Value::Bool(false), Value::Bool(false)];
    let mut rows = rows_of(ask(client, "table_page", args)?);
    let has_more = rows.len() as u64 > limit;
    rows.truncate(limit as usize);
    if as_json {
        let pair = |(key, value): &(Value, Value)| json!([to_json(key), to_json(value)]);
        render::data(&rows.iter().map(pair).collect::<Json>().to_string());
        return Ok(());
    }
    let row = |(key, value): &(Value, Value)| vec![key.to_string(), value.to_string()];
    let rows: Vec<Vec<String>> = rows.iter().map(row).collect();
    render::data(&table(&["KEY", "VALUE"], &rows));
    if has_more {
        render::data(&format!("the first {limit} rows; `--limit` shows more"));
    }
    Ok(())
}

fn get(client: &mut Client, name: &str, key: &str, as_json: bool) -> Result<(), Failure> {
    let args = vec![
        Value::Str(name.into()),
        Value::Str("__getitem__".into()),
        Value::List(vec![key_of(key)?]),
        Value::Dict(Vec::new()),
    ];
    match (to_json(&ask(client, "table", args)?), as_json) {
        (Json::String(text), false) => render::text(&text),
        (value, _) => render::data(&value.to_string()),
    }
    Ok(())
}

fn put(client: &mut Client, name: &str, rows: Vec<(Value, Value)>) -> Result<(), Failure> {
    let rows = rows.into_iter().map(|(key, value)| Value::Tuple(vec![key, value])).collect();
    ask(client, "table_put", vec![Value::Str(name.into()), Value::List(rows)]).map(drop)
}

fn dump(client: &mut Client, name: &str) -> Result<(), Failure> {
    let mut goes_on = false;
    loop {
        let most = Value::Int(ROWS_AT_ONCE as i128);
        let args = vec![Value::Str(name.into()), Value::None, most, Value::Bool(goes_on), Value::Bool(true)];
        let rows = rows_of(ask(client, "table_page", args)?);
        for (key, value) in &rows {
            render::data(&json!([to_exact_json(key), to_exact_json(value)]).to_string());
        }
        if rows.len() < ROWS_AT_ONCE {
            return Ok(());
        }
        goes_on = true;
    }
}

fn load(client: &mut Client, name: &str) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for (number, line) in (1..).zip(std::io::stdin().lock().lines()) {
        let wrong = |error: String| Failure::usage(format!("line {number} is no row that `dump` has written: {error}"));
        let line = line.map_err(|error| wrong(error.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        let json: Json = serde_json::from_str(&line).map_err(|error| wrong(error.to_string()))?;
        let Some([key, value]) = json.as_array().map(Vec::as_slice) else { return Err(wrong("it is no pair".into())) };
        rows.push((from_exact_json(key).map_err(wrong)?, from_exact_json(value).map_err(wrong)?));
        if rows.len() == ROWS_AT_ONCE {
            put(client, name, std::mem::take(&mut rows))?;
        }
    }
    put(client, name, rows)
}

fn rows_of(value: Value) -> Vec<(Value, Value)> {
    let Value::List(rows) = value else { return Vec::new() };
    let pair = |row: Value| match row {
        Value::Tuple(pair) | Value::List(pair) => <[Value; 2]>::try_from(pair).ok().map(|[key, value]| (key, value)),
        _ => None,
    };
    rows.into_iter().filter_map(pair).collect()
}

/// Has the gateway do something; what came of it.
fn ask(client: &mut Client, method: &str, args: Vec<Value>) -> Result<Value, Failure> {
    let request = Request::Gateway { method: method.into(), timeout_ms: PATIENCE_MS };
    let payload = value::encode(&Value::Tuple(vec![Value::List(args), Value::Dict(Vec::new())]));
    let (answer, payload) = client.ask(request, &payload)?;
    match answer {
        Answer::Outcome(Outcome::Returned(_)) => {
            let value = value::decode(&payload).map_err(Failure::request)?;
            let Value::Dict(fields) = value else { return Ok(value) };
            let field = |name: &str| fields.iter().find(|(key, _)| *key == Value::Str(name.into())).map(|(_, it)| it);
            if let Some(key) = field("missing") {
                return Err(Failure::request(format!("nothing is under the key {key}")));
            }
            if let Some(Value::Tuple(error) | Value::List(error)) = field("error") {
                return Err(match error.as_slice() {
                    [Value::Str(kind), Value::Str(text), ..] => failure(kind, text),
                    _ => Failure::request("the node cannot do that"),
                });
            }
            Ok(field("value").cloned().unwrap_or(Value::None))
        }
        Answer::Outcome(Outcome::Raised(raised)) => Err(Failure::request(raised.to_string())),
        Answer::Outcome(Outcome::Failed(failure)) => Err(client::call_failure(&failure)),
        Answer::Refused(text) => Err(Failure::request(text)),
        other => Err(client::unexpected(&other)),
    }
}

fn failure(kind: &str, text: &str) -> Failure {
    let (text, hint) = match text.split_once("; `rebeam.table") {
        Some((text, _)) => (text, Some("`rebeam table ls` lists them")),
        None => (text, None),
    };
    let failure =
        Failure::request(if kind.starts_with("rebeam.") { text.to_owned() } else { format!("{kind}: {text}") });
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
