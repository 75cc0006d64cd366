//! Opening, reading, writing and closing files.
//!
//! Cost: open of a known file 1 HEAD (0 while this node is writing it, or when it is truncated);
//! close of a small dirty file 1 PUT; of a clean one nothing.

use std::ffi::OsStr;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::attributes::Content;
use super::checkpoints::Place;
use super::error::Errno;
use super::handles::{Backing, FileHandle, Handle, IoMode, OpenFile, Passing};
use super::processes::holds_for_writing;
use super::revalidate::SMALL_BYTES_MAX;
use super::{Caller, Entry, Fs, name_of};
use crate::bucket::Metadata;
use crate::read::{ReadError, Version};
use crate::types::{Ino, Kind};
use crate::write::{Base, Staged};

/// Up to this size an existing file that is opened for writing is fetched whole at once, so that
/// the kernel can pass through; a larger one is fetched where it is touched. One part.
const FETCH_AT_OPEN_BYTES_MAX: u64 = 16 << 20;
/// Mode bits that a write must clear, which needs every write to come to us.
const SET_ID: u32 = 0o6000;

/// What open gives the kernel.
#[derive(Debug)]
pub struct Opened {
    pub handle: u64,
    pub mode: IoMode,
    /// The pages the kernel holds are of this very version.
    pub keep_cache: bool,
    /// With [`IoMode::Passthrough`]: what to pass through to.
    pub backing: Option<Backing>,
}

/// Who lets go of a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closer {
    /// A program that called close(2) or exited by itself: its thread.
    Living(u32),
    /// A process that a signal is killing.
    Killed,
}

/// What open(2) asks for.
#[derive(Clone, Copy, Debug)]
struct Access {
    write: bool,
    truncate: bool,
    append: bool,
    /// mmap(2) may share it to be written: that wants a descriptor that also reads.
    maps: bool,
    /// The thread that asks.
    thread: u32,
}

impl Access {
    fn of(flags: i32, thread: u32) -> Self {
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let truncate = write && flags & libc::O_TRUNC != 0;
        let maps = flags & libc::O_ACCMODE == libc::O_RDWR;
        Self { write, truncate, append: flags & libc::O_APPEND != 0, maps, thread }
    }
}

impl Fs {
    pub async fn open(&self, ino: Ino, flags: i32, thread: u32) -> Result<Opened, Errno> {
        let access = Access::of(flags, thread);
        if self.outlast_leaving(ino).await {
            return Err(Errno::ESTALE); // the kernel asks for its name again
        }
        let _waiting = if access.write { self.wait_at(ino) } else { None };
        // Before anything that a close may want.
        let file = self.handles.shared_if_any(ino);
        let staged = file.is_some_and(|file| file.state.lock().staged.is_some());
        let _place =
            if access.write && !staged { Some(self.place_to_write().await?) } else { None };
        let mut within = None;
        if access.write {
            self.writable()?;
            if let Some(place) = self.writing_place(ino) {
                within = Some(self.begin(&place, thread).await?);
            }
        }
        let file = self.handles.shared(ino);
        if within.is_some() {
            file.state.lock().written_in = within;
        }
        let result = self.open_shared(ino, &file, access).await;
        drop(file);
        self.handles.tidy(ino);
        result
    }

    async fn open_shared(
        &self,
        ino: Ino,
        file: &Arc<OpenFile>,
        access: Access,
    ) -> Result<Opened, Errno> {
        if let Some(failed) = file.state.lock().failed.filter(|_| !access.truncate) {
            return Err(failed.errno);
        }
        let content = match access.truncate {
            true => Content::Emptied,
            false => self.outlive_closed(ino, file).await?,
        };
        if access.write {
            let _io = self.io_to_write(ino, file, access.truncate).await?;
            self.settle_inode(ino).await?;
            let opened = self.waiting.now();
            {
                let mut state = file.state.lock();
                (state.opened, state.is_added_to) = (opened, !access.truncate);
            }
            let staged = self.staged_for_writing(ino, file, content).await?;
            if access.truncate {
                self.truncate_staged(ino, &staged).await?;
                file.state.lock().short = false;
            } else if staged.size().is_ok_and(|size| size <= FETCH_AT_OPEN_BYTES_MAX) {
                staged.complete().await?;
                self.times_hold(ino, &staged)?;
            }
            return self.add_handle(ino, file, access);
        }
        if !self.is_local(ino)? {
            let _io = file.io.lock().await;
            if file.state.lock().staged.is_some() {
                self.reusable(ino, file, content).await?;
                self.settle(ino, file);
            } else {
                self.revalidate_for_reading(ino, file, access.thread).await?;
                self.offer_whole(ino, file)?;
                self.fetch_following(ino);
            }
        }
        self.add_handle(ino, file, access)
    }

