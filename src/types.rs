//! The words that every floor uses: keys, names, ETags, and the few numbers the kernel knows
//! things by.
//!
//! Owns no behaviour beyond saying whether a string is a valid one of these.

use std::fmt;

/// The longest key that S3, GCS and Azure take, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// The longest name Linux takes, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// The name under which everything of ours lives, in any directory; the mount hides it.
pub const CONTROL_DIR: &str = ".trialfs";

/// The key of an object, relative to the root of its bucket, byte for byte as the store has it.
///
/// A key that ends in `/` is a directory marker. The type promises nothing about hostile content:
/// what POSIX can't name is filtered where a [`Name`] is made of it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether stores take a key of this length.
    pub fn fits(&self) -> bool {
        self.0.len() <= KEY_BYTES_MAX
    }

    /// Whether this names a directory marker (`dir/`) and not a file.
    pub fn is_marker(&self) -> bool {
        self.0.ends_with('/')
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// The store's word for one version of an object: an ETag, or a generation on GCS. Compared, never
/// parsed.
#[derive(
    Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct ETag(pub String);

/// One component of a path: valid UTF-8, no `/`, no control character, neither empty, `.` nor `..`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Name(Box<str>);

/// Why a string is not a [`Name`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadName {
    /// Empty, `.`, `..`, with a `/`, not UTF-8 or with a control character.
    Unnameable,
    /// Over [`NAME_BYTES_MAX`].
    TooLong,
    /// [`CONTROL_DIR`], which is ours.
    Reserved,
}

impl Name {
    pub fn new(name: &str) -> Result<Self, BadName> {
        if name.len() > NAME_BYTES_MAX {
            return Err(BadName::TooLong);
        }
        if name == CONTROL_DIR {
            return Err(BadName::Reserved);
        }
        let odd = |c: char| c == '/' || c.is_control();
        if name.is_empty() || name == "." || name == ".." || name.contains(odd) {
            return Err(BadName::Unnameable);
        }
        Ok(Self(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An inode number, as the kernel knows it. The root is 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Ino(pub u64);

impl Ino {
    pub const ROOT: Ino = Ino(1);
}

/// What a directory entry is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_posix_or_we_can_not_have_are_refused() {
        for bad in ["", ".", "..", "a/b", "a\n", "\u{7f}"] {
            assert_eq!(Name::new(bad), Err(BadName::Unnameable), "{bad:?}");
        }
        assert_eq!(Name::new(".trialfs"), Err(BadName::Reserved));
        assert_eq!(Name::new(&"x".repeat(256)), Err(BadName::TooLong));
        assert!(Name::new(&"x".repeat(255)).is_ok());
        assert!(Name::new("lr=0.1,bs=[32]..").is_ok());
    }
}
