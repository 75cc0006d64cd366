//! Tells the kernel that something changed, from a thread of its own: from a request's thread it
//! would wait for that request.

use std::io;
use std::sync::mpsc;

use fuser::INodeNo;

use crate::fs::Kernel;
use crate::types::Ino;

/// Tells the kernel things, from a thread of its own.
pub(super) struct Notifier {
    requests: mpsc::Sender<(Ino, tokio::sync::oneshot::Sender<()>)>,
}

impl Notifier {
    pub(super) fn start(notifier: fuser::Notifier) -> io::Result<Self> {
        let (requests, received) = mpsc::channel::<(Ino, tokio::sync::oneshot::Sender<()>)>();
        let tell = move || {
            for (ino, done) in received {
                // A negative offset means attributes alone. ENOENT: the kernel forgot it already.
                let _ = notifier.inval_inode(INodeNo(ino.0), -1, 0);
                let _ = done.send(());
            }
        };
        std::thread::Builder::new().name("notifier".into()).spawn(tell)?;
        Ok(Self { requests })
    }
}

#[async_trait::async_trait]
impl Kernel for Notifier {
    async fn invalidate_attributes(&self, ino: Ino) {
        let (done, told) = tokio::sync::oneshot::channel();
        if self.requests.send((ino, done)).is_ok() {
            let _ = told.await;
        }
    }
}
