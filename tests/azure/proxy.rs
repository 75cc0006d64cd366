//! A proxy for HTTP/1.1 that loses or holds the requests from a chosen one on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// From the given request on, counted from 0, nothing comes through.
    Request(u32),
    /// The same, but that request itself is done, and its reply lost.
    Reply(u32),
    /// No DELETE comes through.
    Deletes,
}

pub struct Proxy {
    pub address: String,
    upstream: String,
    served: AtomicU32,
    fault: parking_lot::Mutex<Option<Fault>>,
    held: parking_lot::Mutex<Option<(u32, Arc<Held>)>>,
}

/// A request that waits.
pub struct Held {
    reached: watch::Sender<bool>,
    released: Semaphore,
}

impl Held {
    pub async fn reached(&self) {
        self.reached.subscribe().wait_for(|reached| *reached).await.unwrap();
    }

    pub fn release(&self) {
        self.released.add_permits(1);
    }
}

/// A message as it came, to its end.
async fn read_message(stream: &mut TcpStream, has_body: bool) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        if let Some(end) = text.find("\r\n\r\n") {
            let (head, start) = (&text[..end], end + 4);
            let value = |name: &str| head.split_once(name).map(|(_, rest)| rest.lines().next());
            let length = value("content-length:").flatten().and_then(|n| n.trim().parse().ok());
            let whole = match (has_body, head.contains("transfer-encoding: chunked"), length) {
                (false, ..) => true,
                (_, true, _) => bytes.ends_with(b"0\r\n\r\n"),
                (_, _, length) => bytes.len() >= start + length.unwrap_or(0),
            };
            if whole {
                return Some(bytes);
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

impl Proxy {
    pub async fn start(upstream: &str) -> Arc<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Arc::new(Proxy {
            address: listener.local_addr().unwrap().to_string(),
            upstream: upstream.to_owned(),
            served: AtomicU32::new(0),
            fault: parking_lot::Mutex::default(),
            held: parking_lot::Mutex::default(),
        });
        let serving = proxy.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let serving = serving.clone();
                tokio::spawn(async move { while serving.serve(&mut client).await.is_some() {} });
            }
        });
        proxy
    }

    pub fn fail_from(&self, fault: Fault) {
        *self.fault.lock() = Some(fault);
    }

    pub fn hold(&self, request: u32) -> Arc<Held> {
        let held = Arc::new(Held { reached: watch::channel(false).0, released: Semaphore::new(0) });
        *self.held.lock() = Some((request, held.clone()));
        held
    }

    /// How many requests came so far.
    pub fn served(&self) -> u32 {
        self.served.load(Ordering::SeqCst)
    }

    /// One request; `None` ends the connection.
    async fn serve(&self, client: &mut TcpStream) -> Option<()> {
        let request = read_message(client, true).await?;
        let number = self.served.fetch_add(1, Ordering::SeqCst);
        let held = self.held.lock().clone().filter(|(at, _)| *at == number);
        if let Some((_, held)) = held {
            held.reached.send_replace(true);
            held.released.acquire().await.ok()?.forget();
        }
        let fault = *self.fault.lock();
        match fault {
            Some(Fault::Request(at)) if number >= at => return None,
            Some(Fault::Reply(at)) if number > at => return None,
            Some(Fault::Deletes) if request.starts_with(b"DELETE ") => return None,
            _ => {}
        }
        let mut server = TcpStream::connect(&self.upstream).await.ok()?;
        server.write_all(&request).await.ok()?;
        let reply = read_message(&mut server, !request.starts_with(b"HEAD ")).await?;
        if fault == Some(Fault::Reply(number)) {
            return None;
        }
        client.write_all(&reply).await.ok()
    }
}
