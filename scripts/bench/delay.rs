//! A TCP proxy that makes a far store of a near one: every byte arrives a fixed time after it was
//! sent, in each direction, at whatever bandwidth there is.
//!
//!     delay LISTEN_PORT TARGET_PORT MILLISECONDS_EACH_WAY
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Read at once; large, or copying costs more than the store does.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks on their way in one direction: 64 MiB, more than any window needs at 20 ms.
const CHUNKS_MAX: usize = 256;

fn take(mut from: TcpStream, to: SyncSender<(Instant, Vec<u8>)>, delay: Duration) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if to.send((Instant::now() + delay, buffer[..n].to_vec())).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Read);
}

fn give(from: Receiver<(Instant, Vec<u8>)>, mut to: TcpStream) {
    for (due, bytes) in from {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn one_way(from: &TcpStream, to: &TcpStream, delay: Duration) -> std::io::Result<()> {
    let (from, to) = (from.try_clone()?, to.try_clone()?);
    let (sender, receiver) = sync_channel(CHUNKS_MAX);
    thread::spawn(move || take(from, sender, delay));
    thread::spawn(move || give(receiver, to));
    Ok(())
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize| args[i].parse::<f64>().expect("LISTEN_PORT TARGET_PORT MS_EACH_WAY");
    let delay = Duration::from_secs_f64(number(3) / 1000.0);
    let listener = TcpListener::bind(("127.0.0.1", number(1) as u16)).expect("the port is free");
    for client in listener.incoming().flatten() {
        let Ok(server) = TcpStream::connect(("127.0.0.1", number(2) as u16)) else { continue };
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let _ = one_way(&client, &server, delay);
        let _ = one_way(&server, &client, delay);
    }
}
