//! Real text made wrong: by structure (numbers, names, tags, nesting) and by byte.
//!
//! Pure. Owns the alterations. Does not own the text nor who reads it.

use proptest::prelude::*;

/// No altered text is longer: an answer is bounded by its reader, and a test by its time.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// One alteration; positions are parts of the length, so that they fit any text.
#[derive(Debug, Clone)]
pub enum Mutation {
    Flip(u16, u8),
    Cut(u16),
    Remove(u16, u16),
    Repeat(u16, u16, u8),
    Insert(u16, usize),
    /// The nth run of digits becomes another number.
    Number(u8, usize),
    /// The nth `"..."`, or `>...<`, becomes another text.
    Text(u8, usize),
    Nest(u16, u16),
}

const NUMBERS: [&str; 10] = [
    "0",
    "-1",
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775808",
    "1e999",
    "1.5",
    "99999999999999999999999999999999",
    "007",
    "NaN",
];

fn texts() -> Vec<String> {
    let long = "n".repeat(1024);
    let fixed = [
        "",
        "/",
        "..",
        "../../etc/passwd",
        "/etc/passwd",
        "a//b",
        ".",
        "a/../b",
        "d/.trialfs/txn.x.seal.1",
        "\u{0}",
        "\u{202e}\u{feff}",
        "%2e%2e%2f",
        "%",
        "%zz",
        "%ff%fe",
        "&#0;",
        "&#x110000;",
        "&lol;",
        "<![CDATA[",
        "]]>",
        "<!DOCTYPE a [<!ENTITY b \"c\">]>",
        "<?xml?>",
        "\\u0000",
        "\\ud800",
        "\"",
        "2026-13-45T99:99:99Z",
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "-9999999-01-01T00:00:00Z",
        "true",
        "null",
        "{",
        "[",
        "d/",
        "d/k",
        "d/d/",
    ];
    fixed
        .into_iter()
        .map(str::to_owned)
        .chain([long.clone(), format!("d/{long}"), long.repeat(64)])
        .collect()
}

pub fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let one = prop_oneof![
        (any::<u16>(), any::<u8>()).prop_map(|(at, bits)| Mutation::Flip(at, bits)),
        any::<u16>().prop_map(Mutation::Cut),
        (any::<u16>(), 0..2000u16).prop_map(|(at, len)| Mutation::Remove(at, len)),
        (any::<u16>(), any::<u16>(), any::<u8>())
            .prop_map(|(at, len, n)| Mutation::Repeat(at, len, n)),
        (any::<u16>(), any::<usize>()).prop_map(|(at, what)| Mutation::Insert(at, what)),
        (any::<u8>(), any::<usize>()).prop_map(|(nth, what)| Mutation::Number(nth, what)),
        (any::<u8>(), any::<usize>()).prop_map(|(nth, what)| Mutation::Text(nth, what)),
        (any::<u16>(), any::<u16>()).prop_map(|(at, deep)| Mutation::Nest(at, deep)),
    ];
    prop::collection::vec(one, 0..6)
}

/// `text`, altered one after another.
pub fn alter(text: &[u8], mutations: &[Mutation]) -> Vec<u8> {
    let mut altered = text.to_vec();
    for mutation in mutations {
        altered = alter_once(altered, mutation);
        altered.truncate(TEXT_BYTES_MAX);
    }
    altered
}

fn alter_once(mut text: Vec<u8>, mutation: &Mutation) -> Vec<u8> {
    let at = |part: u16| text.len() * usize::from(part) / (usize::from(u16::MAX) + 1);
    match *mutation {
        Mutation::Flip(part, bits) => {
            let at = at(part);
            if let Some(byte) = text.get_mut(at) {
                *byte ^= bits;
            }
        }
        Mutation::Cut(part) => text.truncate(at(part)),
        Mutation::Remove(part, len) => {
            let start = at(part);
            let end = (start + usize::from(len)).min(text.len());
            text.drain(start..end);
        }
        Mutation::Repeat(part, len, times) => {
            let start = at(part);
            let end = (start + usize::from(len)).min(text.len());
            let piece = text[start..end].repeat(usize::from(times));
            text.splice(start..start, piece);
        }
        Mutation::Insert(part, what) => {
            let start = at(part);
            text.splice(start..start, pick(&texts(), what).bytes());
        }
        Mutation::Number(nth, what) => {
            replace(&mut text, &runs_of_digits, nth, NUMBERS[what % NUMBERS.len()])
        }
        Mutation::Text(nth, what) => replace(&mut text, &texts_within, nth, &pick(&texts(), what)),
        Mutation::Nest(part, deep) => {
            let start = at(part);
            let (open, close) = if text.starts_with(b"<") { ("<a>", "</a>") } else { ("[", "]") };
            let deep = usize::from(deep);
            text.splice(start..start, open.repeat(deep).bytes().chain(close.repeat(deep).bytes()));
        }
    }
    text
}

fn pick(texts: &[String], what: usize) -> String {
    texts[what % texts.len()].clone()
}

type Spans = dyn Fn(&[u8]) -> Vec<(usize, usize)>;

fn replace(text: &mut Vec<u8>, spans: &Spans, nth: u8, with: &str) {
    let found = spans(text);
    if !found.is_empty() {
        let (start, end) = found[usize::from(nth) % found.len()];
        text.splice(start..end, with.bytes());
    }
}

fn runs_of_digits(text: &[u8]) -> Vec<(usize, usize)> {
    let mut spans = Vec::new();
    let mut start = None;
    for (at, byte) in text.iter().chain([&0]).enumerate() {
        match (byte.is_ascii_digit(), start) {
            (true, None) => start = Some(at),
            (false, Some(from)) => {
                spans.push((from, at));
                start = None;
            }
            _ => {}
        }
    }
    spans
}

/// What stands between quotes, or between tags.
fn texts_within(text: &[u8]) -> Vec<(usize, usize)> {
    let (open, close) = if text.starts_with(b"<") { (b'>', b'<') } else { (b'"', b'"') };
    let mut spans = Vec::new();
    let mut from = None;
    for (at, byte) in text.iter().enumerate() {
        match from {
            Some(start) if *byte == close => {
                spans.push((start, at));
                from = None;
            }
            _ if *byte == open => from = Some(at + 1),
            _ => {}
        }
    }
    spans
}