    /// Asks for the version to be read, with its content where it is small and not here already.
    async fn revalidate_for_reading(
        &self,
        ino: Ino,
        file: &OpenFile,
        thread: u32,
    ) -> Result<(), Errno> {
        if let Some(small) = self.was_asked_by_lookup(ino, thread)? {
            self.keep_small(file, small);
            return Ok(());
        }
        let known = self.version(ino)?;
        let fetch = known.as_ref().is_some_and(|version| {
            (1..=SMALL_BYTES_MAX).contains(&version.size)
                && self.reader.whole_file(version).is_none()
        });
        if !fetch {
            // Where copy_file_range(2) comes to us it may be a source that nobody reads.
            let passes = self.passthrough.load(Ordering::Relaxed);
            let large = known.filter(|version| passes && version.size > SMALL_BYTES_MAX);
            let begun = match large {
                Some(version) => self.revalidate_by_reading(ino, &version).await?,
                None => false,
            };
            if !begun {
                self.revalidate(ino).await?;
            }
            return Ok(());
        }
        let small = self.revalidate_small(ino).await?;
        self.keep_small(file, small);
        Ok(())
    }

    fn keep_small(&self, file: &OpenFile, small: Option<(Version, Bytes)>) {
        if let Some((version, body)) = &small {
            self.reader.insert(version, body.clone());
        }
        file.state.lock().small = small;
    }

    /// Where all of what is to be read is cached the kernel reads it by itself.
    fn offer_whole(&self, ino: Ino, file: &OpenFile) -> Result<(), Errno> {
        if !self.passthrough.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Some(version) = self.version(ino)? else { return Ok(()) };
        let mut state = file.state.lock();
        if state.handles() > 0 || state.staged.is_some() || state.passing.is_some() {
            return Ok(());
        }
        if let Some(whole) = self.reader.whole_file(&version) {
            state.small = None;
            state.passing = Some(Passing { file: whole, reading: self.reader.open(version) });
        }
        Ok(())
    }

    async fn truncate_staged(&self, ino: Ino, staged: &Staged) -> Result<(), Errno> {
        staged.truncate(0).await?;
        let mut namespace = self.namespace.lock();
        let inode = namespace.get_mut(ino).ok_or(Errno::ESTALE)?;
        inode.size = 0;
        inode.times_set = false;
        inode.times_staged = None;
        Ok(())
    }

    fn is_local(&self, ino: Ino) -> Result<bool, Errno> {
        let namespace = self.namespace.lock();
        let inode = namespace.get(ino).ok_or(Errno::ESTALE)?;
        Ok(inode.staged || !inode.linked)
    }

    /// Counts a new handle and fixes its mode.
    fn add_handle(&self, ino: Ino, file: &Arc<OpenFile>, access: Access) -> Result<Opened, Errno> {
        let doubted = self.is_doubted(ino, file)?;
        let mut namespace = self.namespace.lock();
        let inode = namespace.get_mut(ino).ok_or(Errno::ESTALE)?;
        let enabled = self.passthrough.load(Ordering::Relaxed);
        let may_pass = enabled && inode.attributes.mode & SET_ID == 0;
        let mut state = file.state.lock();
        let mode = state.choose_mode(may_pass);
        *state.count(mode) += 1;
        state.writers += u32::from(access.write);
        state.mapped |= access.maps;
        inode.opens += 1;
        let same = inode.paged.is_some() && inode.paged == inode.object;
        let keep_cache = mode == IoMode::Cached && same && !doubted;
        if mode == IoMode::Cached {
            inode.paged = inode.object.clone();
        }
        if mode != IoMode::Passthrough {
            state.passing = None;
        }
        let backing = state.backing().filter(|_| mode == IoMode::Passthrough);
        if let Some(Backing::Staged(staged)) = &backing {
            staged.set_passthrough();
        }
        drop(state);
        let (opener, writable, append) = (access.thread, access.write, access.append);
        let handle = FileHandle { ino, opener, file: file.clone(), writable, append, mode };
        let handle = self.handles.add(Handle::File(handle));
        Ok(Opened { handle, mode, keep_cache, backing })
    }

    /// Whether the kernel may hold bytes that are not the object's. Whoever opens it from now on
    /// begins anew.
    fn is_doubted(&self, ino: Ino, file: &OpenFile) -> Result<bool, Errno> {
        let version = self.version(ino)?;
        let had = file.state.lock().reading.take_if(|(_, reading)| reading.is_doubted());
        let vouched = version.is_none_or(|version| self.reader.vouches_for(&version));
        Ok(had.is_some() || !vouched)
    }

