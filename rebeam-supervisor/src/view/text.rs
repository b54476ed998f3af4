//! Values and tables as people read them.

use std::time::Duration;

use anstyle::Style;

/// Whether a stream is to be coloured: `NO_COLOR` and `FORCE_COLOR` decide, else whether it is a terminal.
pub(crate) fn has_colour(is_terminal: bool) -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    is_set("FORCE_COLOR") || (!is_set("NO_COLOR") && is_terminal && !is_dumb)
}

/// Text in a style, or as it is.
pub(crate) fn painted(has_colour: bool, style: Style, text: &str) -> String {
    if has_colour { format!("{style}{text}{style:#}") } else { text.to_owned() }
}

/// A duration as people read it: `3 ms`, `1.2 s`, `4 m 05 s`, `2 h 03 m`.
pub(crate) fn duration(time: Duration) -> String {
    match (time.as_millis(), time.as_secs()) {
        (ms, _) if ms < 1000 => format!("{ms} ms"),
        (_, seconds) if seconds < 60 => format!("{:.1} s", time.as_secs_f64()),
        (_, seconds) if seconds < 3600 => format!("{} m {:02} s", seconds / 60, seconds % 60),
        (_, seconds) => format!("{} h {:02} m", seconds / 3600, seconds / 60 % 60),
    }
}

/// An amount of memory as people read it.
pub(crate) fn kib(kib: u64) -> String {
    if kib < 1024 { format!("{kib} KiB") } else { format!("{:.1} MiB", kib as f64 / 1024.0) }
}

/// A size as people read it.
pub(crate) fn bytes(bytes: u64) -> String {
    if bytes < 1024 { format!("{bytes} B") } else { kib(bytes / 1024) }
}

/// Rows under a heading, columns aligned; numbers to the right.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heading[column].len()]).max().unwrap_or(0)
    };
    let is_number = |column: usize| {
        let starts = |row: &Vec<String>| row[column].starts_with(|first: char| first.is_ascii_digit() || first == '-');
        !rows.is_empty() && column > 0 && rows.iter().all(starts)
    };
    let columns: Vec<(usize, bool)> = (0..heading.len()).map(|column| (width(column), is_number(column))).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cell = |(text, (width, right)): (&str, &(usize, bool))| {
            if *right { format!("{text:>width$}") } else { format!("{text:<width$}") }
        };
        cells.zip(&columns).map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut heading.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let rows = [vec!["a".to_owned(), "7".to_owned()], vec!["long".to_owned(), "12".to_owned()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME   N\na      7\nlong  12");
    }

    #[test]
    fn durations_read_well() {
        let ms = |n| duration(Duration::from_millis(n));
        assert_eq!([ms(3), ms(1234), ms(245_000), ms(7_380_000)], ["3 ms", "1.2 s", "4 m 05 s", "2 h 03 m"]);
    }
}
