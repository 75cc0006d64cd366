//! How fast the hot pure parts are: `cargo bench`. Each is called once per request of the kernel,
//! or once per entry of a listing, so a microsecond here is one there.

use std::hint::black_box;
use std::time::{Duration, SystemTime};

use divan::Bencher;
use divan::counter::ItemsCount;

use trialfs::bucket::xml;
use trialfs::checkpoint::record::{self, RecordKey};
use trialfs::clock;
use trialfs::namespace::{Defaults, Namespace, Remote};
use trialfs::read::readahead::{Limits, ReadAhead};
use trialfs::types::{ETag, Ino, Kind, Name};
use trialfs::write::extents::Extents;

const ENTRIES: usize = 1000;

fn main() {
    divan::main();
}

fn page_of(entries: usize) -> Vec<u8> {
    let entry = |i: usize| {
        format!(
            "<Contents><Key>trial/checkpoint_000001/shard{i:05}.bin</Key><Size>{i}</Size>\
             <ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag>\
             <LastModified>2026-01-02T03:04:05.000Z</LastModified></Contents>"
        )
    };
    let entries: String = (0..entries).map(entry).collect();
    format!("<?xml version=\"1.0\"?><ListBucketResult>{entries}</ListBucketResult>").into_bytes()
}

#[divan::bench]
fn listing_page(bencher: Bencher<'_, '_>) {
    let body = page_of(ENTRIES);
    bencher.counter(ItemsCount::new(ENTRIES)).bench(|| xml::page(black_box(&body)));
}

/// A directory of a thousand files, as a listing told of it.
fn namespace() -> (Namespace, Vec<Name>, Vec<Remote>) {
    let defaults = Defaults { uid: 0, gid: 0, umask: 0o22 };
    let mut namespace = Namespace::new("", defaults, SystemTime::UNIX_EPOCH);
    let names: Vec<_> = (0..ENTRIES).map(|i| Name::new(&format!("f{i:05}")).unwrap()).collect();
    let remote = |i: usize| Remote {
        kind: Some(Kind::File),
        etag: ETag(format!("{i:032x}")),
        size: i as u64,
        modified: SystemTime::UNIX_EPOCH,
        at: None,
        copy_of: None,
    };
    let remotes: Vec<_> = (0..ENTRIES).map(remote).collect();
    learn(&mut namespace, &names, &remotes);
    (namespace, names, remotes)
}

fn learn(namespace: &mut Namespace, names: &[Name], remotes: &[Remote]) {
    let asked = namespace.asked(clock::system().now());
    for (name, remote) in names.iter().zip(remotes) {
        namespace.learn_file(Ino::ROOT, name, remote, None, asked);
    }
}

#[divan::bench]
fn namespace_lookup(bencher: Bencher<'_, '_>) {
    let (namespace, names, _) = namespace();
    let (now, ttl) = (clock::system().now(), Duration::from_secs(1));
    bencher.counter(ItemsCount::new(ENTRIES)).bench(|| {
        let fresh = |name| {
            let ino = namespace.child(Ino::ROOT, name).map(|inode| inode.ino);
            ino.is_some_and(|ino| namespace.is_fresh(ino, now, ttl))
        };
        names.iter().filter(|name| fresh(name)).count()
    });
}

#[divan::bench]
fn namespace_relearn(bencher: Bencher<'_, '_>) {
    let (mut namespace, names, remotes) = namespace();
    let bencher = bencher.counter(ItemsCount::new(ENTRIES));
    bencher.bench_local(|| learn(&mut namespace, &names, &remotes));
}

#[divan::bench]
fn record_parse(bencher: Bencher<'_, '_>) {
    let name = "txn.checkpoint_000001.01JD8Z3V5N6Q7R8S9TAVBWCXDY.0";
    let path = format!("{}/tests/data/format-1/{name}", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(path).unwrap();
    let key = RecordKey::parse(name).unwrap();
    bencher.bench(|| record::parse(black_box(&key), black_box(&bytes)));
}

/// Random patches of 4 KiB in a file of 64 MiB, as a database makes them.
#[divan::bench]
fn extents_of_patches(bencher: Bencher<'_, '_>) {
    const WRITES: u64 = 2000;
    let places: Vec<u64> = (0..WRITES).map(|i| i * 7_919 % (64 << 8) * 4096).collect();
    bencher.counter(ItemsCount::new(WRITES)).bench(|| {
        let mut extents = Extents::new(64 << 20);
        for at in &places {
            extents.wrote(*at..at + 4096);
        }
        extents.changed_bytes()
    });
}

#[divan::bench]
fn readahead_of_a_stream(bencher: Bencher<'_, '_>) {
    const READS: u64 = 512;
    let limits = Limits { block_bytes: 8 << 20, window_bytes_max: 128 << 20 };
    bencher.counter(ItemsCount::new(READS)).bench(|| {
        let mut ahead = ReadAhead::default();
        let read = |i: u64| ahead.on_read(&(i << 20..(i + 1) << 20), READS << 20, limits).end;
        (0..READS).map(read).max()
    });
}
