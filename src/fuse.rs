//! The kernel's side: requests decoded, handed to [`Fs`], and answered. Only this file and its
//! folder know the FUSE library.
//!
//! A request is first polled on the kernel's own thread: what memory can answer is answered there.
//! What must wait goes on as a task. Every task has a deadline, so that no request hangs for ever;
//! a panic in one is answered EIO. The kernel is never called back from a request's thread: that
//! would deadlock.
//!
//! Owns decoding and replies. Does not own what operations mean.

mod backing;
mod closer;
mod convert;
mod listing;
mod negotiate;
mod notifier;
pub mod run;

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::fs::error::Errno;
use crate::fs::{CopyRange, Fs, Replace, SetAttributes, SetMode, Sought, purpose};
use crate::types::Ino;
use fuser::{
    AccessFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, INodeNo, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, Session, SessionACL, TimeOrNow, WriteFlags,
};

use backing::{Backings, reply_created, reply_opened, unback};
use closer::closer;
use convert::{
    attr, caller, errno, moment, reply_attr, reply_empty, reply_entry, reply_written, reply_xattr,
};
use listing::{entries, names};
use negotiate::negotiate;
use notifier::Notifier;
use run::{Requests, bounded};

/// The bound on operations that move a file's bytes: the store's own bounds come first.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(3600);
/// What statfs reports: a bucket has no size, so a petabyte, free.
const STATFS_BLOCKS: u64 = (1 << 50) / STATFS_BLOCK_BYTES as u64;
const STATFS_BLOCK_BYTES: u32 = 4096;

#[derive(Clone, Debug)]
pub struct Options {
    /// Where it is mounted, absolute, without symbolic links.
    pub point: Arc<Path>,
    pub allow_other: bool,
    pub threads: usize,
    /// The bound on one operation that moves no file's bytes.
    pub deadline: Duration,
}

/// A mount being served.
pub struct Serving {
    session: fuser::BackgroundSession,
}

impl Serving {
    /// Blocks until the kernel's side is gone (unmounted).
    pub fn join(self) -> io::Result<()> {
        self.session.join()
    }
}

/// Answers requests from `fd`, a `/dev/fuse` that is already mounted. When this returns the mount
/// answers.
pub fn serve(
    fs: Arc<Fs>,
    fd: OwnedFd,
    options: Options,
    requests: Arc<Requests>,
) -> io::Result<Serving> {
    let mut config = fuser::Config::default();
    config.n_threads = Some(options.threads);
    let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    let shim = Shim { fs: fs.clone(), requests, backings: Default::default(), options };
    let device = fd.try_clone()?;
    let session = Session::from_fd(shim, fd, acl, config)?;
    fs.set_kernel(Arc::new(Notifier::start(session.notifier(), device)?));
    Ok(Serving { session: session.spawn()? })
}

struct Shim {
    fs: Arc<Fs>,
    requests: Arc<Requests>,
    backings: Backings,
    options: Options,
}

impl Shim {
    fn run(&self, request: impl Future<Output = ()> + Send + 'static) {
        self.requests.run(request);
    }

    fn deadline(&self) -> Duration {
        self.options.deadline
    }
}

