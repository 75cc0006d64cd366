//! Listings of a directory in pages that each cost a stat per entry, and one walk for all of them.
//!
//! Owns the walk, and what of it is left out. Does not own the snapshots that pages are cut from.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crate::bucket::dir::attributes::{self, read_error};
use crate::bucket::dir::beneath::Beneath;
use crate::bucket::dir::disk::{Disk, TMP_DIR};
use crate::bucket::error::BucketError;
use crate::bucket::pages::{Snapshots, Token};
use crate::bucket::store::{ListedObject, Page};
use crate::types::{CONTROL_DIR, Key};

/// Directories below one another: a path of `KEY_BYTES_MAX` has no more.
const DEPTH_MAX: usize = 512;

/// One page of the names in `snapshots`: keys, of directories with `/` at their end.
pub fn page(
    snapshots: &Snapshots<String>,
    disk: &Disk,
    prefix: &str,
    delimiter: bool,
    token: Option<&str>,
    max: u16,
) -> Result<Page, BucketError> {
    let token = token.and_then(Token::parse);
    let names = match snapshots.kept(token.as_ref()) {
        Some(names) => names,
        None => Arc::new(names(disk, prefix, delimiter)?),
    };
    let (range, next) = snapshots.cut(&names, token.as_ref(), max, &*disk.clock);
    let mut page = Page { next, ..Page::default() };
    for name in &names[range] {
        add(disk, &mut page, prefix, delimiter, name)?;
    }
    Ok(page)
}

/// Adds one name to a page, unless it went meanwhile.
fn add(
    disk: &Disk,
    page: &mut Page,
    prefix: &str,
    delimiter: bool,
    name: &str,
) -> Result<(), BucketError> {
    if delimiter && name.ends_with('/') && name != prefix {
        page.prefixes.push(name.to_owned());
        return Ok(());
    }
    let mut dirs: Vec<&str> = name.trim_end_matches('/').split('/').collect();
    let last = dirs.pop().unwrap_or_default();
    let found = disk.walk(&dirs).and_then(|dir| fs::symlink_metadata(dir.entry(last)));
    let stat = match found.map_err(read_error) {
        Err(BucketError::NotFound) => return Ok(()),
        result => result?,
    };
    let info = attributes::info(&stat, Default::default());
    let (size, etag, modified) = (info.size, info.etag, info.modified);
    page.objects.push(ListedObject { key: Key::new(name), size, etag, modified });
    Ok(())
}

/// All names below `prefix`, the marker of the directory itself first; none if there is no
/// directory. One that ends within a name: those of its directory that go on from there.
fn names(disk: &Disk, prefix: &str, delimiter: bool) -> Result<Vec<String>, BucketError> {
    let directory = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
    if directory != prefix {
        let mut names = names(disk, directory, delimiter)?;
        names.retain(|name| name.starts_with(prefix));
        return Ok(names);
    }
    let dirs: Vec<&str> = prefix.split_terminator('/').collect();
    let odd = |dir: &&str| matches!(*dir, "" | "." | "..") || dir.contains('\0');
    if dirs.iter().any(odd) {
        return Ok(Vec::new());
    }
    let dir = match disk.walk(&dirs).map_err(read_error) {
        Err(BucketError::NotFound) => return Ok(Vec::new()),
        result => result?,
    };
    let mut names = Vec::new();
    if !prefix.is_empty() {
        names.push(prefix.to_owned());
    }
    let depth = if delimiter { 0 } else { DEPTH_MAX };
    collect(&dir, prefix, depth, &mut names).map_err(read_error)?;
    names.sort_unstable();
    Ok(names)
}

/// Adds the entries of `dir` and, as deep as told, of the directories in it. Left out are links,
/// special files, names that are not UTF-8, and our own directory.
fn collect(dir: &Beneath, prefix: &str, depth: usize, names: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir.itself())? {
        let entry = entry?;
        let kind = match entry.file_type() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            kind => kind?,
        };
        let file_name = entry.file_name();
        let Ok(name) = std::str::from_utf8(file_name.as_bytes()) else { continue };
        if name == TMP_DIR && prefix.strip_suffix('/') == Some(CONTROL_DIR) {
            continue;
        }
        if kind.is_file() {
            names.push(format!("{prefix}{name}"));
        } else if kind.is_dir() {
            let below = format!("{prefix}{name}/");
            if depth > 0 {
                match dir.enter(name) {
                    Ok(dir) => collect(&dir, &below, depth - 1, names)?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
            }
            names.push(below);
        }
    }
    Ok(())
}
