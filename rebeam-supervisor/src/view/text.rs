//! Values and tables as people read them.

use std::borrow::Cow;
use std::time::Duration;

use anstyle::Style;

/// Whether a stream is to be coloured: `NO_COLOR` and `FORCE_COLOR` decide, else whether it is a terminal.
pub(crate) fn has_colour(is_terminal: bool) -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    is_set("FORCE_COLOR") || (!is_set("NO_COLOR") && is_terminal && !is_dumb)
}

/// Text for a terminal, which must not do what an actor says: control characters are shown as `\u001b` (as JSON writes
/// them), but for line breaks and tabs, and for colours if those are wanted.
pub(crate) fn printable(text: &str, has_colour: bool) -> Cow<'_, str> {
    if !text.contains(is_control) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    let mut rest = text;
    let mut is_coloured = false;
    while let Some(at) = rest.find(is_control) {
        shown.push_str(&rest[..at]);
        rest = &rest[at..];
        let colour = colour_length(rest);
        let length = colour.unwrap_or_else(|| rest.chars().next().map_or(0, char::len_utf8));
        match &rest[..length] {
            "\t" => shown.push('\t'),
            // A colour ends with its line.
            "\n" => shown.push_str(if std::mem::take(&mut is_coloured) { "\x1b[0m\n" } else { "\n" }),
            colour if colour.len() > 2 && colour.starts_with('\x1b') => {
                if has_colour && !hides(colour) {
                    is_coloured = true;
                    shown.push_str(colour);
                }
            }
            control => control.chars().for_each(|it| shown.push_str(&format!("\\u{:04x}", u32::from(it)))),
        }
        rest = &rest[length..];
    }
    shown.push_str(rest);
    if is_coloured {
        shown.push_str("\x1b[0m");
    }
    Cow::Owned(shown)
}

/// Whether the sequence of a style makes text invisible.
fn hides(style: &str) -> bool {
    style
        .trim_start_matches("\x1b[")
        .trim_end_matches('m')
        .split(';')
        .any(|parameter| parameter.trim_start_matches('0') == "8")
}

/// The same of what is to stand in one line, as a name, a reason or a cell of a table.
pub(crate) fn in_line(text: &str) -> Cow<'_, str> {
    match printable(text, false) {
        shown if shown.contains(['\n', '\t']) => Cow::Owned(shown.replace('\n', "\\n").replace('\t', "\\t")),
        shown => shown,
    }
}

/// What a terminal obeys or a reader is misled by: controls, and marks that turn the direction of writing.
fn is_control(it: char) -> bool {
    it.is_control() || matches!(it, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// How long the sequence is that sets a colour or style, if the text begins with one.
fn colour_length(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|it: char| !it.is_ascii_digit() && it != ';' && it != ':')?;
    parameters[end..].starts_with('m').then_some(end + 3)
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

/// How many characters of a cell are shown.
const WIDEST: usize = 1000;

/// Rows under a heading, columns aligned; numbers to the right. What is very long is cut off.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |cell| match in_line(cell) {
        long if long.chars().nth(WIDEST).is_some() => Cow::Owned(long.chars().take(WIDEST).chain(['…']).collect()),
        short => short,
    };
    let rows: Vec<Vec<Cow<'_, str>>> = rows.iter().map(|row| row.iter().map(|text| cell(text)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heading[column].len()]).max().unwrap_or(0)
    };
    let is_number = |column: usize| {
        let starts =
            |row: &Vec<Cow<'_, str>>| row[column].starts_with(|first: char| first.is_ascii_digit() || first == '-');
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
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(AsRef::as_ref))));
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
    fn a_very_long_cell_is_cut_off() {
        let rows = [vec!["é".repeat(100_000)]];
        let shown = table(&["KEY"], &rows);
        assert_eq!(shown.lines().last().map(|line| line.chars().count()), Some(WIDEST + 1));
        assert!(shown.ends_with("é…"));
    }

    #[test]
    fn a_terminal_does_nothing_that_a_text_says() {
        let title = "\x1b]0;pwned\x07\x1b[2Ja\u{9b}2Jb\r\u{202e}c\x7f";
        assert_eq!(printable(title, true), "\\u001b]0;pwned\\u0007\\u001b[2Ja\\u009b2Jb\\u000d\\u202ec\\u007f");
        assert_eq!(printable("日本\tand\nmore", false), "日本\tand\nmore");
        assert_eq!(in_line("one\n2  forged\t3"), "one\\n2  forged\\t3");
    }

    #[test]
    fn colours_are_kept_where_they_are_wanted_and_else_left_out() {
        let red = "\x1b[1;38:5:9mred\nnot\x1b[31m red";
        assert_eq!(printable(red, true), "\x1b[1;38:5:9mred\x1b[0m\nnot\x1b[31m red\x1b[0m");
        assert_eq!(printable("\x1b[8;31mhidden\x1b[08mtext", true), "hiddentext");
        assert_eq!(printable(red, false), "red\nnot red");
        assert_eq!(printable("\x1b[31", true), "\\u001b[31", "cut off");
        assert_eq!(printable("\x1b[3mx\x1b[5A", false), "x\\u001b[5A");
    }

    #[test]
    fn a_cell_cannot_forge_a_row() {
        let rows = [vec!["1".to_owned(), "m\n2   echo".to_owned()]];
        assert_eq!(table(&["ID", "METHOD"], &rows), "ID  METHOD\n1   m\\n2   echo");
    }

    #[test]
    fn durations_read_well() {
        let ms = |n| duration(Duration::from_millis(n));
        assert_eq!([ms(3), ms(1234), ms(245_000), ms(7_380_000)], ["3 ms", "1.2 s", "4 m 05 s", "2 h 03 m"]);
    }
}
