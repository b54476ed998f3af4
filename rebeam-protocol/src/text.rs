//! Texts of bounded length: what comes from a worker is kept and passed on, and may be as long as the worker likes.

/// A text of at most about so many bytes: of a longer one the beginning, the end, and how much lies between.
///
/// ```
/// use rebeam_protocol::text::shortened;
/// assert_eq!(shortened("short".into(), 10), "short");
/// assert_eq!(shortened("x".repeat(100), 10), "xxxxx … 90 more bytes … xxxxx");
/// ```
pub fn shortened(text: String, most: usize) -> String {
    if text.len() <= most {
        return text;
    }
    let head = text.floor_char_boundary(most / 2);
    let tail = text.ceil_char_boundary(text.len() - most / 2);
    format!("{} … {} more bytes … {}", &text[..head], tail - head, &text[tail..])
}
