//! Mount URLs: from what the user typed to a [`Location`], or one line that says what is wrong.
//!
//! Pure. Owns what a URL may be and how it is shown without its secrets. Does not own how a store
//! is reached (`StoreOptions`), nor whether it exists.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, PathBuf};

use percent_encoding::percent_decode_str;

use crate::config::{Location, Secret};
use crate::types::{CONTROL_DIR, KEY_BYTES_MAX};

const SCHEMES: &str = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, \
                       https://HOST/PATH (WebDAV), file:///DIR";

/// The longest bucket or container name of S3, GCS and Azure, in bytes (GCS, with dots).
const BUCKET_BYTES_MAX: usize = 222;

/// A URL taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountUrl {
    pub location: Location,
    /// The URL without user and password: for messages, the mount table and `status`.
    pub shown: String,
    pub user: Option<String>,
    pub password: Option<Secret>,
}

/// Reads a mount URL. The error is one line and holds no secret.
pub fn parse(text: &str) -> Result<MountUrl, String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        let shown = redact(text);
        return Err(format!("`{shown}` has no scheme; a mount URL is one of {SCHEMES}"));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "s3" => bucket_url(text, "s3", rest, |bucket, prefix| Location::S3 { bucket, prefix }),
        "gs" => bucket_url(text, "gs", rest, |bucket, prefix| Location::Gcs { bucket, prefix }),
        "az" => {
            bucket_url(text, "az", rest, |container, prefix| Location::Azure { container, prefix })
        }
        "http" | "https" => webdav_url(text),
        "file" => directory_url(text, rest),
        "memory" if rest.is_empty() || rest == "/" => {
            Ok(plain(Location::Memory, "memory://".to_owned()))
        }
        "memory" => Err("memory:// takes neither host nor path".to_owned()),
        other => {
            Err(format!("`{}` is not known; a mount URL is one of {SCHEMES}", other.escape_debug()))
        }
    }
}

/// The text with whatever may be user and password blotted out. It may blot out too much: a
/// password can hold any character, also `/`.
pub fn redact(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").map_or(("", text), |(s, r)| (s, r));
    let authority = rest.split('/').next().unwrap_or_default();
    let suspicious = authority.contains('@') || authority.matches(':').count() > 0;
    let shown = match rest.rfind('@') {
        Some(at) if suspicious => format!("***{}", &rest[at..]),
        _ => rest.to_owned(),
    };
    let shown = shown.escape_debug();
    if scheme.is_empty() { shown.to_string() } else { format!("{scheme}://{shown}") }
}

fn plain(location: Location, shown: String) -> MountUrl {
    MountUrl { location, shown, user: None, password: None }
}

/// `scheme://bucket[/prefix]`; the prefix is taken as it stands, as the clouds' own tools do.
fn bucket_url(
    text: &str,
    scheme: &str,
    rest: &str,
    make: impl Fn(String, String) -> Location,
) -> Result<MountUrl, String> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(format!("`{scheme}://` lacks a bucket; write {scheme}://BUCKET/PREFIX"));
    }
    if rest.contains('@') && bucket.contains([':', '@']) {
        return Err(format!(
            "`{}`: keys do not belong into the URL; set them in the environment or a profile",
            redact(text)
        ));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._$".contains(&b);
    if bucket.len() > BUCKET_BYTES_MAX || !bucket.bytes().all(allowed) {
        return Err(format!(
            "`{}` is not a bucket name; a port or host goes to --endpoint",
            bucket.escape_debug()
        ));
    }
    let prefix = checked_prefix(prefix)?;
    let shown = match prefix.as_str() {
        "" => format!("{scheme}://{bucket}"),
        prefix => format!("{scheme}://{bucket}/{prefix}"),
    };
    Ok(plain(make(bucket.to_owned(), prefix), shown))
}

/// The prefix without slashes at its ends, if every part of it can be a directory's name.
fn checked_prefix(prefix: &str) -> Result<String, String> {
    let prefix = prefix.trim_matches('/');
    let shown = prefix.escape_debug();
    if prefix.len() > KEY_BYTES_MAX / 2 {
        return Err(format!("the prefix has more than {} bytes", KEY_BYTES_MAX / 2));
    }
    if prefix.contains('?') {
        return Err(format!("`{shown}`: a mount URL takes no `?options`; they are flags"));
    }
    if prefix.is_empty() {
        return Ok(String::new());
    }
    for part in prefix.split('/') {
        if part.is_empty() || part == "." || part == ".." || part.contains(char::is_control) {
            return Err(format!("`{shown}` can't be a prefix: a part is empty, `.`, `..` or odd"));
        }
        if part == CONTROL_DIR {
            return Err(format!("`{shown}` can't be mounted: `{CONTROL_DIR}` is trialfs's own"));
        }
    }
    Ok(prefix.to_owned())
}

