//! What a manifest says of one name: a file, a symlink, an empty directory, or its removal.
//!
//! Owns names inside a checkpoint directory ([`RelPath`]) and that none leads out of it. Does not
//! own what an entry does to what was there (`protocol`).

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{RecordError, Unknown};
use crate::types::{ETag, KEY_BYTES_MAX, Name};

/// Parts of one upload: S3's bound.
pub const PARTS_MAX: usize = 10_000;
/// The longest id of an upload or a part, in bytes. S3's have some 130, GCS's some 250.
pub const UPLOAD_BYTES_MAX: usize = 2048;
/// The largest file whose bytes are copied into a record, in bytes.
pub const INLINE_BYTES_MAX: usize = 64 << 10;

/// A path below the checkpoint directory; empty: the directory itself.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelPath(Arc<str>);

impl RelPath {
    /// Refused: what is absolute, has an empty component, `.`, `..`, `.trialfs`, a control
    /// character, a component over 255 bytes, or is longer than any key.
    pub fn new(path: &str) -> Result<Self, RecordError> {
        let sound = path.is_empty() || path.split('/').all(|name| Name::new(name).is_ok());
        if !sound || path.len() > KEY_BYTES_MAX {
            return Err(RecordError::Invalid("a name that leads out of its directory".into()));
        }
        Ok(Self(path.into()))
    }

    /// The checkpoint directory itself.
    pub fn root() -> Self {
        Self("".into())
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for RelPath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl TryFrom<String> for RelPath {
    type Error = RecordError;

    fn try_from(path: String) -> Result<Self, RecordError> {
        Self::new(&path)
    }
}

impl From<RelPath> for String {
    fn from(path: RelPath) -> String {
        path.0.as_ref().into()
    }
}

/// An upload that is whole but for its completion, which can happen at most once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Upload {
    /// The store's id of it; where a store has none, what the mount staged it under.
    pub id: String,
    /// The ETag of each part, in order.
    pub parts: Vec<String>,
}

/// What one name becomes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum What {
    File {
        size: u64,
        /// CRC64NVME of the bytes.
        crc: Option<u64>,
        upload: Upload,
        /// A copy of a small file's bytes, for fast reads.
        inline: Option<Arc<[u8]>>,
    },
    /// The bytes of the upload are the target.
    Symlink { upload: Upload },
    /// An empty directory. Its marker is put where none is: stores make no marker of an upload.
    Directory,
    /// Gone, if it still is the version named here. `None`: nothing stood in the bucket.
    Removed { version: Option<ETag> },
}

/// What a manifest says of one name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Entry {
    pub name: RelPath,
    pub what: What,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Nanoseconds since 1970, negative before.
    pub mtime_ns: Option<i64>,
    pub unknown: Unknown,
}

impl Entry {
    pub fn new(name: RelPath, what: What) -> Self {
        Self { name, what, mode: None, mtime_ns: None, unknown: Unknown::new() }
    }

    /// The upload to complete, if publishing it is one.
    pub fn upload(&self) -> Option<&Upload> {
        match &self.what {
            What::File { upload, .. } | What::Symlink { upload } => Some(upload),
            What::Directory | What::Removed { .. } => None,
        }
    }

    pub(super) fn check(&self) -> Result<(), RecordError> {
        let refuse = |why: &str| Err(RecordError::Invalid(why.into()));
        if self.name.is_root() && self.what != What::Directory {
            return refuse("a file in the place of its directory");
        }
        if let What::File { size, inline: Some(bytes), .. } = &self.what
            && (bytes.len() > INLINE_BYTES_MAX || bytes.len() as u64 != *size)
        {
            return refuse("inline bytes of the wrong size");
        }
        let Some(upload) = self.upload() else { return Ok(()) };
        let long = |id: &String| id.len() > UPLOAD_BYTES_MAX || id.contains(char::is_control);
        if upload.id.is_empty() || upload.parts.len() > PARTS_MAX {
            return refuse("an upload without an id or with too many parts");
        }
        if long(&upload.id) || upload.parts.iter().any(long) {
            return refuse("an upload id that no store gives");
        }
        Ok(())
    }
}

/// An entry's fields as they stand in JSON.
#[derive(Serialize, Deserialize)]
struct Wire {
    name: RelPath,
    kind: WireKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crc64: Option<super::id::Nonce>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtime_ns: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    upload: Option<Upload>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<ETag>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inline: Option<String>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WireKind {
    File,
    Symlink,
    Directory,
    Removed,
}

impl TryFrom<Wire> for Entry {
    type Error = RecordError;

    fn try_from(wire: Wire) -> Result<Self, RecordError> {
        let refuse = |why: &str| RecordError::Invalid(why.into());
        let upload = || wire.upload.clone().ok_or(refuse("an entry without its upload"));
        let what = match wire.kind {
            WireKind::File => What::File {
                size: wire.size.ok_or(refuse("a file without its size"))?,
                crc: wire.crc64.map(|crc| crc.0),
                upload: upload()?,
                inline: wire.inline.as_deref().map(decode).transpose()?,
            },
            WireKind::Symlink => What::Symlink { upload: upload()? },
            WireKind::Directory => What::Directory,
            WireKind::Removed => What::Removed { version: wire.version },
        };
        let (mode, mtime_ns) = (wire.mode, wire.mtime_ns);
        Ok(Self { name: wire.name, what, mode, mtime_ns, unknown: wire.unknown })
    }
}

impl From<Entry> for Wire {
    fn from(entry: Entry) -> Wire {
        let upload = entry.upload().cloned();
        let (kind, size, crc, inline, version) = match entry.what {
            What::File { size, crc, inline, .. } => (WireKind::File, Some(size), crc, inline, None),
            What::Symlink { .. } => (WireKind::Symlink, None, None, None, None),
            What::Directory => (WireKind::Directory, None, None, None, None),
            What::Removed { version } => (WireKind::Removed, None, None, None, version),
        };
        Wire {
            name: entry.name,
            kind,
            size,
            crc64: crc.map(super::id::Nonce),
            mode: entry.mode,
            mtime_ns: entry.mtime_ns,
            upload,
            version,
            inline: inline.map(|bytes| STANDARD.encode(bytes)),
            unknown: entry.unknown,
        }
    }
}

fn decode(text: &str) -> Result<Arc<[u8]>, RecordError> {
    let bytes = STANDARD.decode(text);
    bytes
        .map(Into::into)
        .map_err(|_| RecordError::Invalid("inline bytes that are no base64".into()))
}
