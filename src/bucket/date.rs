//! The two ways stores write a time: HTTP's and ISO 8601's, in UTC.
//!
//! Times of objects are read to be shown to people and programs, never to decide by.

use std::time::{Duration, SystemTime};

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// `Wed, 21 Oct 2015 07:28:00 GMT`
pub fn http(text: &str) -> Option<SystemTime> {
    let (_, rest) = text.split_once(", ")?;
    let mut words = rest.split(' ');
    let day: u32 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|m| *m == month)? as u32 + 1;
    let year: i64 = words.next()?.parse().ok()?;
    time_of(year, month, day, words.next()?)
}

/// `2015-10-21T07:28:00.123Z`, with or without a fraction.
pub fn iso(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut numbers = date.split('-');
    let year: i64 = numbers.next()?.parse().ok()?;
    let month: u32 = numbers.next()?.parse().ok()?;
    let day: u32 = numbers.next()?.parse().ok()?;
    time_of(year, month, day, time)
}

/// `time` as `2015-10-21T07:28:00Z`, in whole seconds.
pub fn iso_text(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = date_of(seconds / 86_400);
    let clock = seconds % 86_400;
    let (hours, minutes, seconds) = (clock / 3600, clock / 60 % 60, clock % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}Z")
}

/// Year, month and day of a day since 1970-01-01: the reverse of [`days_since_epoch`].
fn date_of(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153; // from March
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn time_of(year: i64, month: u32, day: u32, clock: &str) -> Option<SystemTime> {
    let mut parts = clock.split(':');
    let hours: u64 = parts.next()?.parse().ok()?;
    let minutes: u64 = parts.next()?.parse().ok()?;
    let (seconds, fraction) = split_fraction(parts.next()?);
    let seconds: u64 = seconds.parse().ok()?;
    let sane = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hours < 24
        && minutes < 60
        && seconds <= 60;
    if !sane {
        return None;
    }
    let seconds =
        days_since_epoch(year, month, day) * 86_400 + hours * 3600 + minutes * 60 + seconds;
    Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos(fraction)?))
}

fn split_fraction(seconds: &str) -> (&str, &str) {
    seconds.split_once('.').unwrap_or((seconds, ""))
}

fn nanos(fraction: &str) -> Option<u32> {
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    digits.parse().ok()
}

/// Days from 1970-01-01, counting years from March so that the leap day comes last.
fn days_since_epoch(year: i64, month: u32, day: u32) -> u64 {
    let year = if month <= 2 { year - 1 } else { year } as u64;
    let month = u64::from((month + 9) % 12);
    let before = year * 365 + year / 4 - year / 100 + year / 400;
    before + (month * 153 + 2) / 5 + u64::from(day) - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Option<SystemTime> {
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }

    #[test]
    fn times_of_both_kinds_are_read() {
        assert_eq!(http("Wed, 21 Oct 2015 07:28:00 GMT"), at(1_445_412_480));
        assert_eq!(http("Thu, 01 Jan 1970 00:00:00 GMT"), at(0));
        assert_eq!(iso("2015-10-21T07:28:00Z"), at(1_445_412_480));
        assert_eq!(iso("2024-02-29T23:59:59Z"), at(1_709_251_199));
        let half = Duration::from_millis(500);
        assert_eq!(iso("1970-01-01T00:00:01.500Z"), at(1).map(|t| t + half));
    }

    #[test]
    fn a_time_that_is_written_is_read_as_it_was() {
        for days in (0..60_000).chain([2_932_896]) {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400 + 86_399);
            assert_eq!(iso(&iso_text(time)), Some(time), "{}", iso_text(time));
        }
    }

    #[test]
    fn nonsense_is_no_time() {
        for bad in ["", "yesterday", "2015-13-01T00:00:00Z", "0001-01-01T00:00:00Z", "TZ", ", "] {
            assert_eq!(iso(bad).or(http(bad)), None, "{bad}");
        }
    }
}
