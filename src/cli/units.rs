//! Sizes and durations as people write them (`10GiB`, `120s`), and as they like to read them.
//!
//! Pure. Does not own which option means which; that is `args`.

use std::time::Duration;

const SIZE_UNITS: [(&str, u64); 13] = [
    ("tib", 1 << 40),
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("tb", 1_000_000_000_000),
    ("gb", 1_000_000_000),
    ("mb", 1_000_000),
    ("kb", 1_000),
    ("t", 1 << 40),
    ("g", 1 << 30),
    ("m", 1 << 20),
    ("k", 1 << 10),
    ("b", 1),
];

const DURATION_UNITS: [(&str, f64); 5] =
    [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86400.0)];

/// A size in bytes: `4096`, `512MiB`, `1.5G` (binary), `10GB` (decimal). At least one byte.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let (number, unit) = split_unit(&lower, &SIZE_UNITS).unwrap_or((lower.as_str(), 1));
    let bytes = parse_number(number).map(|n| n * unit as f64).unwrap_or(f64::NAN);
    if (1.0..9e18).contains(&bytes) {
        return Ok(bytes as u64);
    }
    Err(format!("`{text}` is not a size; write for instance 512MiB, 10GiB or 2TB"))
}

/// A duration: `120s`, `500ms`, `2m`, `1h`, or a bare number of seconds. At least 1 ms.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let lower = text.trim().to_ascii_lowercase();
    let (number, unit) = split_unit(&lower, &DURATION_UNITS).unwrap_or((lower.as_str(), 1.0));
    let seconds = parse_number(number).map(|n| n * unit).unwrap_or(f64::NAN);
    if (0.001..1e9).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(format!("`{text}` is not a duration; write for instance 120s, 2m or 500ms"))
}

/// A umask in octal: `022`, `0077`.
pub fn parse_umask(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mask) if mask <= 0o777 => Ok(mask),
        _ => Err(format!("`{text}` is not a umask; write octal, for instance 022")),
    }
}

/// `1.2 GiB`, `0 B`.
pub fn size(bytes: u64) -> String {
    let units = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (name, unit) in units {
        if bytes >= unit {
            return format!("{:.1} {name}", bytes as f64 / unit as f64);
        }
    }
    format!("{bytes} B")
}

/// `3d 4h`, `12m 5s`, `7s`.
pub fn duration(length: Duration) -> String {
    let seconds = length.as_secs();
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

fn split_unit<'a, U: Copy>(text: &'a str, units: &[(&str, U)]) -> Option<(&'a str, U)> {
    units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?.trim_end(), *unit)))
}

/// Plain digits with at most one point: neither `inf` nor `1e9`, which `f64` would take.
fn parse_number(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_written() {
        for (text, bytes) in [
            ("4096", 4096),
            ("10GiB", 10 << 30),
            ("10gib", 10 << 30),
            ("1.5G", 3 << 29),
            ("2TB", 2_000_000_000_000),
            ("512 MiB", 512 << 20),
            ("7b", 7),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "0", "GiB", "-1", "1e9", "inf", "ten", "1.2.3M", "99999999TiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_read_as_written() {
        for (text, ms) in [("120s", 120_000), ("120", 120_000), ("2m", 120_000), ("500ms", 500)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "0", "s", "-1s", "1w", "forever"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_umask_is_octal() {
        assert_eq!(parse_umask("022"), Ok(0o22));
        assert!(parse_umask("8").is_err() && parse_umask("1000").is_err());
    }

    #[test]
    fn numbers_are_shown_short() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(duration(Duration::from_secs(3 * 3600 + 12 * 60)), "3h 12m");
        assert_eq!(duration(Duration::from_secs(65)), "1m 5s");
    }
}
