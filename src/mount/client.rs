//! The asking end of a daemon's control socket: blocking, and never for longer than a stated bound.
//!
//! Does not own what is asked or answered (`control`).

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::control::{self, Event, LINE_BYTES_MAX, Request};
use super::point::bounded;

/// A daemon that takes longer to answer a question is said not to answer.
pub const ANSWER_MS_MAX: Duration = Duration::from_millis(3000);

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
}

/// What came within the time.
#[derive(Debug)]
pub enum Heard {
    Event(Event),
    /// Nothing yet.
    Silence,
    /// The daemon closed the connection: it has ended.
    End,
}

impl Client {
    /// [`ErrorKind::ConnectionRefused`] or `NotFound` where no daemon listens, `TimedOut` where it
    /// does not accept within [`ANSWER_MS_MAX`].
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let path = socket.to_owned();
        let stream = bounded(ANSWER_MS_MAX, move || UnixStream::connect(path))
            .ok_or(ErrorKind::TimedOut)??;
        stream.set_write_timeout(Some(ANSWER_MS_MAX))?;
        Ok(Self { stream: BufReader::new(stream), line: Vec::new() })
    }

    pub fn send(&mut self, request: &Request) -> io::Result<()> {
        self.stream.get_mut().write_all(&control::encode(request))
    }

    /// The next event, waiting for at most `wait`.
    pub fn hear(&mut self, wait: Duration) -> io::Result<Heard> {
        self.stream.get_ref().set_read_timeout(Some(wait))?;
        match self.stream.read_until(b'\n', &mut self.line) {
            Ok(_) if self.line.last() != Some(&b'\n') => Ok(Heard::End),
            Ok(_) => {
                let event = control::decode(&self.line);
                self.line.clear();
                event.map(Heard::Event).ok_or_else(|| ErrorKind::InvalidData.into())
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                match self.line.len() {
                    0..=LINE_BYTES_MAX => Ok(Heard::Silence),
                    _ => Err(ErrorKind::InvalidData.into()),
                }
            }
            Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(Heard::End),
            Err(e) => Err(e),
        }
    }
}

/// Asks a daemon how it does; [`ErrorKind::TimedOut`] if it does not say within [`ANSWER_MS_MAX`].
pub fn status(socket: &Path) -> io::Result<serde_json::Value> {
    let mut client = Client::connect(socket)?;
    client.send(&Request::Status)?;
    match client.hear(ANSWER_MS_MAX)? {
        Heard::Event(Event::Status { status }) => Ok(status),
        Heard::Event(_) => Err(ErrorKind::InvalidData.into()),
        Heard::Silence => Err(ErrorKind::TimedOut.into()),
        Heard::End => Err(ErrorKind::ConnectionRefused.into()),
    }
}

/// Has a daemon give up what dead nodes left; `TimedOut` if it takes longer than `wait`.
pub fn sweep(
    socket: &Path,
    (older_than, dry_run): (Duration, bool),
    wait: Duration,
) -> io::Result<Result<serde_json::Value, String>> {
    let mut client = Client::connect(socket)?;
    client.send(&Request::Sweep { older_than_s: older_than.as_secs(), dry_run })?;
    match client.hear(wait)? {
        Heard::Event(Event::Swept { swept }) => Ok(Ok(swept)),
        Heard::Event(Event::Failed { reason }) => Ok(Err(reason)),
        Heard::Event(_) => Err(ErrorKind::InvalidData.into()),
        Heard::Silence => Err(ErrorKind::TimedOut.into()),
        Heard::End => Err(ErrorKind::ConnectionRefused.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_daemon_that_hangs_does_not_hang_the_client() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).expect("binds");
        let mut client = Client::connect(&socket).expect("the kernel accepts");
        client.send(&Request::Status).expect("sends");
        let wait = Duration::from_millis(10);
        assert!(matches!(client.hear(wait), Ok(Heard::Silence)));
        let (mut daemon, _) = listener.accept().expect("accepts");
        daemon.write_all(b"{\"event\":").expect("writes");
        assert!(matches!(client.hear(wait), Ok(Heard::Silence)));
        daemon.write_all(b"\"busy\"}\n").expect("writes");
        assert!(matches!(client.hear(ANSWER_MS_MAX), Ok(Heard::Event(Event::Busy))));
        drop(daemon);
        assert!(matches!(client.hear(ANSWER_MS_MAX), Ok(Heard::End)));
    }

    #[test]
    fn a_socket_without_a_daemon_is_told_from_one_that_hangs() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("s");
        drop(UnixListener::bind(&socket).expect("binds"));
        let error = status(&socket).expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}
