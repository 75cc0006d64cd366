//! What `status` and `unmount` say to a daemon over its socket, and what it answers: one JSON
//! object a line.
//!
//! Pure: the words and their encoding. The daemon's end is `server`, the other `client`.

use serde::{Deserialize, Serialize};

/// The longest line either side takes; a status names at most some hundred keys.
pub const LINE_BYTES_MAX: usize = 4 << 20;

/// What a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// Answered by one [`Event::Status`].
    Status,
    /// Answered by [`Event::Progress`] again and again, then one event that [`Event::is_last`].
    Unmount { how: How },
    /// Gives up what dead nodes left of checkpoint directories. Answered by one [`Event::Swept`] or
    /// [`Event::Failed`].
    Sweep { older_than_s: u64, dry_run: bool },
    /// While an unmount goes on: don't wait for what is left to upload.
    Abandon,
}

/// How hard to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Only if everything is uploaded and nothing is open.
    Clean,
    /// If everything is uploaded; the mount ends when the last file is closed.
    Lazy,
    /// Whatever is open or left.
    Force,
}

/// What is still to be uploaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    pub files: u64,
    pub bytes: u64,
}

/// What a daemon answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Status {
        status: serde_json::Value,
    },
    Swept {
        swept: serde_json::Value,
    },
    /// Uploads go on.
    Progress {
        left: Left,
    },
    /// Something in the mount is open; it stays mounted.
    Busy,
    /// These files can't be uploaded; it stays mounted.
    NotUploaded {
        files: u64,
    },
    /// It is out of the tree and the daemon ends; files left are still staged in the cache
    /// directory.
    Unmounted {
        files_left: u64,
    },
    /// It is out of the tree; the daemon ends when the last open file is closed.
    Detached,
    /// The kernel or fusermount3 refused; it stays mounted.
    Failed {
        reason: String,
    },
}

impl Event {
    /// Whether no further event follows.
    pub fn is_last(&self) -> bool {
        !matches!(self, Event::Progress { .. })
    }
}

/// One line, its end included.
pub fn encode<T: Serialize>(word: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(word).unwrap_or_default(); // our own types always encode
    line.push(b'\n');
    line
}

/// One line back; `None` for what the other side should not have said.
pub fn decode<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Option<T> {
    serde_json::from_slice(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_wire() {
        let request = Request::Unmount { how: How::Lazy };
        assert_eq!(encode(&request), b"{\"do\":\"unmount\",\"how\":\"lazy\"}\n");
        assert_eq!(decode::<Request>(&encode(&request)), Some(request));
        let event = Event::Progress { left: Left { files: 2, bytes: 7 } };
        assert_eq!(decode::<Event>(&encode(&event)), Some(event.clone()));
        assert!(!event.is_last() && Event::Busy.is_last());
        assert_eq!(decode::<Request>(b"{\"do\":\"format the disk\"}"), None);
    }
}