impl Filesystem for Shim {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        if !negotiate(config) {
            self.fs.disable_passthrough();
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (fs, name, deadline) = (self.fs.clone(), name.to_owned(), self.deadline());
        let (thread, point) = (request.pid(), self.options.point.clone());
        let turn = self.requests.turn();
        self.run(async move {
            if let Err(error) = fs.room_to_look_up(Ino(parent.0), &name).await {
                return reply.error(errno(error));
            }
            let _turn = turn.await;
            let point = point.as_os_str().as_encoded_bytes();
            let purpose = |path: &str| purpose(thread, Sought { point, path: path.as_bytes() });
            let found = fs.lookup(Ino(parent.0), &name, purpose);
            reply_entry(reply, bounded(deadline, found).await);
        });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        self.fs.forget(Ino(ino.0), lookups);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let (fs, deadline) = (self.fs.clone(), self.deadline());
        self.requests.run_reading(async move {
            reply_attr(reply, bounded(deadline, fs.getattr(Ino(ino.0))).await);
        });
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (fs, now) = (self.fs.clone(), self.fs.now());
        let set = SetAttributes {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(|time| moment(time, now)),
            mtime: mtime.map(|time| moment(time, now)),
            kill_set_id: size.is_some() && request.uid() != 0,
        };
        self.run(async move {
            reply_attr(reply, bounded(TRANSFER_DEADLINE, fs.setattr(Ino(ino.0), set)).await);
        });
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        let (fs, deadline) = (self.fs.clone(), self.deadline());
        self.requests.run_reading(async move {
            match bounded(deadline, fs.readlink(Ino(ino.0))).await {
                Ok(target) => reply.data(target.as_bytes()),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (fs, name, deadline) = (self.fs.clone(), name.to_owned(), self.deadline());
        let caller = caller(request);
        self.run(async move {
            let made = fs.mknod(Ino(parent.0), &name, mode, rdev, caller);
            reply_entry(reply, bounded(deadline, made).await);
        });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let (fs, name, deadline) = (self.fs.clone(), name.to_owned(), self.deadline());
        let caller = caller(request);
        self.run(async move {
            let made = fs.mkdir(Ino(parent.0), &name, mode, caller);
            reply_entry(reply, bounded(deadline, made).await);
        });
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, name) = (self.fs.clone(), name.to_owned());
        self.run(async move {
            let removed = bounded(TRANSFER_DEADLINE, fs.unlink(Ino(parent.0), &name)).await;
            reply_empty(reply, removed);
        });
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, name, deadline) = (self.fs.clone(), name.to_owned(), self.deadline());
        self.run(async move {
            reply_empty(reply, bounded(deadline, fs.rmdir(Ino(parent.0), &name)).await);
        });
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (fs, name, deadline) = (self.fs.clone(), name.to_owned(), self.deadline());
        let (target, caller) = (target.as_os_str().to_owned(), caller(request));
        self.run(async move {
            let made = fs.symlink(Ino(parent.0), &name, &target, caller);
            reply_entry(reply, bounded(deadline, made).await);
        });
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let replace = match flags {
            none if none.is_empty() => Replace::Allowed,
            RenameFlags::RENAME_NOREPLACE => Replace::Refused,
            _ => return reply.error(errno(Errno::EINVAL)),
        };
        let (fs, name, new_name) = (self.fs.clone(), name.to_owned(), new_name.to_owned());
        self.run(async move {
            let renamed = fs.rename(Ino(parent.0), &name, Ino(new_parent.0), &new_name, replace);
            reply_empty(reply, bounded(TRANSFER_DEADLINE, renamed).await);
        });
    }

