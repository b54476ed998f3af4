//! The order of keys that are known by a text whose own order is another: numbers, durations, times with a zone.
//!
//! Of these a key has bytes in the order of the values, and one text for all that are equal. The texts are those of
//! `rebeam._plain`.

/// Days before the year 1970 since the year 0 of the calendar, which Python's begins a year after.
const DAYS_TO_1970: i128 = 719_468;

const DAY: i128 = 86_400_000_000;

/// What orders a text of this kind, and the text for all that are equal to it; `None`: its own order is right.
///
/// # Errors
/// It is not a number, and not even equal to itself.
pub(crate) fn of(kind: &str, text: &str) -> Result<Option<(Vec<u8>, String)>, NotANumber> {
    match kind {
        "decimal" if text.trim_start_matches(['-', '+', 's']).starts_with("NaN") => Err(NotANumber),
        "decimal" => Ok(decimal(text)),
        "timedelta" => Ok(timedelta(text)),
        "datetime" => Ok(datetime(text)),
        "int" => Ok(int(text)),
        _ => Ok(None),
    }
}

/// It is not even equal to itself.
pub(crate) struct NotANumber;

fn signed(value: i128) -> Vec<u8> {
    // The negative ones first.
    (value as u128 ^ (1 << 127)).to_be_bytes().to_vec()
}

fn turned(bytes: Vec<u8>, is_negative: bool) -> Vec<u8> {
    if is_negative { bytes.into_iter().map(|byte| !byte).collect() } else { bytes }
}

/// `days,seconds,microseconds`, of which only the days may be negative.
fn timedelta(text: &str) -> Option<(Vec<u8>, String)> {
    let mut parts = text.split(',').map(|part| part.parse::<i64>().ok().map(i128::from));
    let (days, seconds, micros) = (parts.next()??, parts.next()??, parts.next()??);
    Some((signed(days * DAY + seconds * 1_000_000 + micros), text.to_owned()))
}

/// A whole number, of any length.
fn int(text: &str) -> Option<(Vec<u8>, String)> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    let order = [&(digits.len() as u64).to_be_bytes()[..], digits.as_bytes()].concat();
    let is_negative = digits.len() < text.len();
    let sign = if is_negative { 0 } else { 1 };
    is_number.then(|| ([&[sign][..], &turned(order, is_negative)].concat(), text.to_owned()))
}

const MINUS_INFINITE: u8 = 0;
const NEGATIVE: u8 = 1;
const ZERO: u8 = 2;
const POSITIVE: u8 = 3;
const INFINITE: u8 = 4;

/// `-12.5E+3` and the like: by sign, then by the power of ten of the first digit, then by the digits.
fn decimal(text: &str) -> Option<(Vec<u8>, String)> {
    let (is_negative, size) = match text.strip_prefix('-') {
        Some(size) => (true, size),
        None => (false, text),
    };
    if size == "Infinity" {
        return Some((vec![if is_negative { MINUS_INFINITE } else { INFINITE }], text.to_owned()));
    }
    let (mantissa, exponent) = size.split_once('E').unwrap_or((size, "0"));
    let exponent: i64 = exponent.parse().ok()?;
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = [whole, part].concat();
    if all.is_empty() || !all.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = all.trim_start_matches('0').trim_end_matches('0');
    if digits.is_empty() {
        return Some((vec![ZERO], "0".to_owned()));
    }
    let leading = all.len() - all.trim_start_matches('0').len();
    // Of the first digit that is not zero.
    let power = exponent.checked_add(whole.len() as i64 - leading as i64 - 1)?;
    let last = power.checked_sub(digits.len() as i64 - 1)?;
    // Digits are larger than what ends them.
    let order = [&signed(power.into())[..], digits.as_bytes(), &[0]].concat();
    let class = if is_negative { NEGATIVE } else { POSITIVE };
    let sign = if is_negative { "-" } else { "" };
    Some(([&[class][..], &turned(order, is_negative)].concat(), format!("{sign}{digits}E{last}")))
}

/// `2026-01-02T03:04:05.678+02:00`, by its moment. Those without a zone are ordered as text.
fn datetime(text: &str) -> Option<(Vec<u8>, String)> {
    let (date, time) = text.split_once('T')?;
    let zone = time.find(['+', '-'])?;
    let (time, zone) = time.split_at(zone);
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u16>().ok().map(i128::from));
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let is_west = zone.starts_with('-');
    let offset = of_day(&zone[1..])?;
    let local = days(year, month, day) * DAY + of_day(time)?;
    let moment = if is_west { local + offset } else { local - offset };
    Some((signed(moment), in_utc(moment).unwrap_or_else(|| text.to_owned())))
}

