//! A hostile server and a hostile bucket: whatever they say, no parser panics, hangs or takes more
//! memory than an answer may have.
//!
//! Real answers and records are altered by structure (numbers, names, tags, nesting, lengths) and
//! by byte, then read by the drivers over a socket, and by the parsers of records. Reduced counts
//! by default; with `TRIALFS_TEST_FULL=1` each half goes on for five minutes.
//!
//! Owns the loop and what must hold. Does not own how text is altered (`mutate`) nor the server.

#[path = "hostile/mutate.rs"]
mod mutate;
#[path = "hostile/server.rs"]
mod server;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use trialfs::bucket::{BucketError, Condition, Metadata, Store};
use trialfs::checkpoint::record::{RecordKey, parse};
use trialfs::checkpoint::rules::rules_from_file;
use trialfs::clock;
use trialfs::namespace::attrs::AttrsRecord;
use trialfs::types::{ETag, Key};

use mutate::{Mutation, alter, mutations};
use server::{Hostile, Kind};

/// How long one half goes on with the full counts.
const FULL_SECONDS: u64 = 300;
/// Cases of the ordinary run.
const ANSWERS: u32 = 1_500;
const RECORDS: u32 = 4_000;
/// No answer keeps a driver longer: the server itself answers at once.
const ANSWER_SECONDS_MAX: Duration = Duration::from_secs(20);
/// Entries that a driver may make of one answer, whose bytes are bounded.
const ENTRIES_MAX: usize = 1_000_000;

/// Runs `test` on generated cases: a number of them, or for as long as the full run has.
fn for_cases<S: Strategy>(
    cases: u32,
    strategy: S,
    test: impl Fn(S::Value) -> Result<(), TestCaseError>,
) where
    S::Value: std::fmt::Debug,
{
    let full = std::env::var_os("TRIALFS_TEST_FULL").is_some();
    let clock = clock::system();
    let started = clock.now();
    let mut ran = 0u64;
    loop {
        let config = Config { cases, failure_persistence: None, ..Config::default() };
        TestRunner::new(config).run(&strategy, &test).unwrap();
        ran += u64::from(cases);
        if !full || clock.now() - started > Duration::from_secs(FULL_SECONDS) {
            eprintln!("{ran} cases in {:?}", clock.now() - started);
            return;
        }
    }
}

fn any_answer() -> impl Strategy<Value = (usize, usize, usize, u16, Vec<Mutation>)> {
    let status = prop_oneof![
        6 => Just(200u16),
        2 => Just(206),
        2 => Just(207),
        1 => prop::sample::select(vec![400u16, 401, 403, 404, 409, 412, 416, 429, 500, 503, 507]),
        1 => 200..600u16,
    ];
    (0..Kind::ALL.len(), 0..usize::MAX, 0..OPERATIONS, status, mutations())
}

const OPERATIONS: usize = 8;

#[test]
fn no_answer_of_a_server_crashes_or_holds_a_driver() {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    let hostile = runtime.block_on(Hostile::start());
    for_cases(ANSWERS, any_answer(), |(kind, seed, operation, status, mutations)| {
        let kind = Kind::ALL[kind];
        hostile.say(kind.answer(seed, status, &mutations));
        let store = hostile.store(kind);
        let asked =
            async { tokio::time::timeout(ANSWER_SECONDS_MAX, ask(&*store, operation)).await };
        let answered = runtime.block_on(asked);
        prop_assert!(answered.is_ok(), "{kind:?}: no end within {ANSWER_SECONDS_MAX:?}");
        Ok(())
    });
}

