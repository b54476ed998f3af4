//! The block about one end, as people read it: for `up`, `why` and errors.

use std::time::Duration;

use anstyle::{AnsiColor, Style};
use rebeam_protocol::certificate::{Certificate, Killer, Next};
use rebeam_protocol::exit::ExitReason;

use crate::cli::render::{duration, kib};

/// The block about one end, for `up`, `why` and errors.
pub(crate) fn crash_block(certificate: &Certificate, paint: impl Fn(Style, &str) -> String) -> String {
    let dim = AnsiColor::BrightBlack.on_default();
    let red = AnsiColor::Red.on_default().bold();
    let bar = paint(red, "┃");
    let mut lines = vec![format!(
        "{} {} {}",
        paint(red, "┏━"),
        paint(Style::new().bold(), &certificate.actor),
        paint(red, &format!("died: {}", certificate.reason))
    )];
    for message in &certificate.in_hand {
        let again = if message.delivery > 1 { format!(", delivery {}", message.delivery) } else { String::new() };
        let age = duration(Duration::from_millis(message.age_ms));
        lines.push(format!("{bar} in hand: `{}` from {}, for {age}{again}", message.method, message.sender));
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
    let facts = format!(
        "{}, process {}, lived {lived}, cpu {cpu}, peak {}, restarts before {}",
        certificate.pid,
        certificate.os_pid,
        kib(certificate.peak_kib),
        certificate.restarts
    );
    lines.push(format!("{bar} {}", paint(dim, &facts)));
    let next = match certificate.next {
        Next::Nothing => String::new(),
        Next::Restarts { after_ms: 0 } => " it is started again".into(),
        Next::Restarts { after_ms } => {
            format!(" it is started again after {}", duration(Duration::from_millis(after_ms)))
        }
        Next::StaysDown => " it stays down".into(),
        Next::GivesUp => " the restart limit is used up: its supervisor gives up".into(),
        Next::Parked => {
            format!(" the restart limit is used up: it stays down until `rebeam restart {}`", certificate.actor)
        }
    };
    lines.push(format!("{}{next}", paint(red, "┗━")));
    lines.join("\n")
}
