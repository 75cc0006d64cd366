//! The conformance suite of `bucket`, run against every kind of store.
//!
//! Memory and file always run. A server is tested if its variable is set; without it the test says
//! so and passes, but fails under `CI=true`. Credentials for S3 come from the environment as usual
//! (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`).
//!
//! - `TRIALFS_TEST_S3`: endpoint and bucket of SeaweedFS, as `http://127.0.0.1:28333/bucket`
//! - `TRIALFS_TEST_RCLONE_S3`: the same of `rclone serve s3`
//! - `TRIALFS_TEST_AZURE`: endpoint, account and container of Azurite, as
//!   `http://127.0.0.1:10000/devstoreaccount1/container`; the key comes from `AZURE_STORAGE_KEY`
//! - `TRIALFS_TEST_GCS`: endpoint and bucket of fake-gcs-server; the emulator of `support/` always
//!   runs
//! - `TRIALFS_TEST_DAV_RCLONE`: an empty export of `rclone serve webdav`, with its user and
//!   password, as `http://dav:davpass@127.0.0.1:28381/`
//! - `TRIALFS_TEST_DAV_APACHE`: the same of Apache's `mod_dav`

#[path = "support/gcs_emulator.rs"]
mod gcs_emulator;
#[path = "conformance/suite.rs"]
mod suite;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use trialfs::bucket::{self, Bucket, Capabilities, Condition, Metadata, ReadOnly, probe};
use trialfs::clock;
use trialfs::config::{Location, StoreOptions};
use trialfs::types::Key;

use gcs_emulator::Emulator;
use suite::{Pages, Suite};

const IO_TIMEOUT: Duration = Duration::from_secs(30);

/// The value of `variable`; `None` if the test is to be left out.
fn server(variable: &str) -> Option<String> {
    let value = std::env::var(variable).ok().filter(|value| !value.is_empty());
    if value.is_none() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{variable} must be set in CI");
        eprintln!("left out: {variable} is not set");
    }
    value
}

async fn open(location: Location, options: StoreOptions) -> Arc<Bucket> {
    let store = bucket::open(&location, &options, clock::system()).await.unwrap();
    Bucket::new(store, clock::system(), IO_TIMEOUT)
}

async fn open_s3(url: &str) -> Arc<Bucket> {
    let (endpoint, bucket) = url.rsplit_once('/').expect("endpoint/bucket");
    let location = Location::S3 { bucket: bucket.to_owned(), prefix: String::new() };
    let options = StoreOptions { endpoint: Some(endpoint.to_owned()), ..StoreOptions::default() };
    let bucket = open(location, options).await;
    // PUT of the empty key is CreateBucket; what it answers does not matter, the tests will tell.
    let (root, always) = (Key::new(""), Condition::Always);
    let _ = bucket.put(&root, Bytes::new(), &always, &Metadata::new()).await;
    bucket
}

/// Probes the store, which must turn out as `expected` changes a whole one, and runs the suite.
async fn run(bucket: Arc<Bucket>, expected: impl FnOnce(&mut Capabilities)) {
    run_with(Pages::Nothing, bucket, expected).await;
}

async fn run_with(pages: Pages, bucket: Arc<Bucket>, expected: impl FnOnce(&mut Capabilities)) {
    let root = format!("conformance-{}/", clock::ulid(&clock::SystemClock));
    let mut whole = Capabilities {
        create_if_absent: true,
        replace_if_match: true,
        delete_if_match: true,
        multipart: true,
        part_copy: true,
        copy_condition: true,
        ranged_reads: true,
        metadata: true,
        create_sees_directories: false,
        list_after_write: true,
        markers: true,
        ..bucket.capabilities()
    };
    expected(&mut whole);
    let (found, lines) = probe(&bucket, &root, ReadOnly::No).await.unwrap();
    eprintln!("{:#?}\n{}", bucket.counts(), lines.join("\n"));
    assert_eq!(found, whole, "{lines:#?}");
    Suite { bucket, root, pages }.run().await;
}

