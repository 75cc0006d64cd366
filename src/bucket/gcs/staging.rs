//! Where an upload waits until it is moved to its key, and the id that says so.
//!
//! Pure. An upload id is a ULID, `/`, and the store's own id of the upload on the staging key
//! `<dir>/.trialfs/data.<ULID>`, where `<dir>` is that of the key or, where the whole would be
//! longer than keys may be, the nearest above it that fits.

use crate::bucket::error::BucketError;
use crate::types::{CONTROL_DIR, Key};

/// What an upload id says, for one key.
#[derive(Debug, PartialEq, Eq)]
pub struct Staging<'a> {
    pub key: Key,
    /// The store's own id.
    pub upload: &'a str,
}

impl<'a> Staging<'a> {
    pub fn of(key: &Key, upload: &'a str) -> Result<Self, BucketError> {
        let (id, upload) = upload.split_once('/').ok_or(BucketError::NotFound)?;
        Ok(Self { key: self::key(key, id), upload })
    }
}

pub fn upload_id(id: &str, upload: &str) -> String {
    format!("{id}/{upload}")
}

/// The staging key of the upload `id` for `of`.
pub fn key(of: &Key, id: &str) -> Key {
    let mut dir = parent(of.as_str().trim_end_matches('/'));
    loop {
        let inside = dir
            .strip_suffix('/')
            .is_some_and(|dir| dir == CONTROL_DIR || dir.ends_with(&format!("/{CONTROL_DIR}")));
        let control = if inside { String::new() } else { format!("{CONTROL_DIR}/") };
        let staged = Key::new(format!("{dir}{control}data.{id}"));
        if staged.fits() || dir.is_empty() {
            return staged;
        }
        dir = parent(dir.trim_end_matches('/'));
    }
}

/// Up to and with the last `/`.
fn parent(path: &str) -> &str {
    path.rfind('/').map_or("", |at| &path[..=at])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::KEY_BYTES_MAX;

    #[test]
    fn an_upload_waits_beside_its_key_out_of_sight() {
        for (of, expected) in [
            ("a/b/c", "a/b/.trialfs/data.ID"),
            ("c", ".trialfs/data.ID"),
            ("a/b/", "a/.trialfs/data.ID"),
            ("a/.trialfs/probe.x", "a/.trialfs/data.ID"),
            (".trialfs/probe.x", ".trialfs/data.ID"),
            ("a.trialfs/x", "a.trialfs/.trialfs/data.ID"),
        ] {
            assert_eq!(key(&Key::new(of), "ID").as_str(), expected, "{of}");
        }
    }

    #[test]
    fn the_longest_key_can_be_uploaded_too() {
        let deep = format!("top/{}/{}/x", "d".repeat(500), "e".repeat(517));
        let of = Key::new(deep);
        assert!(of.fits() && of.as_str().len() > KEY_BYTES_MAX - 10);
        let staged = key(&of, "01ARZ3NDEKTSV4RRFFQ69G5FAV");
        assert!(staged.fits());
        assert!(
            staged.as_str().starts_with("top/d") && staged.as_str().contains("/.trialfs/data.")
        );
    }

    #[test]
    fn an_id_says_the_same_to_every_mount() {
        let id = upload_id("ID", "store/own");
        let expected = Staging { key: Key::new("d/.trialfs/data.ID"), upload: "store/own" };
        assert_eq!(Staging::of(&Key::new("d/k"), &id), Ok(expected));
        assert_eq!(Staging::of(&Key::new("d/k"), "foreign"), Err(BucketError::NotFound));
    }
}
