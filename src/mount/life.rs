//! A mount from ready to gone: wishes to unmount, signals, and the end of the kernel's side.
//!
//! Owns the order in which a mount ends. Nothing is thrown away: what can't be uploaded within the
//! bounds stays staged in the cache directory. Does not own how to upload (`Tree`, implemented
//! above) nor how to unmount (`Detach`).
//!
//! ```text
//! wish:    drain --> unmount --> wait for the kernel --> drain again --> end
//!            |          +-- busy, not forced: stays mounted
//!            +-- not uploaded, not forced: stays mounted;  client gone: stays mounted
//!            +-- forced, and not done within FORCED_DRAIN_S_MAX: it ends whatever is left
//! signal:  the same, within STOP_DRAIN_S_MAX, and it ends whatever is left
//! umount(8): the kernel's side is gone --> drain --> end
//! ```

use std::io::{self, ErrorKind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::control::{Event, How, Left};
use super::kernel::Busy;

/// A drain after a signal: systemd kills 90 s after its SIGTERM.
pub const STOP_DRAIN_S_MAX: Duration = Duration::from_secs(80);
/// A drain that is forced: what takes longer is left staged. Time for small files and records, and
/// no wait to somebody whose store hangs.
const FORCED_DRAIN_S_MAX: Duration = Duration::from_secs(3);
/// A drain that nobody waits for is given up when nothing moved for so long.
const STALL_S_MAX: Duration = Duration::from_secs(300);
/// How often a waiting client hears of the uploads.
const PROGRESS_MS: Duration = Duration::from_millis(250);
/// A mount that was just closed may look busy for a moment: so many tries, so far apart.
const BUSY_TRIES_MAX: u32 = 10;
const BUSY_PAUSE_MS: Duration = Duration::from_millis(100);
/// The kernel ends an unused mount at once.
const END_MS_MAX: Duration = Duration::from_millis(3000);
/// One that is detached may have been unused all the same; else it is not worth a wait.
const DETACHED_END_MS_MAX: Duration = Duration::from_millis(300);
/// How long a client may take to hear the last event; it waits for it, so this is short.
const GOODBYE_S_MAX: Duration = Duration::from_secs(2);
/// Events a slow client may lag behind; progress beyond is dropped, the last event is not.
pub const EVENTS_MAX: usize = 16;

/// What a life needs to know of the mounted tree.
#[async_trait]
pub trait Tree: Send + Sync {
    /// Uploads what is closed and not yet in the bucket; how many files could not be. Dropping the
    /// future stops the waiting, not the uploads.
    async fn drain(&self) -> u64;
    fn left(&self) -> Left;
    fn status(&self) -> serde_json::Value;
    /// Gives up what dead nodes left of checkpoint directories, or only tells.
    async fn sweep(&self, older_than: Duration, dry_run: bool)
    -> Result<serde_json::Value, String>;
}

/// Takes the mount out of the tree; [`ErrorKind::InvalidInput`] if it is out already.
pub type Detach = Arc<dyn Fn(Busy) -> io::Result<()> + Send + Sync>;

/// A client's wish to unmount.
#[derive(Debug)]
pub struct Wish {
    pub how: How,
    /// Closed when the client goes; then it no longer wishes.
    pub events: mpsc::Sender<Event>,
    /// Fires when the client does not want to wait for uploads any more.
    pub abandon: oneshot::Receiver<()>,
}

/// A mount that answers.
pub struct Life {
    pub tree: Arc<dyn Tree>,
    pub detach: Detach,
    /// True once the kernel's side is gone.
    pub ended: watch::Receiver<bool>,
    /// One for each SIGTERM, SIGINT or SIGHUP.
    pub stops: mpsc::Receiver<()>,
}

/// How waiting for a drain came out.
enum Drained {
    Left(u64),
    Abandoned,
    ClientGone,
    Stopped,
}

impl Life {
    /// Until the mount is gone; how many files are left in the cache directory.
    pub async fn live(mut self, mut wishes: mpsc::Receiver<Wish>) -> u64 {
        loop {
            tokio::select! {
                () = ended(self.ended.clone()) => return self.drain_unattended().await,
                Some(()) = self.stops.recv() => return self.stop().await,
                Some(wish) = wishes.recv() => {
                    if let Some(left) = self.grant(wish).await {
                        return left;
                    }
                }
            }
        }
    }

    /// Unmounts as wished; `None` if the mount stays.
    async fn grant(&mut self, mut wish: Wish) -> Option<u64> {
        let left = match self.drain_attended(&mut wish).await {
            Drained::Left(0) => 0,
            Drained::Left(files) if wish.how == How::Force => files,
            Drained::Left(files) => {
                tell(&wish, Event::NotUploaded { files }).await;
                return None;
            }
            Drained::ClientGone => return None,
            Drained::Stopped => {
                let files_left = self.stop().await;
                tell_last(&wish, files_left).await;
                return Some(files_left);
            }
            Drained::Abandoned => return self.abandon(&wish).await,
        };
        if let Err(event) = self.unmount(wish.how).await {
            tell(&wish, event).await;
            return None;
        }
        if !self.ends_soon(wish.how).await && wish.how != How::Force {
            tell(&wish, Event::Detached).await;
            return None;
        }
        // Files may have been closed between the drain and the unmount.
        let files_left = match (left, wish.how) {
            (0, How::Force) => match timeout(FORCED_DRAIN_S_MAX, self.tree.drain()).await {
                Ok(left) => left,
                Err(_) => self.tree.left().files,
            },
            (0, _) => self.drain_unattended().await,
            (left, _) => left,
        };
        tell_last(&wish, files_left).await;
        Some(files_left)
    }

    async fn abandon(&self, wish: &Wish) -> Option<u64> {
        if let Err(event) = self.unmount(How::Force).await {
            tell(wish, event).await;
            return None;
        }
        let files_left = self.tree.left().files;
        tell_last(wish, files_left).await;
        Some(files_left)
    }

    /// The end after a signal: bounded, and it comes whatever is left. A second signal hurries it.
    async fn stop(&mut self) -> u64 {
        tracing::info!("asked to stop; uploading what is left");
        let tree = self.tree.clone();
        let ended = self.ended.clone();
        let detach = self.detach.clone();
        let orderly = async {
            tree.drain().await;
            if let Err(e) = unmount(&detach, Busy::Detach).await {
                tracing::warn!("can't unmount: {e}"); // it may be out of the tree already
            }
            let _ = timeout(END_MS_MAX, self::ended(ended)).await; // open files may hold it
            tree.drain().await
        };
        tokio::select! {
            drained = timeout(STOP_DRAIN_S_MAX, orderly) => match drained {
                Ok(left) => return left,
                Err(_) => tracing::warn!("not all was uploaded within {STOP_DRAIN_S_MAX:?}"),
            },
            Some(()) = self.stops.recv() => tracing::warn!("asked again; leaving the rest"),
        }
        if !*self.ended.borrow() {
            let _ = unmount(&self.detach, Busy::Detach).await; // it may be out of the tree already
        }
        self.tree.left().files
    }

    async fn unmount(&self, how: How) -> Result<(), Event> {
        let busy = if how == How::Clean { Busy::Refuse } else { Busy::Detach };
        for _ in 0..BUSY_TRIES_MAX {
            match unmount(&self.detach, busy).await {
                Ok(()) => return Ok(()),
                // Out of the tree already, by somebody else's umount or an earlier wish.
                Err(e) if e.kind() == ErrorKind::InvalidInput => return Ok(()),
                Err(e) if e.kind() == ErrorKind::ResourceBusy => sleep(BUSY_PAUSE_MS).await,
                Err(e) => return Err(Event::Failed { reason: e.to_string() }),
            }
        }
        Err(Event::Busy)
    }

    async fn ends_soon(&self, how: How) -> bool {
        let wait = if how == How::Clean { END_MS_MAX } else { DETACHED_END_MS_MAX };
        timeout(wait, ended(self.ended.clone())).await.is_ok()
    }

    /// Drains while a client watches, for as long as it does, and not for long if it uses force.
    async fn drain_attended(&mut self, wish: &mut Wish) -> Drained {
        let mut tick = interval(PROGRESS_MS);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let tree = self.tree.clone();
        let mut drain = tree.drain();
        let mut forced = pin!(sleep(FORCED_DRAIN_S_MAX));
        loop {
            tokio::select! {
                left = &mut drain => {
                    let is_gone = wish.events.is_closed();
                    return if is_gone { Drained::ClientGone } else { Drained::Left(left) };
                }
                Ok(()) = &mut wish.abandon => return Drained::Abandoned,
                () = &mut forced, if wish.how == How::Force => return Drained::Abandoned,
                () = wish.events.closed() => return Drained::ClientGone,
                Some(()) = self.stops.recv() => return Drained::Stopped,
                _ = tick.tick() => {
                    // A full queue means a slow client, which will hear the next.
                    let _ = wish.events.try_send(Event::Progress { left: self.tree.left() });
                }
            }
        }
    }

    /// Drains for as long as something moves, or until a signal.
    async fn drain_unattended(&mut self) -> u64 {
        let tree = self.tree.clone();
        let mut drain = tree.drain();
        let mut before = self.tree.left();
        loop {
            tokio::select! {
                left = &mut drain => return left,
                Some(()) = self.stops.recv() => break,
                () = sleep(STALL_S_MAX) => {
                    let now = self.tree.left();
                    if now == before {
                        tracing::warn!("nothing was uploaded for {STALL_S_MAX:?}");
                        break;
                    }
                    before = now;
                }
            }
        }
        self.tree.left().files
    }
}

/// On a thread that may block: fusermount3 is a process, and umount(2) can wait.
async fn unmount(detach: &Detach, busy: Busy) -> io::Result<()> {
    let detach = detach.clone();
    match tokio::task::spawn_blocking(move || detach(busy)).await {
        Ok(result) => result,
        Err(e) => Err(io::Error::other(e)),
    }
}

/// Returns once the kernel's side is gone; whoever could say so being gone means the same.
async fn ended(mut ended: watch::Receiver<bool>) {
    let _ = ended.wait_for(|ended| *ended).await;
}

/// The mount is gone, and the process goes next: the client has its answer before.
async fn tell_last(wish: &Wish, files_left: u64) {
    tell(wish, Event::Unmounted { files_left }).await;
    let _ = timeout(GOODBYE_S_MAX, wish.events.closed()).await; // it does not take it: so be it
}

async fn tell(wish: &Wish, event: Event) {
    let _ = wish.events.send(event).await; // a client that is gone needs no answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use tokio::sync::Semaphore;

    /// A tree whose drain takes as long as the test likes, and a kernel that is busy or not.
    struct Model {
        files_left: u64,
        /// A drain takes one permit.
        drains: Semaphore,
        unmounts: Mutex<Vec<Busy>>,
        ended: watch::Sender<bool>,
    }

    #[async_trait]
    impl Tree for Model {
        async fn drain(&self) -> u64 {
            self.drains.acquire().await.expect("never closed").forget();
            self.files_left
        }

        fn left(&self) -> Left {
            Left { files: self.files_left, bytes: 1 }
        }

        fn status(&self) -> serde_json::Value {
            serde_json::Value::Null
        }

        async fn sweep(&self, _: Duration, _: bool) -> Result<serde_json::Value, String> {
            Ok(serde_json::Value::Null)
        }
    }

    struct Bench {
        model: Arc<Model>,
        wishes: mpsc::Sender<Wish>,
        stops: mpsc::Sender<()>,
        life: tokio::task::JoinHandle<u64>,
    }

    /// `in_use`: an open file keeps the kernel's side alive.
    fn start(files_left: u64, drains: usize, in_use: bool) -> Bench {
        let (ended, watched) = watch::channel(false);
        let model = Arc::new(Model {
            files_left,
            drains: Semaphore::new(drains),
            unmounts: Mutex::default(),
            ended,
        });
        let kernel = model.clone();
        let detach: Detach = Arc::new(move |busy| {
            if in_use && busy == Busy::Refuse {
                return Err(ErrorKind::ResourceBusy.into());
            }
            kernel.unmounts.lock().push(busy);
            if !in_use {
                kernel.ended.send_replace(true);
            }
            Ok(())
        });
        let (stops, stopped) = mpsc::channel(4);
        let (wishes, wished) = mpsc::channel(4);
        let life = Life { tree: model.clone(), detach, ended: watched, stops: stopped };
        Bench { model, wishes, stops, life: tokio::spawn(life.live(wished)) }
    }

    /// The last event of an unmount.
    async fn wish(bench: &Bench, how: How) -> Event {
        let (events, mut news) = mpsc::channel(EVENTS_MAX);
        let (_keep, abandon) = oneshot::channel();
        bench.wishes.send(Wish { how, events, abandon }).await.expect("alive");
        loop {
            let event = news.recv().await.expect("a last event");
            if event.is_last() {
                return event;
            }
        }
    }

    #[tokio::test]
    async fn a_clean_unmount_drains_before_and_after() {
        let bench = start(0, 2, false);
        assert_eq!(wish(&bench, How::Clean).await, Event::Unmounted { files_left: 0 });
        assert_eq!(bench.life.await.expect("ends"), 0);
        assert_eq!(*bench.model.unmounts.lock(), [Busy::Refuse]);
        assert_eq!(bench.model.drains.available_permits(), 0);
    }

    #[tokio::test]
    async fn a_mount_in_use_stays_until_it_is_forced() {
        let bench = start(0, 9, true);
        assert_eq!(wish(&bench, How::Clean).await, Event::Busy);
        assert!(bench.model.unmounts.lock().is_empty());
        assert_eq!(wish(&bench, How::Force).await, Event::Unmounted { files_left: 0 });
        assert_eq!(bench.life.await.expect("ends"), 0);
    }

    #[tokio::test]
    async fn a_lazy_unmount_lives_until_the_last_file_is_closed() {
        let bench = start(0, 9, true);
        assert_eq!(wish(&bench, How::Lazy).await, Event::Detached);
        assert!(!bench.life.is_finished());
        bench.model.ended.send_replace(true);
        assert_eq!(bench.life.await.expect("ends"), 0);
    }

    #[tokio::test]
    async fn files_that_can_not_be_uploaded_keep_it_mounted() {
        let bench = start(3, 9, false);
        assert_eq!(wish(&bench, How::Clean).await, Event::NotUploaded { files: 3 });
        assert!(bench.model.unmounts.lock().is_empty() && !bench.life.is_finished());
        assert_eq!(wish(&bench, How::Force).await, Event::Unmounted { files_left: 3 });
        assert_eq!(bench.life.await.expect("ends"), 3);
    }

    #[tokio::test]
    async fn a_client_that_goes_takes_its_wish_along() {
        let bench = start(0, 0, false);
        let (events, news) = mpsc::channel(EVENTS_MAX);
        let (_keep, abandon) = oneshot::channel();
        bench.wishes.send(Wish { how: How::Clean, events, abandon }).await.expect("alive");
        drop(news);
        // The next wish is granted, so the first is over.
        bench.model.drains.add_permits(3);
        assert_eq!(wish(&bench, How::Clean).await, Event::Unmounted { files_left: 0 });
        assert_eq!(bench.model.unmounts.lock().len(), 1);
    }

    #[tokio::test]
    async fn a_second_interrupt_leaves_the_rest() {
        let bench = start(2, 0, false);
        let (events, mut news) = mpsc::channel(EVENTS_MAX);
        let (give_up, abandon) = oneshot::channel();
        bench.wishes.send(Wish { how: How::Clean, events, abandon }).await.expect("alive");
        let left = Left { files: 2, bytes: 1 };
        assert_eq!(news.recv().await, Some(Event::Progress { left }));
        give_up.send(()).expect("still waiting");
        assert_eq!(news.recv().await, Some(Event::Unmounted { files_left: 2 }));
        drop(news);
        assert_eq!(bench.life.await.expect("ends"), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn force_does_not_wait_for_an_upload_that_hangs() {
        let bench = start(2, 0, false);
        assert_eq!(wish(&bench, How::Force).await, Event::Unmounted { files_left: 2 });
        assert_eq!(bench.life.await.expect("ends"), 2);
        assert_eq!(*bench.model.unmounts.lock(), [Busy::Detach]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_process_does_not_end_before_its_client_has_the_answer() {
        let bench = start(0, 2, false);
        let (events, news) = mpsc::channel(EVENTS_MAX);
        let (_keep, abandon) = oneshot::channel();
        bench.wishes.send(Wish { how: How::Clean, events, abandon }).await.expect("alive");
        while news.is_empty() {
            tokio::task::yield_now().await;
        }
        sleep(GOODBYE_S_MAX / 2).await;
        assert!(!bench.life.is_finished());
        drop(news);
        assert_eq!(bench.life.await.expect("ends"), 0);
    }

    #[tokio::test]
    async fn a_signal_while_a_client_waits_answers_the_client_too() {
        let bench = start(0, 0, false);
        let (events, mut news) = mpsc::channel(EVENTS_MAX);
        let (_keep, abandon) = oneshot::channel();
        bench.wishes.send(Wish { how: How::Clean, events, abandon }).await.expect("alive");
        assert!(matches!(news.recv().await, Some(Event::Progress { .. })));
        bench.stops.send(()).await.expect("alive");
        bench.model.drains.add_permits(2);
        let mut last = news.recv().await;
        while matches!(last, Some(Event::Progress { .. })) {
            last = news.recv().await;
        }
        assert_eq!(last, Some(Event::Unmounted { files_left: 0 }));
        drop(news);
        assert_eq!(bench.life.await.expect("ends"), 0);
    }

    #[tokio::test]
    async fn a_signal_ends_even_a_mount_in_use() {
        let bench = start(0, 9, true);
        bench.stops.send(()).await.expect("alive");
        assert_eq!(bench.life.await.expect("ends"), 0);
        assert_eq!(*bench.model.unmounts.lock(), [Busy::Detach]);
    }

    #[tokio::test]
    async fn a_second_signal_does_not_wait_for_uploads() {
        let bench = start(5, 0, false);
        bench.stops.send(()).await.expect("alive");
        bench.stops.send(()).await.expect("alive");
        assert_eq!(bench.life.await.expect("ends"), 5);
        assert_eq!(*bench.model.unmounts.lock(), [Busy::Detach]);
    }

    #[tokio::test]
    async fn umount_by_anybody_ends_it_once_all_is_uploaded() {
        let bench = start(0, 0, false);
        bench.model.ended.send_replace(true);
        bench.model.drains.add_permits(1);
        assert_eq!(bench.life.await.expect("ends"), 0);
        assert!(bench.model.unmounts.lock().is_empty());
    }
}