#[tokio::test]
async fn memory() {
    let bucket = open(Location::Memory, StoreOptions::default()).await;
    run(bucket, |_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn file() {
    let dir = tempfile::tempdir().unwrap();
    let location = Location::Directory { path: dir.path().to_owned() };
    let bucket = open(location, StoreOptions::default()).await;
    run(bucket, |can| can.create_sees_directories = true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_on_seaweedfs() {
    let Some(url) = server("TRIALFS_TEST_S3") else { return };
    run(open_s3(&url).await, |can| can.create_sees_directories = true).await;
}

/// It ignores conditions and says 200: the probe must see through that.
#[tokio::test(flavor = "multi_thread")]
async fn s3_on_rclone_which_ignores_conditions() {
    let Some(url) = server("TRIALFS_TEST_RCLONE_S3") else { return };
    let expected = |can: &mut Capabilities| {
        can.create_if_absent = false;
        can.replace_if_match = false;
        can.delete_if_match = false;
        can.part_copy = false;
        can.markers = false;
        can.copy_condition = false;
    };
    run(open_s3(&url).await, expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn azure_on_azurite() {
    let Some(url) = server("TRIALFS_TEST_AZURE") else { return };
    let (endpoint, container) = url.rsplit_once('/').expect("endpoint/container");
    let location = Location::Azure { container: container.to_owned(), prefix: String::new() };
    let endpoint = Some(endpoint.to_owned());
    let bucket = open(location, StoreOptions { endpoint, ..StoreOptions::default() }).await;
    run(bucket, |_| {}).await;
}

async fn open_gcs(endpoint: &str, bucket: &str) -> Arc<Bucket> {
    let location = Location::Gcs { bucket: bucket.to_owned(), prefix: String::new() };
    let options = StoreOptions { endpoint: Some(endpoint.to_owned()), ..StoreOptions::default() };
    open(location, options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn gcs_as_its_reference_has_it() {
    let emulator = Emulator::start("bucket").await;
    let bucket = open_gcs(&emulator.endpoint(), "bucket").await;
    run(bucket, |can| can.part_copy = false).await;
    // The upload that was refused for an ETag that is no generation: its parts never were joined.
    assert_eq!((emulator.objects().len(), emulator.open_uploads()), (0, 1));
}

/// It keeps conditions on uploads of its own kind alone, has no XML multipart and no moves.
#[tokio::test(flavor = "multi_thread")]
async fn gcs_on_fake_gcs_server_which_ignores_most_conditions() {
    let Some(url) = server("TRIALFS_TEST_GCS") else { return };
    let (endpoint, bucket) = url.rsplit_once('/').expect("endpoint/bucket");
    let expected = |can: &mut Capabilities| {
        can.delete_if_match = false;
        can.multipart = false;
        can.part_copy = false;
        can.copy_condition = false;
        can.rename_file = false;
    };
    run_with(Pages::Prefixes, open_gcs(endpoint, bucket).await, expected).await;
}

/// What WebDAV has not, whoever serves it.
fn web_dav(can: &mut Capabilities) {
    can.replace_if_match = false;
    can.delete_if_match = false;
    can.multipart = false;
    can.part_copy = false;
    can.metadata = false;
}

async fn open_dav(url: String) -> Arc<Bucket> {
    open(Location::WebDav { url }, StoreOptions::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn web_dav_on_rclone() {
    let Some(url) = server("TRIALFS_TEST_DAV_RCLONE") else { return };
    let expected = |can: &mut Capabilities| {
        web_dav(can);
        can.create_sees_directories = true;
    };
    run(open_dav(url).await, expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn web_dav_on_apache() {
    let Some(url) = server("TRIALFS_TEST_DAV_APACHE") else { return };
    let expected = |can: &mut Capabilities| {
        web_dav(can);
        can.create_if_absent = false;
    };
    run(open_dav(url).await, expected).await;
}