/// `hh:mm[:ss[.ffffff]]` in microseconds.
fn of_day(text: &str) -> Option<i128> {
    let (clock, part) = text.split_once('.').unwrap_or((text, ""));
    let mut micros = 0;
    for (part, weight) in clock.split(':').zip([3600, 60, 1]) {
        micros += i128::from(part.parse::<u8>().ok()?) * weight * 1_000_000;
    }
    let part = if part.is_empty() { 0 } else { format!("{part:0<6}").get(..6)?.parse::<u32>().ok()? };
    Some(micros + i128::from(part))
}

/// Days since 1970 (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn days(year: i128, month: i128, day: i128) -> i128 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, month) = (year.div_euclid(400), (month + 9) % 12);
    let of_era = year - era * 400;
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - DAYS_TO_1970
}

/// As Python writes it; `None` beyond its years.
fn in_utc(moment: i128) -> Option<String> {
    let (day, micros) = (moment.div_euclid(DAY) + DAYS_TO_1970, moment.rem_euclid(DAY));
    let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i128::from(month <= 2);
    let (seconds, part) = (micros / 1_000_000, micros % 1_000_000);
    let part = if part == 0 { String::new() } else { format!(".{part:06}") };
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    (1..=9999)
        .contains(&year)
        .then(|| format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{part}+00:00"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each is smaller than the next one; those in one list are equal.
    fn is_ordered(kind: &str, texts: &[&[&str]]) {
        let of = |text: &&str| of(kind, text).ok().flatten().unwrap_or_else(|| panic!("{kind} {text}"));
        let keys: Vec<Vec<(Vec<u8>, String)>> = texts.iter().map(|equal| equal.iter().map(of).collect()).collect();
        for equal in &keys {
            assert!(equal.iter().all(|it| *it == equal[0]), "{equal:?}");
            // The text for all is one of them.
            assert_eq!(of(&&*equal[0].1), equal[0]);
        }
        for pair in keys.windows(2) {
            assert!(pair[0][0].0 < pair[1][0].0, "{:?} {:?}", pair[0], pair[1]);
        }
    }

    #[test]
    fn texts_are_ordered_by_what_they_stand_for() {
        is_ordered(
            "decimal",
            &[
                &["-Infinity"],
                &["-1E+100"],
                &["-10", "-1E+1", "-10.00"],
                &["-9.99"],
                &["-1.5"],
                &["-1.25"],
                &["-1"],
                &["-1E-7"],
                &["0", "-0", "0.000", "0E+5"],
                &["1E-999"],
                &["0.09"],
                &["0.1", "0.10"],
                &["0.101"],
                &["1.25"],
                &["1.3"],
                &["2"],
                &["10", "1E+1"],
                &["100"],
                &["1E+100"],
                &["Infinity"],
            ],
        );
        is_ordered("timedelta", &[&["-2,86399,0"], &["-1,0,0"], &["0,0,1"], &["0,10,0"], &["2,0,0"], &["10,0,0"]]);
        let (long, longer) = (format!("9{}", "0".repeat(50)), format!("1{}", "0".repeat(60)));
        let (minus_long, minus_longer) = (format!("-{long}"), format!("-{longer}"));
        is_ordered("int", &[&[&minus_longer], &[&minus_long], &[&long], &[&longer]]);
        is_ordered(
            "datetime",
            &[
                &["0001-01-01T00:00:00+00:00"],
                &["1969-12-31T23:59:59.999999+00:00"],
                &["1970-01-01T00:00:00+00:00", "1970-01-01T05:30:00+05:30", "1969-12-31T16:00:00-08:00"],
                &["2024-02-29T12:00:00+00:00"],
                &["2026-01-02T03:04:05+02:00", "2026-01-02T01:04:05+00:00", "2026-01-02T01:04:05.000000+00:00"],
                &["2026-01-02T01:04:05.5+00:00"],
                &["9999-12-31T23:59:59+00:00"],
            ],
        );
    }

    #[test]
    fn what_is_no_such_text_is_ordered_as_it_is_written() {
        let texts = [
            ("decimal", "x"),
            ("decimal", "1.2.3"),
            ("timedelta", "1,2"),
            ("datetime", "now+"),
            ("int", "-"),
            ("date", "2026"),
        ];
        for (kind, text) in texts {
            assert!(matches!(of(kind, text), Ok(None)), "{kind} {text}");
        }
        assert!(matches!(of("datetime", "2026-01-02T03:04:05"), Ok(None)), "it has no zone");
        assert!(["NaN", "sNaN", "-NaN123"].iter().all(|text| of("decimal", text).is_err()));
        // Beyond Python's years in UTC.
        assert!(matches!(of("datetime", "0001-01-01T00:00:00+14:00"), Ok(Some(_))));
    }
}