fn webdav_url(text: &str) -> Result<MountUrl, String> {
    let mut url =
        url::Url::parse(text).map_err(|e| format!("`{}` is not a URL: {e}", redact(text)))?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("a WebDAV URL takes neither `?query` nor `#fragment`".to_owned());
    }
    let decode = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
    let user = (!url.username().is_empty()).then(|| decode(url.username()));
    let password = url.password().map(|password| Secret::new(decode(password)));
    // Neither fails for http and https, which always have a host.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    let shown = url.to_string();
    Ok(MountUrl { location: Location::WebDav { url: shown.clone() }, shown, user, password })
}

fn directory_url(text: &str, rest: &str) -> Result<MountUrl, String> {
    if !rest.starts_with('/') {
        return Err(format!(
            "`{}`: a directory is written with three slashes: file:///DIR",
            redact(text)
        ));
    }
    let path = PathBuf::from(OsString::from_vec(percent_decode_str(rest).collect()));
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("`{}`: write the directory without `..`", redact(text)));
    }
    let path: PathBuf = path.components().collect();
    let shown = format!("file://{}", path.display());
    Ok(plain(Location::Directory { path }, shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(text: &str) -> Location {
        parse(text).unwrap_or_else(|e| panic!("{text}: {e}")).location
    }

    #[test]
    fn each_kind_of_store_has_its_scheme() {
        let s3 = |bucket: &str, prefix: &str| Location::S3 {
            bucket: bucket.into(),
            prefix: prefix.into(),
        };
        assert_eq!(location("s3://b"), s3("b", ""));
        assert_eq!(location("S3://b/"), s3("b", ""));
        assert_eq!(location("s3://b/a b/c=1/"), s3("b", "a b/c=1"));
        assert_eq!(location("s3://b/a%20b"), s3("b", "a%20b"));
        assert_eq!(location("gs://b/p"), Location::Gcs { bucket: "b".into(), prefix: "p".into() });
        assert_eq!(
            location("az://c/p"),
            Location::Azure { container: "c".into(), prefix: "p".into() }
        );
        assert_eq!(location("file:///a/./b%20c/"), Location::Directory { path: "/a/b c".into() });
        assert_eq!(location("memory://"), Location::Memory);
        assert_eq!(
            location("https://h:8443/dav"),
            Location::WebDav { url: "https://h:8443/dav".into() }
        );
    }

    #[test]
    fn user_and_password_leave_the_url() {
        let url = parse("https://me:p%40ss@host/dav").expect("a WebDAV URL");
        assert_eq!(url.shown, "https://host/dav");
        assert_eq!(url.location, Location::WebDav { url: "https://host/dav".into() });
        assert_eq!(url.user.as_deref(), Some("me"));
        assert_eq!(url.password.as_ref().map(Secret::reveal), Some("p@ss"));
        assert!(!format!("{url:?}").contains("p@ss"));
    }

    #[test]
    fn a_wrong_url_gets_one_line_that_says_what_to_write() {
        for (text, hint) in [
            ("/data", "no scheme"),
            ("bucket/prefix", "no scheme"),
            ("ftp://h/x", "not known"),
            ("s3://", "lacks a bucket"),
            ("s3:///p", "lacks a bucket"),
            ("s3://host:9000/b", "--endpoint"),
            ("s3://b/a//c", "can't be a prefix"),
            ("s3://b/../c", "can't be a prefix"),
            ("s3://b/a\nb", "can't be a prefix"),
            ("s3://b/x/.trialfs", "own"),
            ("s3://b/p?region=x", "flags"),
            ("file://dir/x", "three slashes"),
            ("file:///a/../b", "without `..`"),
            ("http://", "not a URL"),
            ("http://h/?a=b", "query"),
            ("memory://x", "neither"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(hint), "{text}: {error}");
            assert_eq!(error.lines().count(), 1, "{error:?}");
        }
    }

    #[test]
    fn a_wrong_url_never_shows_its_secret() {
        for text in [
            "s3://KEY:se/cret@bucket/p",
            "s3://KEY:secret@bucket",
            "ftp://me:secret@host/",
            "http://me:secret@",
            "me:secret@host/p",
            "file://me:secret@host/p",
        ] {
            let error = parse(text).expect_err(text);
            assert!(!error.contains("secret") && !error.contains("cret@"), "{text}: {error}");
        }
    }
}
