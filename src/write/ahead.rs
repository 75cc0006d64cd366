//! Parts that go up while the file is still being written.
//!
//! Owns when a part is sent before the close. Does not own whether it still counts at the close:
//! `uploader` looks at each part again.

use std::ops::Range;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::parts;
use super::shared::{Counters, Watched};
use super::staged::Staged;
use super::state::{Mode, State, Sum};
use super::transfer::{Setback, Transfer};

/// A part to be sent, and what the object has in its place.
struct Claim {
    index: u32,
    range: Range<u64>,
    known: Option<Sum>,
}

/// While one lives, nothing more is sent ahead.
pub(super) struct Hold<'a>(&'a Staged);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.state.lock().ahead.closing -= 1;
    }
}

impl Watched for Staged {
    /// One fstat(2) where nothing changed.
    fn look(&self) {
        let seen = self.disk.seen().ok();
        let mut state = self.state.lock();
        let changed = std::mem::replace(&mut state.ahead.seen, seen) != seen;
        if changed {
            self.recharge(&mut state);
        }
        if changed || state.ahead.gave_way {
            drop(state);
            self.look_ahead();
        }
    }
}

impl Staged {
    pub(super) fn hold_ahead(&self) -> Hold<'_> {
        self.state.lock().ahead.closing += 1;
        Hold(self)
    }

    /// Begins to send if a part is full and nobody sends yet. Cheap where not.
    pub(super) fn look_ahead(&self) {
        let mut state = self.state.lock();
        if state.ahead.running || self.next_ahead(&mut state).is_none() {
            return;
        }
        let Some(me) = self.me.upgrade() else { return };
        state.ahead.running = true;
        drop(state);
        self.shared.tasks.spawn(async move { me.send_ahead().await });
    }

    /// The next part to send ahead: wholly behind the write front. Notes whether it gives way.
    fn next_ahead(&self, state: &mut State) -> Option<(u32, Range<u64>)> {
        state.ahead.gave_way = self.shared.gives_way().is_some();
        let ahead = &state.ahead;
        if ahead.gave_way
            || ahead.stopped
            || ahead.closing > 0
            || state.discarded
            || self.is_prepared_in(state)
        {
            return None;
        }
        let span = self.grid.span(ahead.next)?;
        let front = match state.mode {
            Mode::Own => state.extents.written_to(span.start),
            // Of a file that the bucket has, only the close can tell what changed.
            Mode::Passthrough if state.clean.is_some() && state.extents.keeps_base() => {
                return None;
            }
            Mode::Passthrough if self.disk.size().ok()? <= span.end => return None,
            Mode::Passthrough => self.disk.data_end(span.start).ok()?,
        };
        if !self.shared.bucket.capabilities().multipart {
            return None;
        }
        parts::next_behind(&self.grid, ahead.next, front)
    }

    fn claim(&self) -> Option<Claim> {
        let mut state = self.state.lock();
        let (index, range) = self.next_ahead(&mut state)?;
        state.ahead.next = index + 1;
        let sums = state.clean.as_ref().map(|clean| &clean.sums);
        let known = sums.and_then(|sums| sums.get(index as usize)).copied();
        // Parts are compared by their place in the grid.
        let known = known.filter(|known| known.len == range.end - range.start);
        Some(Claim { index, range, known })
    }

    async fn send_ahead(self: Arc<Self>) {
        let mut transfer = self.transfer.lock().await;
        let result = self.send_full_parts(&mut transfer).await;
        let mut state = self.state.lock();
        state.ahead.running = false;
        state.ahead.stopped = result.is_err();
        drop(state);
        match result {
            Ok(()) | Err(Setback::Changed) => {}
            Err(Setback::Gone) => self.abort(transfer.open.take()),
            Err(Setback::Failed(error)) => {
                tracing::debug!(%error, "sending ahead stops until the close");
            }
        }
    }

    async fn send_full_parts(&self, transfer: &mut Transfer) -> Result<(), Setback> {
        let mut sending = FuturesUnordered::new();
        loop {
            while sending.len() < self.shared.parallel_parts
                && let Some(Claim { index, range, known }) = self.claim()
            {
                if let Some(crc) = known.and_then(|known| known.crc)
                    && self.checksum(range.clone()).await? == Some(crc)
                {
                    continue; // the close finds it there
                }
                let (key, metadata) = {
                    let state = self.state.lock();
                    (state.key.clone(), state.metadata.clone())
                };
                let open = self.multipart(transfer, &key, &metadata).await?;
                open.forget(index);
                let target = open.target.clone();
                sending.push(async move {
                    let body = self.read_part(range).await?;
                    let part = self.send_part(&target, index, body).await?;
                    Ok::<_, Setback>((target, index, part))
                });
            }
            let Some(done) = sending.next().await else { return Ok(()) };
            let (target, index, part) = done?;
            // A new upload may have been begun meanwhile, under another key.
            let open = transfer.open.as_mut().filter(|open| Arc::ptr_eq(&open.target, &target));
            let Some(open) = open else { continue };
            open.sent[index as usize] = Some(part);
            Counters::add(&self.shared.counters.parts_sent_ahead, 1);
        }
    }
}
