//! Tells the kernel that something changed, from threads of its own: from a request's thread it
//! would wait for that request. Names have a thread apart from attributes: to forget one the kernel
//! waits for its directory, which a request may hold that waits for attributes. So have pages: they
//! are waited for while they are read.
//!
//! From 6.18 on the kernel lets go of inodes by their numbers, of those that nothing uses and
//! without their directory. The FUSE library does not know that message: it is written here.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc;

use fuser::INodeNo;
use tokio::sync::oneshot;

use crate::fs::{Idle, Kernel};
use crate::types::{Ino, Name};

/// The message's number in the kernel's protocol, 7.45.
const NOTIFY_PRUNE: i32 = 9;
/// The header of whatever is sent to the kernel, in bytes, and that of this message.
const OUT_HEADER_BYTES: usize = 16;
const PRUNE_HEADER_BYTES: usize = 16;
/// Inodes of a message: as many as the kernel takes from it at a time.
const PRUNE_INODES_MAX: usize = 512;

/// Tells the kernel things.
pub(super) struct Notifier {
    attributes: mpsc::Sender<(Ino, oneshot::Sender<()>)>,
    names: mpsc::Sender<Names>,
    pages: mpsc::Sender<Ino>,
}

/// What is said of names.
enum Names {
    Changed(Ino, OsString),
    Idle(Vec<Idle>, oneshot::Sender<()>),
}

impl Notifier {
    /// `device` is the connection's, to be written to.
    pub(super) fn start(notifier: fuser::Notifier, device: OwnedFd) -> io::Result<Self> {
        let (attributes, received) = mpsc::channel::<(Ino, oneshot::Sender<()>)>();
        let attributes_notifier = notifier.clone();
        spawn("notifier", move || {
            for (ino, done) in received {
                // A negative offset means attributes alone. ENOENT: the kernel forgot it already.
                let _ = attributes_notifier.inval_inode(INodeNo(ino.0), -1, 0);
                let _ = done.send(());
            }
        })?;
        let pages_notifier = notifier.clone();
        let (pages, received) = mpsc::channel::<Ino>();
        spawn("notifier-pages", move || {
            for ino in received {
                let _ = pages_notifier.inval_inode(INodeNo(ino.0), 0, 0); // to the end
            }
        })?;
        let (names, received) = mpsc::channel();
        let mut pruner = Pruner { device: device.into(), known: true };
        spawn("notifier-names", move || {
            for said in received {
                match said {
                    Names::Changed(parent, name) => {
                        let _ = notifier.inval_entry(INodeNo(parent.0), &name);
                    }
                    Names::Idle(idle, done) => {
                        pruner.let_go(&notifier, &idle);
                        let _ = done.send(());
                    }
                }
            }
        })?;
        Ok(Self { attributes, names, pages })
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(work).map(drop)
}

/// Has the kernel let go of inodes.
struct Pruner {
    device: File,
    /// Whether the kernel knows the message, as far as was seen.
    known: bool,
}

impl Pruner {
    fn let_go(&mut self, notifier: &fuser::Notifier, idle: &[Idle]) {
        for some in idle.chunks(PRUNE_INODES_MAX) {
            if self.known {
                let written = self.device.write(&prune_message(some));
                self.known = !written.is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL));
            }
            if !self.known {
                for Idle { parent, name, .. } in some {
                    let _ = notifier.inval_entry(INodeNo(parent.0), name.as_str().as_ref());
                }
            }
        }
    }
}

fn prune_message(idle: &[Idle]) -> Vec<u8> {
    let len = OUT_HEADER_BYTES + PRUNE_HEADER_BYTES + size_of::<u64>() * idle.len();
    let mut message = Vec::with_capacity(len);
    message.extend((len as u32).to_ne_bytes());
    message.extend(NOTIFY_PRUNE.to_ne_bytes());
    message.extend(0u64.to_ne_bytes()); // no request's number: it answers none
    message.extend((idle.len() as u32).to_ne_bytes());
    message.extend([0; PRUNE_HEADER_BYTES - size_of::<u32>()]);
    for inode in idle {
        message.extend(inode.ino.0.to_ne_bytes());
    }
    message
}

#[async_trait::async_trait]
impl Kernel for Notifier {
    async fn invalidate_attributes(&self, ino: Ino) {
        let (done, told) = oneshot::channel();
        if self.attributes.send((ino, done)).is_ok() {
            let _ = told.await;
        }
    }

    fn drop_pages(&self, ino: Ino) {
        let _ = self.pages.send(ino);
    }

    fn forget_name(&self, parent: Ino, name: &Name) {
        let _ = self.names.send(Names::Changed(parent, name.as_str().into()));
    }

    async fn let_go(&self, idle: Vec<Idle>) {
        let (done, told) = oneshot::channel();
        if self.names.send(Names::Idle(idle, done)).is_ok() {
            let _ = told.await;
        }
    }
}
