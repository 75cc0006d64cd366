//! Format 1 against its golden files, against itself, and against hostile input.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/format-1");

fn golden() -> Vec<(RecordKey, Vec<u8>)> {
    let files = std::fs::read_dir(GOLDEN).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<PathBuf> = files.collect();
    files.sort();
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let key = |path: &PathBuf| RecordKey::parse(&name(path)).expect("a golden file's name");
    files.iter().map(|path| (key(path), std::fs::read(path).unwrap())).collect()
}

fn read(name: &str) -> Record {
    let key = RecordKey::parse(name).unwrap();
    parse(&key, &std::fs::read(format!("{GOLDEN}/{name}")).unwrap()).unwrap()
}

const ID: &str = "01JD8Z3V5N6Q7R8S9TAVBWCXDY";

#[test]
fn every_record_ever_written_in_format_1_is_still_read_and_kept_whole() {
    let golden = golden();
    assert_eq!(golden.len(), 16, "the golden files are never removed; count the new one");
    for (key, bytes) in golden {
        let record = parse(&key, &bytes).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(record.key(), key);
        let same = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        assert_eq!(same(&record.encode().unwrap()), same(&bytes), "{key}: a field was lost");
    }
}

#[test]
fn golden_records_mean_what_they_meant() {
    let Record::Head(head) = read(&format!("txn.checkpoint_000001.{ID}")) else { panic!() };
    assert_eq!((head.generation, head.order, head.lease_ms), (Generation(1), 1, 30_000));
    let State::Prepared { manifest, sign } = &head.state else { panic!() };
    assert_eq!(*sign, Some(Sign::Idle));
    assert_eq!(manifest.seqs, [SeqRef { seq: 0, nonce: Nonce(0x00ff_00ff_00ff_00ff) }]);
    assert_eq!(manifest.entries[0].what, What::Removed { version: Some(ETag("\"e1\"".into())) });

    let Record::Seq(seq) = read(&format!("txn.checkpoint_000001.{ID}.0")) else { panic!() };
    let What::File { size, crc, upload, inline } = &seq.entries[0].what else { panic!() };
    assert_eq!((*size, *crc), (5, Some(0x0123_4567_89ab_cdef)));
    assert_eq!((upload.id.as_str(), upload.parts.len()), ("upload-a", 1));
    assert_eq!(inline.as_deref(), Some(&b"hello"[..]));
    assert_eq!(seq.entries[0].mode, Some(0o644));

    let Record::Seal(seal) = read("txn.checkpoint_000001.seal.1") else { panic!() };
    assert_eq!((seal.verdict, seal.records.len(), seal.dropped.len()), (Verdict::Commit, 1, 1));
    let Record::Seal(seal) = read("txn.checkpoint_000002.seal.3") else { panic!() };
    assert_eq!(seal.verdict, Verdict::Void);
    assert!(matches!(read("txn.checkpoint_000001.done.1"), Record::Done(_)));
}

#[test]
fn golden_renames_mean_what_they_meant() {
    let Record::From(from) = read(&format!("txn.run.from.{ID}")) else { panic!() };
    assert_eq!(from.other.from("root/new").as_deref(), Some("root/old/runs"));
    let Record::To(to) = read(&format!("txn.run%201.to.{ID}")) else { panic!() };
    assert_eq!((to.verdict, to.lists.len(), to.entries.len()), (Ruling::Move, 1, 4));
    assert_eq!(to.other.from("root/old/runs").as_deref(), Some("root/new"));
    assert!(to.entries[0].name.is_marker() && to.entries[1].name.is_marker());
    assert!(to.entries[2].name.is_control() && to.entries[3].name.is_control());
    let Record::To(void) = read(&format!("txn.gone.to.{ID}")) else { panic!() };
    assert_eq!(void.verdict, Ruling::Void);
    assert!(matches!(read(&format!("txn.run%201.into.{ID}")), Record::Into(into) if into.over));
}

