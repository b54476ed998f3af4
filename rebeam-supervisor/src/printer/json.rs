//! What a node shows to machines: one JSON object a line.
//!
//! Always `time` (RFC 3339, UTC), `level`, `actor`, `logger` and `message`; `incarnation`, `version` (of the
//! code, once that was reloaded), `extra`, `exception`, `certificate` where there is one. The supervisor's own are by the actor `rebeam`; what an actor wrote to a stream
//! has that stream for its logger.

use jiff::Timestamp;
use rebeam_protocol::certificate::{Certificate, Next};
use rebeam_protocol::id::Version;
use rebeam_protocol::message::LogRecord;
use serde_json::{Map, Value, json};

use super::{REBEAM, Speaker};
use crate::printer::Stream;
use crate::view::crash::certificate_json;
use crate::view::failure::Failure;
use crate::view::text::printable;

pub(super) fn output(who: Speaker<'_>, stream: Stream, line: &str) -> String {
    let (level, logger) = match stream {
        Stream::Stdout => ("info", "stdout"),
        Stream::Stderr => ("warning", "stderr"),
    };
    line_of(record(Timestamp::now(), level, who, logger, line))
}

pub(super) fn log(who: Speaker<'_>, log: &LogRecord) -> String {
    let time = Timestamp::from_millisecond(log.time_ms as i64).unwrap_or_default();
    let mut record = record(time, log.level_word(), who, &log.logger, &log.message);
    if let Some(extra) = log.extra.as_deref() {
        // What is JSON to Python and not to us is kept as its text.
        let known = serde_json::from_str(extra).unwrap_or_else(|_| extra.into());
        record.insert("extra".into(), known);
    }
    if let Some(exception) = &log.exception {
        record.insert("exception".into(), exception.as_str().into());
    }
    line_of(record)
}

pub(super) fn said(level: &str, text: &str) -> String {
    line_of(record(Timestamp::now(), level, REBEAM, "rebeam", text))
}

/// The same, with further keys.
pub(super) fn said_with(level: &str, text: &str, extra: Value) -> String {
    let mut record = record(Timestamp::now(), level, REBEAM, "rebeam", text);
    if let Value::Object(extra) = extra {
        record.extend(extra);
    }
    line_of(record)
}

pub(super) fn crash(certificate: &Certificate, next: Next) -> String {
    let who = Speaker { label: &certificate.actor, pid: Some(certificate.pid), code: Some(certificate.code) };
    let mut record = record(Timestamp::now(), "error", who, "rebeam.crash", &format!("died: {}", certificate.reason));
    record.insert("certificate".into(), certificate_json(certificate, next));
    line_of(record)
}

pub(super) fn stacks(label: &str, stacks: Result<&str, &str>) -> String {
    let who = Speaker { label, pid: None, code: None };
    let (message, stacks) = match stacks {
        Ok(stacks) => ("its stacks", json!(stacks)),
        Err(why) => (why, Value::Null),
    };
    let mut record = record(Timestamp::now(), "info", who, "rebeam.stacks", message);
    record.insert("stacks".into(), stacks);
    line_of(record)
}

pub(super) fn failure(failure: &Failure) -> String {
    let mut record = record(Timestamp::now(), "critical", REBEAM, "rebeam", &failure.message);
    record.insert("exit_code".into(), (failure.code as u8).into());
    if let Some(detail) = &failure.detail {
        record.insert("detail".into(), detail.as_str().into());
    }
    record.insert("causes".into(), failure.causes.clone().into());
    record.insert("hints".into(), failure.hints.clone().into());
    line_of(record)
}

fn record(time: Timestamp, level: &str, who: Speaker<'_>, logger: &str, message: &str) -> Map<String, Value> {
    let mut record = Map::new();
    record.insert("time".into(), format!("{time:.3}").into());
    record.insert("level".into(), level.into());
    record.insert("actor".into(), who.label.into());
    if let Some(pid) = who.pid {
        record.insert("incarnation".into(), pid.to_string().into());
    }
    if let Some(code) = who.code.filter(|code| *code != Version::FIRST) {
        record.insert("version".into(), code.0.into());
    }
    record.insert("logger".into(), logger.into());
    record.insert("message".into(), message.into());
    record
}

fn line_of(record: Map<String, Value>) -> String {
    // JSON leaves some controls as they are, and people look at logs on terminals.
    printable(&Value::Object(record).to_string(), false).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_whatever_it_says() {
        let record = LogRecord {
            time_ms: 1_000,
            level: 40,
            logger: "app".into(),
            message: "two\nlines \u{1f600} \"quoted\"".into(),
            exception: Some("Traceback\n  …".into()),
            extra: Some(r#"{"user": 7}"#.into()),
        };
        let line = log(Speaker { label: "a", pid: None, code: None }, &record);
        assert!(!line.contains('\n'), "{line}");
        let value: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(value["time"], "1970-01-01T00:00:01.000Z");
        assert_eq!(value["level"], "error");
        assert_eq!(value["message"], "two\nlines \u{1f600} \"quoted\"");
        assert_eq!(value["extra"]["user"], 7);
    }
}
