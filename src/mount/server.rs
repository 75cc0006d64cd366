//! The daemon's end of the control socket.
//!
//! Owns the socket and its bounds. Does not own what is asked (`control`), nor what follows of it
//! (`life`). Whoever reaches the socket is this user or root: its directory is 0700.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::control::{self, Event, How, Request};
use super::life::{EVENTS_MAX, Tree, Wish};

/// Clients served at a time; more wait in the kernel's queue.
const CLIENTS_MAX: usize = 16;
/// The longest request, in bytes.
const REQUEST_BYTES_MAX: u64 = 4096;
/// A client that neither asks nor takes its answer within this is dropped.
const PATIENCE_S_MAX: Duration = Duration::from_secs(10);

/// A socket at `path`, over a dead one's remains.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => UnixListener::bind(path),
    }
}

/// Answers clients for ever; wishes to unmount go to `wishes`.
pub async fn serve(listener: UnixListener, tree: Arc<dyn Tree>, wishes: mpsc::Sender<Wish>) {
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (tree, wishes) = (tree.clone(), wishes.clone());
                tokio::spawn(async move {
                    if let Err(e) = answer(stream, tree.as_ref(), wishes).await {
                        tracing::debug!("a control client was dropped: {e}");
                    }
                    drop(place);
                });
            }
            Err(e) => {
                tracing::warn!("the control socket fails: {e}");
                tokio::time::sleep(PATIENCE_S_MAX).await; // out of descriptors: not a busy loop
            }
        }
    }
}

async fn answer(stream: UnixStream, tree: &dyn Tree, wishes: mpsc::Sender<Wish>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    match timeout(PATIENCE_S_MAX, request(&mut reader)).await?? {
        Some(Request::Status) => write(&mut writer, &Event::Status { status: tree.status() }).await,
        Some(Request::Sweep { older_than_s, dry_run }) => {
            let swept = tree.sweep(Duration::from_secs(older_than_s), dry_run).await;
            let event = match swept {
                Ok(swept) => Event::Swept { swept },
                Err(reason) => Event::Failed { reason },
            };
            write(&mut writer, &event).await
        }
        Some(Request::Unmount { how }) => unmount(&mut reader, &mut writer, wishes, how).await,
        Some(Request::Abandon) | None => Ok(()),
    }
}

/// Passes events on until the last; drops the wish when the client hangs up.
async fn unmount(
    reader: &mut BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
    wishes: mpsc::Sender<Wish>,
    how: How,
) -> io::Result<()> {
    let (events, mut news) = mpsc::channel(EVENTS_MAX);
    let (give_up, abandon) = oneshot::channel();
    let mut give_up = Some(give_up);
    if wishes.send(Wish { how, events, abandon }).await.is_err() {
        return Ok(()); // the mount ends already
    }
    loop {
        tokio::select! {
            event = news.recv() => {
                let Some(event) = event else { return Ok(()) };
                write(writer, &event).await?;
                if event.is_last() {
                    return Ok(());
                }
            }
            asked = request(reader) => match asked? {
                Some(Request::Abandon) => {
                    if let Some(give_up) = give_up.take() {
                        let _ = give_up.send(()); // it may be past the point where it matters
                    }
                }
                Some(_) => return Err(ErrorKind::InvalidData.into()),
                None => return Ok(()),
            },
        }
    }
}

/// The next request; `None` at the end. Cancelling it in the middle of a line loses the line, which
/// no client of ours sends in pieces.
async fn request(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Request>> {
    let mut line = Vec::new();
    reader.take(REQUEST_BYTES_MAX).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    control::decode(&line).map(Some).ok_or_else(|| ErrorKind::InvalidData.into())
}

async fn write(writer: &mut OwnedWriteHalf, event: &Event) -> io::Result<()> {
    timeout(PATIENCE_S_MAX, writer.write_all(&control::encode(event))).await?
}