#[test]
fn renames_that_name_keys_outside_their_directory_are_refused() {
    let long = "x/".repeat(600) + "x";
    let bad = ["..", "../b", "a/../../b", "/etc/passwd", "a//b", "//", "/", "a\nb", "a\u{0}", "."];
    let ours = [
        ".trialfs",
        ".trialfs/",
        ".trialfs/attrs.",
        ".trialfs/attrs.a/b",
        ".trialfs/../x",
        "../.trialfs/attrs.a",
        ".trialfs/txn.a.seal.1",
        "a/.trialfs/.trialfs/attrs.a",
        ".trialfs/moving.01JD8Z3V5N6Q7R8S9TAVBWCXDY",
        &long,
    ];
    for name in bad.iter().chain(&ours) {
        assert!(Suffix::new(name).is_err(), "{name:?}");
    }
    for name in ["", "a", "a/", "a/b.pt", ".trialfs/attrs.m", "a/.trialfs/txn.c.done.1"] {
        assert!(Suffix::new(name).is_ok(), "{name:?}");
    }
    let name = || Name::new("x").unwrap();
    let way = |up, down: &str| Way { up, down: RelPath::new(down).unwrap(), name: name() };
    assert_eq!(way(3, "").from("a/b"), None, "out of the bucket");
    assert_eq!(way(u32::MAX, "").from("a"), None);
    for (from, to) in [("", ""), ("", "a/b"), ("a/b", ""), ("a/b", "a/c/d"), ("a", "ab")] {
        assert_eq!(Way::new(from, to, name()).unwrap().from(from).as_deref(), Some(to));
    }
}

#[test]
fn a_record_of_a_later_format_is_told_apart_from_a_broken_one() {
    let key = RecordKey::parse("txn.a.seal.1").unwrap();
    let later = br#"{"format": 2, "record": "seal", "anything": [1]}"#;
    assert_eq!(parse(&key, later), Err(RecordError::Future(2)));
    for broken in [&b"{}"[..], b"", b"[]", b"null", br#"{"format":0,"record":"seal"}"#] {
        assert!(matches!(parse(&key, broken), Err(RecordError::Invalid(_))), "{broken:?}");
    }
}

#[test]
fn a_record_under_another_key_than_its_own_is_refused() {
    let seal = std::fs::read(format!("{GOLDEN}/txn.checkpoint_000001.seal.1")).unwrap();
    for other in ["txn.checkpoint_000001.seal.2", "txn.checkpoint_000002.seal.1", "txn.a.done.1"] {
        let key = RecordKey::parse(other).unwrap();
        assert!(matches!(parse(&key, &seal), Err(RecordError::Invalid(_))), "{other}");
    }
}

#[test]
fn manifests_that_name_keys_outside_their_directory_are_refused() {
    let key = RecordKey::parse(&format!("txn.a.{ID}.0")).unwrap();
    let with = |name: &str| {
        let upload = serde_json::json!({"id": "u", "parts": []});
        let entry = serde_json::json!({"name": name, "kind": "file", "size": 1, "upload": upload});
        let seq = serde_json::json!({"format": 1, "record": "seq", "child": "a", "writer": "w",
            "nonce": "0000000000000001", "txn": ID, "seq": 0, "entries": [entry]});
        parse(&key, seq.to_string().as_bytes())
    };
    assert!(with("rank0/data.distcp").is_ok());
    let long = "x/".repeat(600) + "x";
    let bad = ["..", "../b", "a/../../b", "/etc/passwd", "a//b", "a/", "a\nb", "a\u{0}", ".", ""];
    let ours = [".trialfs/txn.b.seal.1", "sub/.trialfs/x", &long];
    for name in bad.iter().chain(&ours) {
        assert!(matches!(with(name), Err(RecordError::Invalid(_))), "{name:?}");
    }
}

#[test]
fn records_over_their_bounds_are_refused() {
    let key = RecordKey::parse(&format!("txn.a.{ID}.0")).unwrap();
    let huge = vec![b' '; RECORD_BYTES_MAX + 1];
    assert_eq!(parse(&key, &huge), Err(RecordError::TooLarge(RECORD_BYTES_MAX as u64 + 1)));
    assert!(check_size(1 << 30).is_err());
    let Record::Seq(mut seq) = read(&format!("txn.checkpoint_000001.{ID}.0")) else { panic!() };
    let entry = Entry::new(RelPath::new("f").unwrap(), What::Removed { version: None });
    seq.entries = vec![entry; ENTRIES_MAX + 1];
    assert!(Record::Seq(seq).encode().is_err());
    let deep = "[".repeat(100_000);
    assert!(matches!(parse(&key, deep.as_bytes()), Err(RecordError::Invalid(_))));
}

