//! Texts of bounded length: what comes from a worker is kept and passed on, and may be as long as the worker likes.

/// A text of at most so many bytes (from 64 on): of a longer one the beginning, the end, and how much lies between.
///
/// ```
/// use rebeam_protocol::text::shortened;
/// assert_eq!(shortened("short".into(), 64), "short");
/// let long = shortened("x".repeat(1000), 64);
/// assert_eq!(long, "xxxxxxxxxxxxxxxx … 968 more bytes … xxxxxxxxxxxxxxxx");
/// assert_eq!(shortened(long.clone(), 64), long);
/// ```
pub fn shortened(text: String, most: usize) -> String {
    if text.len() <= most {
        return text;
    }
    let kept = most.saturating_sub(NOTE) / 2;
    let head = text.floor_char_boundary(kept);
    let tail = text.ceil_char_boundary(text.len() - kept);
    format!("{} … {} more bytes … {}", &text[..head], tail - head, &text[tail..])
}

/// Room for what is said between, rounded up.
const NOTE: usize = 32;
