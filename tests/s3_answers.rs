//! What the S3 driver makes of answers that real servers give seldom: bytes altered on their way,
//! and a server that is busy.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;
use trialfs::bucket::{self, Bucket, BucketError};
use trialfs::clock;
use trialfs::config::{Location, StoreOptions};
use trialfs::types::Key;

const BODY: &[u8] = b"123456789";
/// The CRC64NVME of [`BODY`], in base64.
const CRC: &str = "rosUhgp5mIg=";
const REQUEST_BYTES_MAX: usize = 16 << 10;

/// A server that gives these answers, the last one for ever, each on a connection of its own.
async fn serving(answers: Vec<String>, io_timeout: Duration) -> Arc<Bucket> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        for number in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
                request.push(stream.read_u8().await.unwrap());
            }
            let asks = String::from_utf8(request).unwrap().to_ascii_lowercase();
            assert!(asks.contains("x-amz-checksum-mode: enabled"), "{asks}");
            let answer = &answers[answers.len().min(number + 1) - 1];
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let location = Location::S3 { bucket: "b".to_owned(), prefix: String::new() };
    let options = StoreOptions {
        endpoint: Some(endpoint),
        region: Some("us-east-1".to_owned()),
        anonymous: true,
        ..StoreOptions::default()
    };
    let store = bucket::open(&location, &options, clock::system()).await.unwrap();
    Bucket::new(store, clock::system(), io_timeout)
}

fn answer(body: &str, crc: &str) -> String {
    let len = body.len();
    format!(
        "HTTP/1.1 206 Partial Content\r\nETag: \"e\"\r\nContent-Length: {len}\r\n\
         Content-Range: bytes 0-{}/{len}\r\nx-amz-checksum-crc64nvme: {crc}\r\n\
         Connection: close\r\n\r\n{body}",
        len - 1
    )
}

#[tokio::test]
async fn bytes_altered_on_their_way_are_fetched_again() {
    let right = answer("123456789", CRC);
    let answers = vec![answer("123456780", CRC), answer("023456789", CRC), right];
    let bucket = serving(answers, Duration::from_secs(20)).await;
    let (_, bytes) = bucket.get_bytes(&Key::new("k"), 0..1000, None).await.unwrap();
    assert_eq!(bytes, BODY);
    assert_eq!(bucket.counts().get, 3);
}

#[tokio::test]
async fn bytes_that_are_always_wrong_are_an_error_within_the_bound() {
    let bucket = serving(vec![answer("123456780", CRC)], Duration::from_secs(1)).await;
    let started = Instant::now();
    let error = bucket.get_bytes(&Key::new("k"), 0..1000, None).await.unwrap_err();
    assert!(matches!(error, BucketError::Corrupt(_)), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_part_of_an_object_is_not_compared_with_the_checksum_of_the_whole() {
    let part = answer("123456789", "AAAAAAAAAAA=").replace("0-8/9", "0-8/99");
    let bucket = serving(vec![part], Duration::from_secs(5)).await;
    let (_, bytes) = bucket.get_bytes(&Key::new("k"), 0..9, None).await.unwrap();
    assert_eq!(bytes, BODY);
}

#[tokio::test]
async fn a_throttling_server_is_left_alone_for_as_long_as_it_says() {
    let busy = |after: &str| {
        format!(
            "HTTP/1.1 503 Slow Down\r\nRetry-After: {after}\r\nContent-Length: 0\r\n\
             Date: Wed, 21 Oct 2015 07:28:00 GMT\r\nConnection: close\r\n\r\n"
        )
    };
    let dated = busy("Wed, 21 Oct 2015 07:28:01 GMT");
    let answers = vec![busy("1"), dated, answer("123456789", CRC)];
    let bucket = serving(answers, Duration::from_secs(20)).await;
    let started = Instant::now();
    let (_, bytes) = bucket.get_bytes(&Key::new("k"), 0..1000, None).await.unwrap();
    assert_eq!(bytes, BODY);
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(bucket.counts().get, 3);
}

/// A server that takes the head of each request and the first bytes of its body, and no more.
async fn stalling(io_timeout: Duration) -> Arc<Bucket> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut some = [0; 1024];
            let _ = stream.read(&mut some).await;
            held.push(stream);
        }
    });
    let location = Location::S3 { bucket: "b".to_owned(), prefix: String::new() };
    let options = StoreOptions {
        endpoint: Some(endpoint),
        region: Some("us-east-1".to_owned()),
        anonymous: true,
        ..StoreOptions::default()
    };
    let store = bucket::open(&location, &options, clock::system()).await.unwrap();
    Bucket::new(store, clock::system(), io_timeout)
}

#[tokio::test]
async fn a_large_body_that_stands_still_is_not_waited_for_as_on_a_slow_link() {
    let bucket = stalling(Duration::from_secs(2)).await;
    let started = Instant::now();
    let body = bytes::Bytes::from(vec![7; 16 << 20]);
    let sent = bucket.upload_part(&Key::new("k"), "upload", 1, body).await;
    assert!(matches!(sent, Err(BucketError::TimedOut(_))), "{sent:?}");
    // The kernel's own buffers are given 8 s; 16 MiB on the slowest link would be given 128.
    assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
}
