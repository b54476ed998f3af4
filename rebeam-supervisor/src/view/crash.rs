//! One end, as people read it and as data: for `up`, `why` and errors.

use std::time::Duration;

use anstyle::{AnsiColor, Style};
use rebeam_protocol::certificate::{Certificate, Killer, Next};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::Version;

use serde_json::{Value as Json, json};

use crate::view::text::{duration, in_line, kib};

/// The block about one end, with what followed.
pub(crate) fn crash_block(certificate: &Certificate, next: Next, paint: impl Fn(Style, &str) -> String) -> String {
    let dim = AnsiColor::BrightBlack.on_default();
    let red = AnsiColor::Red.on_default().bold();
    let bar = paint(red, "┃");
    let mut lines = vec![format!(
        "{} {} {}",
        paint(red, "┏━"),
        paint(Style::new().bold(), &in_line(&certificate.actor)),
        paint(red, &format!("died: {}", in_line(&certificate.reason.to_string())))
    )];
    for message in &certificate.in_hand {
        let again = if message.delivery > 1 { format!(", delivery {}", message.delivery) } else { String::new() };
        let age = duration(Duration::from_millis(message.age_ms));
        let (method, sender) = (in_line(&message.method), in_line(&message.sender));
        lines.push(format!("{bar} in hand: `{method}` from {sender}, for {age}{again}"));
    }
    if let ExitReason::Exception(raised) = &certificate.reason {
        lines.extend(raised.traceback.lines().map(|line| format!("{bar}   {line}")));
    }
    match &certificate.killer {
        Killer::Nobody => {}
        Killer::Rebeam(why) => lines.push(format!("{bar} killed by rebeam: {why}")),
        Killer::OutOfMemory => lines.push(format!("{bar} killed by the kernel: out of memory")),
        Killer::Unknown => lines.push(format!("{bar} who sent the signal is not known")),
    }
    lines.extend(certificate.stacks.lines().map(|line| format!("{bar}   {line}")));
    if !certificate.last_output.is_empty() {
        lines.push(format!("{bar} {}", paint(dim, "last output:")));
        let skipped = certificate.last_output.len().saturating_sub(20);
        lines.extend(certificate.last_output[skipped..].iter().map(|line| format!("{bar}   {line}")));
    }
    let lived = duration(Duration::from_millis(certificate.age_ms));
    let cpu = duration(Duration::from_millis(certificate.cpu_ms));
    let life = match certificate.os_pid {
        0 => "without a process".into(),
        os_pid => format!("process {os_pid}, lived {lived}, cpu {cpu}, peak {}", kib(certificate.peak_kib)),
    };
    let code = if certificate.code == Version::FIRST { String::new() } else { format!(", {}", certificate.code) };
    let facts = format!("{}{code}, {life}, restarts before {}", certificate.pid, certificate.restarts);
    lines.push(format!("{bar} {}", paint(dim, &facts)));
    let next = match next {
        Next::Parked => format!("{} until `rebeam restart {}`", words_of(next), in_line(&certificate.actor)),
        next => words_of(next),
    };
    lines.push(format!("{} {next}", paint(red, "┗━")).trim_end().to_owned());
    lines.join("\n")
}

/// What follows an end.
pub(crate) fn words_of(next: Next) -> String {
    match next {
        Next::Nothing => String::new(),
        Next::Restarts { after_ms: 0 } => "it is started again".into(),
        Next::Restarts { after_ms } => {
            format!("it is started again after {}", duration(Duration::from_millis(after_ms)))
        }
        Next::StaysDown => "it stays down".into(),
        Next::GivesUp { restarts, within_ms } => {
            let within = duration(Duration::from_millis(within_ms));
            format!("more than {restarts} restarts within {within}: its supervisor gives up")
        }
        Next::Parked => "the restart limit is used up: it stays down".into(),
        Next::Undone { to, has_state: false, .. } => {
            format!("it starts over, as it was declared and with what {to} has")
        }
        Next::Undone { to, lost: 0, .. } => format!("it goes on with {to} and the state that it had then"),
        Next::Undone { to, lost, .. } => {
            let plural = if lost == 1 { "" } else { "s" };
            format!(
                "it goes on with {to} and the state that it had then: {lost} message{plural} since have left nothing in it"
            )
        }
    }
}

/// The block about one end, without colours.
pub(crate) fn plain_crash_block(certificate: &Certificate, next: Next) -> String {
    crash_block(certificate, next, |_, text| text.to_owned())
}

/// The same as data.
pub(crate) fn certificate_json(certificate: &Certificate, next: Next) -> Json {
    let traceback = match &certificate.reason {
        ExitReason::Exception(raised) => Some(&raised.traceback),
        _ => None,
    };
    let in_hand: Vec<Json> = certificate
        .in_hand
        .iter()
        .map(|message| {
            json!({
                "method": message.method,
                "sender": message.sender,
                "age_s": message.age_ms as f64 / 1000.0,
                "delivery": message.delivery,
            })
        })
        .collect();
    json!({
        "actor": certificate.actor,
        "pid": certificate.pid.to_string(),
        "os_pid": certificate.os_pid,
        "kind": certificate.reason.kind(),
        "reason": certificate.reason.to_string(),
        "traceback": traceback,
        "in_hand": in_hand,
        "killer": certificate.killer.words(),
        "stacks": certificate.stacks,
        "next": next_json(next),
        "last_output": certificate.last_output,
        "age_s": certificate.age_ms as f64 / 1000.0,
        "cpu_s": certificate.cpu_ms as f64 / 1000.0,
        "peak_kib": certificate.peak_kib,
        "restarts": certificate.restarts,
        "version": certificate.code.0,
    })
}

fn next_json(next: Next) -> Json {
    match next {
        Next::Nothing => Json::Null,
        Next::Restarts { after_ms } => json!({ "restarts_after_s": after_ms as f64 / 1000.0 }),
        Next::StaysDown => json!("stays_down"),
        Next::GivesUp { .. } => json!("gives_up"),
        Next::Parked => json!("parked"),
        Next::Undone { to, lost, has_state } => {
            json!({ "undone": { "version": to.0, "lost": lost, "state": has_state } })
        }
    }
}
