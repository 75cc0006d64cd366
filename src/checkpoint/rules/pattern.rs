//! Patterns of one name: `*` is any text, `?` any character, `<n>` one or more digits.
//!
//! Owns that matching takes time in proportion to pattern times name, whatever both hold.

/// The longest pattern, in bytes: a name's longest.
pub const PATTERN_BYTES_MAX: usize = crate::types::NAME_BYTES_MAX;

/// A pattern of one component of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<Token>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Char(char),
    AnyChar,
    AnyText,
    Digits,
}

/// A text that is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pattern is 1 to {PATTERN_BYTES_MAX} bytes of one name, without `/`")]
pub struct BadPattern;

impl Pattern {
    pub fn new(text: &str) -> Result<Self, BadPattern> {
        if text.is_empty() || text.len() > PATTERN_BYTES_MAX || text.contains('/') {
            return Err(BadPattern);
        }
        let mut tokens = Vec::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let (token, length) = match first {
                '*' => (Token::AnyText, 1),
                '?' => (Token::AnyChar, 1),
                '<' if rest.starts_with("<n>") => (Token::Digits, 3),
                other => (Token::Char(other), other.len_utf8()),
            };
            tokens.push(token);
            rest = &rest[length..];
        }
        Ok(Self(tokens))
    }

    /// Of a text in the source, which is known to be one.
    pub(super) fn known(text: &str) -> Self {
        Self::new(text).expect("a preset's pattern is sound")
    }

    pub fn matches(&self, name: &str) -> bool {
        // Most names are told by how they begin, at every step in a directory.
        let begins = self.0.iter().zip(name.chars()).find_map(|(token, c)| match token {
            Token::Char(wanted) if *wanted == c => None,
            Token::Char(_) => Some(false),
            _ => Some(true),
        });
        if begins == Some(false) {
            return false;
        }
        let name: Vec<char> = name.chars().collect();
        // ends[i]: the tokens so far match the first i characters.
        let mut ends = vec![false; name.len() + 1];
        ends[0] = true;
        for token in &self.0 {
            let mut next = vec![false; name.len() + 1];
            for at in 0..=name.len() {
                next[at] = match token {
                    Token::AnyText => ends[at] || at > 0 && next[at - 1],
                    Token::AnyChar => at > 0 && ends[at - 1],
                    Token::Char(wanted) => at > 0 && ends[at - 1] && name[at - 1] == *wanted,
                    Token::Digits => {
                        at > 0 && name[at - 1].is_ascii_digit() && (ends[at - 1] || next[at - 1])
                    }
                };
            }
            ends = next;
        }
        ends[name.len()]
    }
}