#[test]
fn names_stand_in_keys_unambiguously() {
    let name = |text: &str| Name::new(text).unwrap();
    let escaped = |text: &str| Escaped::of(&name(text)).as_str().to_owned();
    assert_eq!(escaped("checkpoint_000001"), "checkpoint_000001");
    assert_eq!(escaped("a.seal"), "a%2Eseal");
    assert_eq!(escaped("100%"), "100%25");
    assert_eq!(escaped("~x~"), "%7Ex%7E");
    let long = escaped(&"é".repeat(100));
    assert!(long.len() <= key::ESCAPED_BYTES_MAX && long.starts_with('~'), "{long}");
    assert_ne!(long, escaped(&("é".repeat(99) + "e")));
    assert!(Escaped::of(&name(&"é".repeat(100))).name().is_none());
    for text in ["a.b", "%2E", "lr=0.1,bs=[32]", "ü", "seal", "a b"] {
        assert_eq!(Escaped::of(&name(text)).name(), Some(name(text)));
    }
}

#[test]
fn keys_that_are_not_ours_are_left_alone() {
    let full = format!("txn.a.{ID}.0.1");
    let bad = [
        "",
        "txn",
        "txn.a",
        "attrs.x",
        "txn.a.seal",
        "txn.a.seal.01",
        "txn.a.seal.+1",
        "txn.a.b",
        "txn.a.seal.99999999999999999999",
        "txn..seal.1",
        "txn.%2e.seal.1",
        "txn.a%41.seal.1",
        "txn.a b.seal.1",
        "txn.a.seal.1.2",
        "txn.%2E%2E.seal.1",
        "txn.~short~0.seal.1",
        &full,
    ];
    for text in bad {
        assert_eq!(RecordKey::parse(text), None, "{text}");
    }
    assert_eq!(RecordKey::parse(&format!("txn.a.{}", "Z".repeat(26))), None, "over 128 bits");
}

#[test]
fn a_directory_too_deep_for_control_keys_is_told_so() {
    let key = RecordKey::parse(&format!("txn.a.{ID}.0")).unwrap();
    assert_eq!(key.to_key("").unwrap().as_str(), format!(".trialfs/txn.a.{ID}.0"));
    assert_eq!(key.to_key("d/e").unwrap().as_str(), format!("d/e/.trialfs/txn.a.{ID}.0"));
    assert_eq!(key.to_key(&"d".repeat(1000)), Err(key::KeyTooLong));
    assert!(key.to_key("d").unwrap().as_str().starts_with(&key::child_prefix("d", &key.child)));
}

fn names() -> impl Strategy<Value = Name> {
    "[^/\\pC]{1,60}".prop_filter_map("not a name", |text| Name::new(&text).ok())
}

fn paths() -> impl Strategy<Value = RelPath> {
    prop::collection::vec(names(), 1..4).prop_filter_map("too long", |names| {
        let names: Vec<&str> = names.iter().map(Name::as_str).collect();
        RelPath::new(&names.join("/")).ok()
    })
}

fn uploads() -> impl Strategy<Value = Upload> {
    let id = "[ -~]{1,60}";
    (id, prop::collection::vec(id, 0..4)).prop_map(|(id, parts)| Upload { id, parts })
}

fn whats() -> impl Strategy<Value = What> {
    let inline = prop::collection::vec(any::<u8>(), 0..50);
    prop_oneof![
        (any::<u64>(), any::<Option<u64>>(), uploads())
            .prop_map(|(size, crc, upload)| { What::File { size, crc, upload, inline: None } }),
        (inline, uploads()).prop_map(|(bytes, upload)| What::File {
            size: bytes.len() as u64,
            crc: None,
            upload,
            inline: Some(bytes.into()),
        }),
        uploads().prop_map(|upload| What::Symlink { upload }),
        Just(What::Directory),
        any::<Option<String>>().prop_map(|tag| What::Removed { version: tag.map(ETag) }),
    ]
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let entry = (paths(), whats(), any::<Option<u32>>(), any::<Option<i64>>());
    let entry = entry.prop_map(|(name, what, mode, mtime_ns)| Entry {
        mode,
        mtime_ns,
        ..Entry::new(name, what)
    });
    prop::collection::vec(entry, 0..5)
}

