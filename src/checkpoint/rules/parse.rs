//! A user's rules, in a flag or one to a line of a file: `NAME:PATTERN[,KEY=VALUE...]`, or `orbax`
//! for that preset.
//!
//! Owns the spelling and its errors, which say what was expected. Does not own reading the file.
//!
//! | key | value | default |
//! | --- | --- | --- |
//! | `idle` | how long it must be quiet | `--commit-idle` |
//! | `sign` | a file in it that is written, or renamed to, last; repeatable | quiet is the sign |
//! | `without-sign` | `seal` (after `--commit-max`, at unmount) or `hide` | `seal` |
//! | `loss` | `alone` or `poison`: whether others commit without a dead mount's part | `alone` |
//!
//! Durations are `250ms`, `2s`, `10m` or `1h`.

use std::time::Duration;

use super::{
    DirectoryFsync, Fires, Inside, KnownBy, ORBAX, Pattern, RULES_MAX, Rule, WithoutSign, orbax,
};
use crate::checkpoint::record::Loss;

/// The longest file of rules, in bytes.
pub const RULES_BYTES_MAX: usize = 64 << 10;

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    #[error("`{0}`: a rule is NAME:PATTERN[,KEY=VALUE...], or `orbax`")]
    Form(String),
    #[error("`{0}`: {pattern}", pattern = super::pattern::BadPattern)]
    Pattern(String),
    #[error("`{0}`: the keys are idle, sign, without-sign (seal, hide) and loss (alone, poison)")]
    Key(String),
    #[error("`{0}` is no duration: 250ms, 2s, 10m, 1h")]
    Duration(String),
    #[error("line {0}: {1}")]
    Line(usize, Box<RuleError>),
    #[error("more than {RULES_MAX} rules, or more than {RULES_BYTES_MAX} bytes of them")]
    TooMany,
}

/// The rule of one flag; `idle` is the default for it.
pub fn rule_from_flag(text: &str, idle: Duration) -> Result<Rule, RuleError> {
    if text.trim() == ORBAX {
        return Ok(orbax(idle));
    }
    let form = || RuleError::Form(text.into());
    let (name, rest) = text.trim().split_once(':').ok_or_else(form)?;
    let mut fields = rest.split(',');
    let pattern = pattern(fields.next().ok_or_else(form)?)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        return Err(form());
    }
    let mut rule = Rule {
        name: name.into(),
        known_by: KnownBy::Name(vec![pattern]),
        fires: Fires::Quiet,
        idle,
        without_sign: WithoutSign::Seal,
        loss: Loss::Alone,
        directory_fsync: DirectoryFsync::Commits,
    };
    let mut signs = Vec::new();
    for field in fields {
        match field.split_once('=').ok_or_else(form)? {
            ("idle", value) => rule.idle = duration(value)?,
            ("sign", value) => {
                signs.push(Inside::Closed(self::pattern(value)?));
                signs.push(Inside::RenamedTo(self::pattern(value)?));
            }
            ("without-sign", "seal") => rule.without_sign = WithoutSign::Seal,
            ("without-sign", "hide") => rule.without_sign = WithoutSign::StayHidden,
            ("loss", "alone") => rule.loss = Loss::Alone,
            ("loss", "poison") => rule.loss = Loss::Poison,
            _ => return Err(RuleError::Key(field.into())),
        }
    }
    if !signs.is_empty() {
        rule.fires = Fires::Event { events: signs, quiet: rule.idle };
    }
    Ok(rule)
}

/// The rules of a file: one to a line, empty lines and what follows `#` left out.
pub fn rules_from_file(text: &str, idle: Duration) -> Result<Vec<Rule>, RuleError> {
    if text.len() > RULES_BYTES_MAX {
        return Err(RuleError::TooMany);
    }
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or("").trim());
    let lines = lines.enumerate().filter(|(_, line)| !line.is_empty());
    let rules = lines.map(|(at, line)| {
        rule_from_flag(line, idle).map_err(|error| RuleError::Line(at + 1, Box::new(error)))
    });
    let rules: Vec<Rule> = rules.collect::<Result<_, _>>()?;
    if rules.len() > RULES_MAX { Err(RuleError::TooMany) } else { Ok(rules) }
}

fn pattern(text: &str) -> Result<Pattern, RuleError> {
    Pattern::new(text.trim()).map_err(|_| RuleError::Pattern(text.into()))
}

fn duration(text: &str) -> Result<Duration, RuleError> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(RuleError::Duration(text.into())),
    };
    let number: u64 = number.parse().map_err(|_| RuleError::Duration(text.into()))?;
    let all = number.checked_mul(ms).ok_or_else(|| RuleError::Duration(text.into()))?;
    Ok(Duration::from_millis(all))
}
