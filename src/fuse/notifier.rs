//! Tells the kernel that something changed, from threads of its own: from a request's thread it
//! would wait for that request. Names have a thread apart from attributes: to forget one the kernel
//! waits for its directory, which a request may hold that waits for attributes.

use std::ffi::OsString;
use std::io;
use std::sync::mpsc;

use fuser::INodeNo;
use tokio::sync::oneshot;

use crate::fs::Kernel;
use crate::types::{Ino, Name};

/// Tells the kernel things.
pub(super) struct Notifier {
    attributes: mpsc::Sender<(Ino, oneshot::Sender<()>)>,
    names: mpsc::Sender<(Ino, OsString)>,
}

impl Notifier {
    pub(super) fn start(notifier: fuser::Notifier) -> io::Result<Self> {
        let (attributes, received) = mpsc::channel::<(Ino, oneshot::Sender<()>)>();
        let other = notifier.clone();
        spawn("notifier", move || {
            for (ino, done) in received {
                // A negative offset means attributes alone. ENOENT: the kernel forgot it already.
                let _ = notifier.inval_inode(INodeNo(ino.0), -1, 0);
                let _ = done.send(());
            }
        })?;
        let (names, received) = mpsc::channel::<(Ino, OsString)>();
        spawn("notifier-names", move || {
            for (parent, name) in received {
                let _ = other.inval_entry(INodeNo(parent.0), &name);
            }
        })?;
        Ok(Self { attributes, names })
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(work).map(drop)
}

#[async_trait::async_trait]
impl Kernel for Notifier {
    async fn invalidate_attributes(&self, ino: Ino) {
        let (done, told) = oneshot::channel();
        if self.attributes.send((ino, done)).is_ok() {
            let _ = told.await;
        }
    }

    fn forget_name(&self, parent: Ino, name: &Name) {
        let _ = self.names.send((parent, name.as_str().into()));
    }
}