/// One operation; what it says does not matter, but what it hands up is bounded.
async fn ask(store: &dyn Store, operation: usize) {
    let key = Key::new("d/k");
    let body = Bytes::from_static(b"body");
    let (etag, none) = (ETag("5".to_owned()), Metadata::new());
    let of = |result: Result<(), BucketError>| drop(result);
    match operation {
        0 | 1 => {
            if let Ok(page) = store.list("d/", operation == 0, None, 1000).await {
                assert!(page.objects.len() + page.prefixes.len() < ENTRIES_MAX);
            }
        }
        2 => of(store.head(&key).await.map(drop)),
        3 => {
            if let Ok((_, mut body)) = store.get(&key, 0..1000, None).await {
                let mut bytes = 0;
                while let Some(Ok(frame)) = body.next().await {
                    bytes += frame.len();
                }
                assert!(bytes < server::ANSWER_BYTES_MAX);
            }
        }
        4 => {
            let put = store.put(&key, body, &Condition::IfAbsent, &none);
            of(put.await.map(drop));
        }
        5 => of(store.create_multipart(&key, &none).await.map(drop)),
        6 => {
            let parts = ["\"e\"".to_owned()];
            let done = store.complete_multipart(&key, "upload", &parts, &Condition::Always);
            of(done.await.map(drop));
        }
        _ => {
            let to = Key::new("d/to");
            let copied = store.copy(&key, Some(&etag), &to, &Condition::IfAbsent, &none);
            of(copied.await.map(drop));
        }
    }
}

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/format-1");
const ATTRS: &str = r#"{"format":1,"writer":"01JD8Z3V5N6Q7R8S9TAVBWCXDY","nonce":"00ff","entries":
{"a.b":{"etag":"\"e\"","kind":"File","mode":33188,"uid":0,"gid":0,"mtime":1700000000000000000,
"xattrs":{"user.a":"00ff"},"at":1700000000000000000},"d":{"kind":"Directory","mode":493,"uid":1,
"gid":1,"newest":-1,"at":5}}}"#;
const RULES: &str = "mine:ckpt-<n>,sign=DONE\n# a comment\nother:run_<digits>,idle=2s,max=10m\n";

#[test]
fn no_record_of_a_bucket_crashes_its_reader() {
    let mut records: Vec<(String, Vec<u8>)> = Vec::new();
    for file in std::fs::read_dir(Path::new(GOLDEN)).unwrap() {
        let file = file.unwrap();
        records
            .push((file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap()));
    }
    records.sort();
    let strategy = (0..records.len(), any::<bool>(), mutations());
    for_cases(RECORDS, strategy, |(which, alter_key, mutations)| {
        let (name, body) = &records[which];
        let altered = alter(body, &mutations);
        let name = match alter_key {
            true => String::from_utf8_lossy(&alter(name.as_bytes(), &mutations)).into_owned(),
            false => name.clone(),
        };
        if let Some(key) = RecordKey::parse(&name)
            && let Ok(record) = parse(&key, &altered)
        {
            // What is taken can be written again, and lies in its own directory.
            let again =
                parse(&record.key(), &record.encode().expect("what was read")).expect("same");
            prop_assert_eq!(again, record);
        }
        let attrs = alter(ATTRS.as_bytes(), &mutations);
        if let Ok(record) = AttrsRecord::parse(&attrs) {
            for (name, entry) in &record.entries {
                prop_assert!(!name.contains('/') && name != ".." && name != ".");
                let attributes = entry.attributes(std::time::SystemTime::UNIX_EPOCH);
                prop_assert_eq!(attributes.mode & !0o7777, 0);
            }
        }
        let rules = String::from_utf8_lossy(&alter(RULES.as_bytes(), &mutations)).into_owned();
        let _ = rules_from_file(&rules, Duration::from_millis(250));
        Ok(())
    });
}

#[test]
fn a_manifest_names_nothing_outside_its_directory() {
    let head = std::fs::read_to_string(format!(
        "{GOLDEN}/txn.checkpoint_000001.01JD8Z3V5N6Q7R8S9TAVBWCXDY.0"
    ));
    let text = head.unwrap();
    let key = RecordKey::parse("txn.checkpoint_000001.01JD8Z3V5N6Q7R8S9TAVBWCXDY.0").unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let name = value["entries"][0]["name"].as_str().expect("an entry's name").to_owned();
    assert!(parse(&key, text.as_bytes()).is_ok());
    for outside in ["../x", "a/../../x", "/etc/passwd", "a//b", ".", "..", "a/./b", "a/.trialfs/x"]
    {
        let altered = text.replace(&format!("\"{name}\""), &format!("\"{outside}\""));
        assert_ne!(altered, text);
        assert!(parse(&key, altered.as_bytes()).is_err(), "{outside} was taken");
    }
}