fn manifests() -> impl Strategy<Value = Manifest> {
    let seqs = prop::collection::vec((any::<u32>(), any::<u64>()), 0..4).prop_map(|seqs| {
        seqs.into_iter().map(|(seq, nonce)| SeqRef { seq, nonce: Nonce(nonce) }).collect()
    });
    (seqs, entries()).prop_map(|(seqs, entries)| Manifest { seqs, entries })
}

fn states() -> impl Strategy<Value = State> {
    let signs = [None, Some(Sign::Idle), Some(Sign::Sign), Some(Sign::Explicit)];
    prop_oneof![
        Just(State::Open),
        (manifests(), prop::sample::select(signs.to_vec()))
            .prop_map(|(manifest, sign)| State::Prepared { manifest, sign }),
        manifests().prop_map(|manifest| State::Torn { manifest }),
        prop::sample::select(vec![Cause::Withdrawn, Cause::Restart, Cause::Lease])
            .prop_map(|cause| State::Aborted { cause }),
    ]
}

fn records() -> impl Strategy<Value = Record> {
    let ids = (names(), any::<u64>(), any::<u128>(), any::<u64>(), any::<u32>());
    let unknown = prop::collection::vec(("x_[a-z]{1,5}", any::<u32>()), 0..3);
    let unknown = unknown.prop_map(|all| all.into_iter().map(|(k, v)| (k, v.into())).collect());
    let sealed = prop::collection::vec((any::<u128>(), any::<String>()), 0..4);
    (ids, states(), entries(), sealed, unknown, 0..4).prop_map(
        |((child, nonce, txn, number, seq), state, entries, sealed, unknown, which)| {
            let (writer, nonce) = (WriterId::new("mount-1").unwrap(), Nonce(nonce));
            let (txn, generation) = (TxnId(txn), Generation(number >> 16));
            let dropped = sealed.iter().map(|(id, _)| TxnId(id ^ 1)).collect();
            let records = sealed.into_iter();
            let records = records.map(|(id, tag)| Sealed { txn: TxnId(id), etag: ETag(tag) });
            let (records, verdict) = (records.collect(), Verdict::Commit);
            let (rule, loss) = ("ray".into(), Loss::Alone);
            let (order, lease_ms) = (number ^ 7, number ^ 9);
            match which {
                0 => Record::Head(Head {
                    child,
                    writer,
                    nonce,
                    txn,
                    generation,
                    order,
                    lease_ms,
                    written_as: (number % 2 == 0).then(|| Name::new("tmp-x").unwrap()),
                    rule,
                    loss,
                    state,
                    unknown,
                }),
                1 => Record::Seq(Seq { child, writer, nonce, txn, seq, entries, unknown }),
                2 => Record::Seal(Seal {
                    child,
                    writer,
                    nonce,
                    generation,
                    verdict,
                    records,
                    dropped,
                    unknown,
                }),
                _ => Record::Done(Done { child, writer, nonce, generation, unknown }),
            }
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(record in records()) {
        let key = record.key();
        prop_assert_eq!(&RecordKey::parse(&key.to_string()).unwrap(), &key);
        prop_assert_eq!(parse(&key, &record.encode().unwrap()).unwrap(), record);
    }

    #[test]
    fn distinct_names_never_share_a_key(a in names(), b in names()) {
        prop_assert_eq!(a == b, Escaped::of(&a) == Escaped::of(&b));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for (key, _) in golden() {
            let _ = parse(&key, &bytes);
        }
    }

    #[test]
    fn arbitrary_key_names_never_panic(text in "\\PC{0,60}") {
        if let Some(key) = RecordKey::parse(&text) {
            prop_assert_eq!(key.to_string(), text);
        }
    }

    #[test]
    fn damaged_records_never_panic(which in 0usize..16, at in any::<prop::sample::Index>(),
                                   with in any::<u8>(), cut in any::<bool>()) {
        let (key, mut bytes) = golden().swap_remove(which);
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = with }
        let _ = parse(&key, &bytes);
    }
}