    fn link(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        reply.error(errno(Errno::EPERM));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (fs, backings) = (self.fs.clone(), self.backings.clone());
        let truncated = flags.0 & libc::O_TRUNC != 0 && request.uid() != 0;
        let pid = request.pid();
        self.run(async move {
            let opened = bounded(TRANSFER_DEADLINE, fs.open(Ino(ino.0), flags.0, pid)).await;
            let opened = match opened {
                Ok(opened) => opened,
                Err(error) => return reply.error(errno(error)),
            };
            if truncated {
                fs.kill_set_id(Ino(ino.0));
            }
            reply_opened(&fs, &backings, ino.0, opened, reply);
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (fs, backings) = (self.fs.clone(), self.backings.clone());
        let (name, caller, deadline) = (name.to_owned(), caller(request), self.deadline());
        self.run(async move {
            let created = fs.create(Ino(parent.0), &name, mode, flags, caller);
            match bounded(deadline, created).await {
                Ok((entry, opened)) => reply_created(&fs, &backings, &entry, opened, reply),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let fs = self.fs.clone();
        self.requests.run_reading(async move {
            match bounded(TRANSFER_DEADLINE, fs.read(handle.0, offset, size)).await {
                Ok(data) => reply.data(&data),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (fs, data) = (self.fs.clone(), data.to_vec());
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        self.run(async move {
            if kill {
                fs.kill_set_id(Ino(ino.0));
            }
            let written = bounded(TRANSFER_DEADLINE, fs.write(handle.0, offset, &data)).await;
            reply_written(reply, written.map(|()| data.len() as u32));
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _ino_in: INodeNo,
        from: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        to: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (fs, kill) = (self.fs.clone(), request.uid() != 0);
        let copy = CopyRange { from: from.0, offset_in, to: to.0, offset_out, len };
        self.run(async move {
            if kill {
                fs.kill_set_id(Ino(ino_out.0));
            }
            reply_written(reply, bounded(TRANSFER_DEADLINE, fs.copy_file_range(copy)).await);
        });
    }

    fn flush(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let (fs, closer) = (self.fs.clone(), closer(request.pid()));
        self.run(async move {
            reply_empty(reply, bounded(TRANSFER_DEADLINE, fs.flush(handle.0, closer)).await);
        });
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let (fs, backings) = (self.fs.clone(), self.backings.clone());
        self.run(async move {
            if fs.passes_through(handle.0) {
                unback(&backings, ino.0);
            }
            fs.release(handle.0).await;
            reply.ok();
        });
    }

    fn fsync(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs.clone();
        self.run(async move {
            reply_empty(reply, bounded(TRANSFER_DEADLINE, fs.fsync(handle.0)).await);
        });
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let (fs, deadline) = (self.fs.clone(), self.deadline());
        self.requests.run_reading(async move {
            match bounded(deadline, fs.opendir(Ino(ino.0))).await {
                Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let (fs, deadline) = (self.fs.clone(), self.deadline());
        self.requests.run_reading(async move {
            match bounded(deadline, fs.read_directory(handle.0, offset)).await {
                Ok(snapshot) => names(&fs, ino, &snapshot, offset, reply),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let (fs, deadline) = (self.fs.clone(), self.deadline());
        self.requests.run_reading(async move {
            let told = async {
                let snapshot = fs.read_directory(handle.0, offset).await?;
                Ok((snapshot, attr(&fs.getattr(Ino(ino.0)).await?.stat)))
            };
            match bounded(deadline, told).await {
                Ok((snapshot, own)) => entries(&fs, &own, &snapshot, offset, reply),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.fs.releasedir(handle.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        let (fs, deadline) = (self.fs.clone(), self.deadline());
        self.run(async move {
            reply_empty(reply, bounded(deadline, fs.fsyncdir(Ino(ino.0))).await);
        });
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let (blocks, block) = (STATFS_BLOCKS, STATFS_BLOCK_BYTES);
        reply.statfs(blocks, blocks, blocks, blocks, blocks, block, 255, block);
    }

    fn setxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let how = match flags {
            libc::XATTR_CREATE => SetMode::Create,
            libc::XATTR_REPLACE => SetMode::Replace,
            _ => SetMode::Any,
        };
        let Some(name) = name.to_str().map(str::to_owned) else {
            return reply.error(errno(Errno::EOPNOTSUPP));
        };
        let (fs, value, deadline) = (self.fs.clone(), value.to_vec(), self.deadline());
        self.run(async move {
            let set = fs.setxattr(Ino(ino.0), &name, &value, how);
            reply_empty(reply, bounded(deadline, set).await);
        });
    }

    fn getxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let Some(name) = name.to_str().map(str::to_owned) else {
            return reply.error(errno(Errno::EOPNOTSUPP));
        };
        let (fs, deadline) = (self.fs.clone(), self.deadline());
        self.requests.run_reading(async move {
            let value = bounded(deadline, fs.getxattr(Ino(ino.0), &name)).await;
            reply_xattr(reply, size, value);
        });
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let (fs, deadline) = (self.fs.clone(), self.deadline());
        self.requests.run_reading(async move {
            reply_xattr(reply, size, bounded(deadline, fs.listxattr(Ino(ino.0))).await);
        });
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_str().ok_or(Errno::ENODATA);
        reply_empty(reply, name.and_then(|name| self.fs.removexattr(Ino(ino.0), name)));
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS); // the kernel checks: mounted with default_permissions
    }

    fn fallocate(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs.clone();
        self.run(async move {
            let done = fs.fallocate(handle.0, offset, length, mode);
            reply_empty(reply, bounded(TRANSFER_DEADLINE, done).await);
        });
    }
}