    /// The kernel would not pass through after all: the handle is a direct one, and so will all be.
    pub fn refuse_passthrough(&self, handle: u64) {
        self.disable_passthrough();
        let Ok(open) = self.handles.file(handle) else { return };
        let mut state = open.file.state.lock();
        *state.count(IoMode::Passthrough) -= 1;
        *state.count(IoMode::Direct) += 1;
        drop(state);
        self.handles.set_mode(handle, IoMode::Direct);
    }

    pub async fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        flags: i32,
        caller: Caller,
    ) -> Result<(Entry, Opened), Errno> {
        let _waiting = self.wait_at(parent);
        let unasked = self.unasked.take(parent, &name_of(name)?) && flags & libc::O_EXCL == 0;
        self.room_for_a_name().await?;
        let _room = self.place_to_write().await?; // before anything that a close may want
        let (name, key, place, within, _work) = loop {
            let (name, key) = self.free_new_name(parent, name).await?;
            let place = self.writing_place_of_new(parent, &name, Kind::File);
            let mut within = None;
            if let Some(place) = &place {
                within = Some(self.begin(place, caller.pid).await?);
            }
            let work = self.work_at(parent).await;
            if self.is_key_of(parent, &name, &key) {
                break (name, place.as_ref().map_or(key, Place::key), place, within, work);
            }
        };
        let mut base = None;
        // In a transaction nothing shows before the commit: exclusive is, who is first here.
        if flags & libc::O_EXCL != 0 && place.is_none() {
            let etag = self.create_object(&key, Bytes::new(), &Metadata::new()).await?;
            base = Some(Base { key: key.clone(), etag, size: 0 });
        }
        let object = base.as_ref().map(|base| base.etag.clone());
        let staged = self.writer.stage(key, base)?;
        let attributes = self.new_attributes(parent, Kind::File, mode, caller);
        let made = (attributes.mode, attributes.uid, attributes.gid);
        let ino = {
            let mut namespace = self.namespace.lock();
            if let Some(old) = namespace.child(parent, &name).map(|child| child.ino) {
                namespace.detach(old); // another node's, made since the kernel asked
            }
            let ino = namespace.insert(parent, &name, Kind::File, attributes);
            let ino = ino.ok_or(Errno::ENOENT)?;
            let inode = namespace.get_mut(ino).ok_or(Errno::ESTALE)?;
            inode.object = object;
            inode.staged = true;
            namespace.touch(ino, self.clock.now());
            namespace.touch_directory(parent, self.wall());
            ino
        };
        let (file, opened) = (self.handles.shared(ino), self.waiting.now());
        {
            let mut state = file.state.lock();
            state.staged = Some(staged);
            state.opened = opened;
            state.written_in = within;
            state.unasked = unasked.then_some(made);
        }
        self.record_attributes(ino);
        let access = Access { truncate: false, ..Access::of(flags, caller.pid) };
        let opened = self.add_handle(ino, &file, access)?;
        Ok((self.entry(ino)?, opened))
    }

    pub async fn read(&self, handle: u64, offset: u64, size: u32) -> Result<Bytes, Errno> {
        let open = self.handles.file(handle)?;
        let (staged, orphan) = {
            let state = open.file.state.lock();
            (state.staged.clone(), state.orphan.clone())
        };
        if let Some(staged) = staged {
            return Ok(staged.read(offset, size).await?);
        }
        if let Some(orphan) = orphan {
            return read_file(&orphan, offset, size);
        }
        if let Some(part) = self.read_small(&open, offset, size)? {
            return Ok(part);
        }
        let reading = self.reading(&open)?;
        match self.reader.read(&reading, offset, size).await {
            Err(ReadError::Changed) if self.follow_moved(open.ino).await => {
                let reading = self.reading(&open)?;
                Ok(self.reader.read(&reading, offset, size).await?)
            }
            other => Ok(other?),
        }
    }

    fn read_small(&self, open: &FileHandle, at: u64, size: u32) -> Result<Option<Bytes>, Errno> {
        let Some((version, body)) = open.file.state.lock().small.clone() else { return Ok(None) };
        if self.version(open.ino)?.is_some_and(|now| now != version) {
            return Ok(None);
        }
        let start = at.min(body.len() as u64) as usize;
        let end = (start + size as usize).min(body.len());
        Ok(Some(body.slice(start..end)))
    }

    /// The stream of an inode's present version; of one that lost its name, the version it had.
    fn reading(&self, open: &FileHandle) -> Result<Arc<crate::read::ReadHandle>, Errno> {
        let version = self.version(open.ino)?;
        let mut state = open.file.state.lock();
        match (&state.reading, version) {
            (Some((have, reading)), Some(version)) if *have == version => Ok(reading.clone()),
            (_, Some(version)) => {
                let reading = Arc::new(self.reader.open(version.clone()));
                state.reading = Some((version, reading.clone()));
                Ok(reading)
            }
            (Some((_, reading)), None) => Ok(reading.clone()),
            (None, None) => Err(Errno::ESTALE),
        }
    }

    /// What the bucket has of a linked file.
    pub(super) fn version(&self, ino: Ino) -> Result<Option<Version>, Errno> {
        let namespace = self.namespace.lock();
        let inode = namespace.get(ino).ok_or(Errno::ESTALE)?;
        let (Some(key), Some(etag)) = (namespace.key(ino), inode.object.clone()) else {
            return Ok(None);
        };
        let key = inode.at.clone().unwrap_or(key);
        Ok(Some(Version { key, etag, size: inode.size }))
    }

    pub async fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let open = self.handles.file(handle)?;
        let staged = open.file.state.lock().staged.clone().ok_or(Errno::EBADF)?;
        let offset = match open.append {
            true => staged.size().map_err(|_| Errno::EIO)?,
            false => offset,
        };
        staged.write(offset, data).await?;
        Ok(())
    }

    pub async fn fallocate(
        &self,
        handle: u64,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Result<(), Errno> {
        let open = self.handles.file(handle)?;
        let staged = open.file.state.lock().staged.clone().ok_or(Errno::EBADF)?;
        Ok(staged.allocate(offset, length, mode).await?)
    }

    /// close(2): the object is whole in the bucket when this returns, or under `--durability local`
    /// kept here for it. A killed process's close publishes nothing; whether the file is torn shows
    /// at its release, since others may hold it.
    pub async fn flush(&self, handle: u64, closer: Closer) -> Result<(), Errno> {
        let open = self.handles.file(handle)?;
        if !open.writable {
            return Ok(());
        }
        if let Closer::Living(thread) = closer {
            self.unseen.meet(thread);
        }
        let torn = closer == Closer::Killed;
        let full = open.mode == IoMode::Passthrough && self.writer.is_full();
        {
            let mut state = open.file.state.lock();
            state.torn = torn;
            let dirty = state.staged.as_ref().is_some_and(|staged| staged.is_dirty());
            state.short |= full && dirty;
        }
        match closer {
            Closer::Killed => Ok(()),
            Closer::Living(thread) if is_yet_to_be_filled(&open, thread) => Ok(()),
            Closer::Living(_) => self.close(open.ino, &open.file).await,
        }
    }

    /// fsync(2): the object, and what is recorded of it.
    pub async fn fsync(&self, handle: u64) -> Result<(), Errno> {
        let open = self.handles.file(handle)?;
        self.sync(open.ino, &open.file, None).await?;
        let parent = self.namespace.lock().get(open.ino).map(|inode| inode.parent);
        match parent {
            Some(parent) => self.flush_record(parent).await,
            None => Ok(()),
        }
    }

    /// fsync(2) of a directory: its names are in the bucket already.
    pub async fn fsyncdir(&self, ino: Ino) -> Result<(), Errno> {
        self.fsync_commits(ino).await?;
        self.flush_record(ino).await
    }

    /// What the inode's times say holds while the staged file is not written: fetching is no write.
    pub(super) fn times_hold(&self, ino: Ino, staged: &Staged) -> Result<(), Errno> {
        if staged.is_dirty() {
            return Ok(());
        }
        let modified = staged.modified().map_err(|_| Errno::EIO)?;
        if let Some(inode) = self.namespace.lock().get_mut(ino) {
            inode.times_staged = Some(modified);
        }
        Ok(())
    }
}

/// Whether a close is no end: `exec > file` opens the file, gives it the number 1 and closes
/// the number that it came under, before the first byte. Published, that would take the old
/// content from everybody for as long as the program runs.
fn is_yet_to_be_filled(open: &FileHandle, thread: u32) -> bool {
    let state = open.file.state.lock();
    let empty = |staged: &Arc<Staged>| staged.is_dirty() && staged.size().is_ok_and(|n| n == 0);
    // With one handle of ours, whatever descriptor there still is leads to it.
    let alone = state.writers == 1 && state.staged.as_ref().is_some_and(empty);
    drop(state);
    alone && [thread, open.opener].iter().any(|pid| holds_for_writing(*pid, open.ino))
}

fn read_file(file: &std::fs::File, offset: u64, size: u32) -> Result<Bytes, Errno> {
    let mut buffer = vec![0; size as usize];
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return Err(Errno::EIO),
        }
    }
    buffer.truncate(filled);
    Ok(buffer.into())
}
