//! `trialfs recover`: lists the files that never reached the bucket, and hands copies of them out.
//!
//! Owns how they are shown and where copies go. Does not own the quarantine (`write::quarantine`);
//! nothing is ever deleted there.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow, bail};

use crate::clock::Clock;
use crate::mount::{inventory, point};
use crate::write::quarantine::{self, Quarantined};

use super::args::RecoverArgs;
use super::units;

/// Copies of one name beside each other: as many versions of a file as anybody tells apart.
const VERSIONS_MAX: u32 = 10_000;

/// Lists, or copies to where `--to` says.
pub fn run(args: &RecoverArgs, clock: &dyn Clock) -> Result<()> {
    let cache = match (&args.cache_dir, &args.dir) {
        (Some(cache), _) => cache.clone(),
        (None, Some(dir)) => cache_of(dir)?,
        (None, None) => bail!("say which: a mounted directory, or --cache-dir DIR"),
    };
    let found = quarantine::list(&cache)
        .with_context(|| format!("can't read the quarantine in {}", cache.display()))?;
    if found.is_empty() {
        println!("{}: nothing is in quarantine", cache.display());
        return Ok(());
    }
    let now = clock.wall();
    for file in &found {
        match &args.to {
            None => println!("{}", line(file, now)),
            Some(to) => {
                let copy = hand_out(file, to)
                    .with_context(|| format!("can't copy {}", file.path.display()))?;
                println!("{}", copy.display());
            }
        }
    }
    Ok(())
}

fn cache_of(dir: &Path) -> Result<PathBuf> {
    let point = point::locate(dir)?;
    let found = inventory::at(&point)?.with_context(|| {
        format!("{} is not a trialfs mount; give --cache-dir instead", point.display())
    })?;
    let note = found.note.ok_or_else(|| anyhow!("another user's mount; give --cache-dir"))?;
    Ok(note.cache_dir)
}

/// Key, size, age, reason and path of one file.
pub fn line(file: &Quarantined, now: SystemTime) -> String {
    let age = units::duration(now.duration_since(file.since).unwrap_or_default());
    let why = file.why.map_or("the reason was not noted", |why| why.text());
    let (key, size) = (file.key.escape_debug(), units::size(file.size));
    format!("{key}  {size}, {age} ago: {why}  ({})", file.path.display())
}

/// A copy below `to` at the file's key; of several versions the later ones have a number behind.
fn hand_out(file: &Quarantined, to: &Path) -> io::Result<PathBuf> {
    let target = to.join(below(&file.key));
    std::fs::create_dir_all(target.parent().unwrap_or(to))?;
    for version in 0..VERSIONS_MAX {
        let mut path = target.clone();
        if version > 0 {
            path.as_mut_os_string().push(format!(".{version}"));
        }
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        match made {
            Ok(mut copy) => {
                io::copy(&mut std::fs::File::open(&file.path)?, &mut copy)?;
                return Ok(path);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// A key as a path that stays where it is put.
fn below(key: &str) -> PathBuf {
    let plain = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        _ => None,
    };
    let path: PathBuf = Path::new(key).components().filter_map(plain).collect();
    if path.as_os_str().is_empty() { "unnamed".into() } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write::Why;
    use std::time::Duration;

    fn file(path: &Path, key: &str) -> Quarantined {
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        Quarantined { path: path.into(), key: key.into(), size: 3, since, why: Some(Why::Torn) }
    }

    #[test]
    fn a_file_is_told_with_size_age_and_reason() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(165);
        let text = line(&file(Path::new("/c/q/X"), "a/b\n"), now);
        assert_eq!(text, "a/b\\n  3 B, 1m 5s ago: the process that wrote it was killed  (/c/q/X)");
    }

    #[test]
    fn no_key_leads_out_of_the_directory_and_no_copy_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        std::fs::write(&source, "abc").unwrap();
        let to = dir.path().join("to");
        for (key, name) in [("a/b", "a/b"), ("a/b", "a/b.1"), ("/../../x", "x"), ("..", "unnamed")]
        {
            assert_eq!(hand_out(&file(&source, key), &to).unwrap(), to.join(name));
            assert_eq!(std::fs::read(to.join(name)).unwrap(), b"abc");
        }
    }
}
