//! The only place that prints, beside the printer of `up`: data to stdout, everything else to stderr.

use std::io::{IsTerminal, Write};

use anstyle::AnsiColor;

use crate::view::failure::Failure;
use crate::view::text::{has_colour, painted, printable};

/// Prints data. A reader who has gone is no error.
pub(crate) fn data(text: &str) {
    let stdout = std::io::stdout();
    let has_colour = has_colour(stdout.is_terminal());
    let _ = writeln!(&stdout, "{}", printable(text.trim_end_matches('\n'), has_colour));
}

/// Prints a text that is an actor's own: as it is, unless a terminal would obey it.
pub(crate) fn text(text: &str) {
    if std::io::stdout().is_terminal() {
        data(text);
    } else {
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}

/// Prints what went wrong.
pub(crate) fn failure(failure: &Failure) {
    let stderr = std::io::stderr();
    let has_colour = has_colour(stderr.is_terminal());
    let red = AnsiColor::Red.on_default().bold();
    let cyan = AnsiColor::Cyan.on_default().bold();
    let mut text = format!("{}: {}\n", painted(has_colour, red, "error"), failure.message.replace('\n', "\n    "));
    if let Some(detail) = &failure.detail {
        detail.lines().for_each(|line| text.push_str(&format!("  {line}\n")));
    }
    for cause in &failure.causes {
        text.push_str(&format!("  caused by: {}\n", cause.replace('\n', "\n    ")));
    }
    for hint in &failure.hints {
        text.push_str(&format!("{}: {}\n", painted(has_colour, cyan, "hint"), hint.replace('\n', "\n    ")));
    }
    let _ = stderr.lock().write_all(printable(&text, has_colour).as_bytes());
}

/// Prints something beside the data.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable(text, false));
}
