//! A server that says one thing to every request, and the stores that ask it.
//!
//! Owns sockets and the real answers. Does not own how they are altered (`mutate`).

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use trialfs::bucket::{self, Store};
use trialfs::clock;
use trialfs::config::{Location, Secret, StoreOptions};

use super::mutate::{Mutation, alter};

const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Of what the server sends at most.
pub const ANSWER_BYTES_MAX: usize = 4 << 20;

/// What is asked, and so what the answers look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    S3,
    Gcs,
    Azure,
    Dav,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::S3, Self::Gcs, Self::Azure, Self::Dav];

    /// A real answer of this kind of server, altered, head and all.
    pub fn answer(self, seed: usize, status: u16, mutations: &[Mutation]) -> Vec<u8> {
        let bodies: &[&str] = match self {
            Self::S3 => &[S3_LIST, S3_ERROR, S3_UPLOAD, S3_COMPLETE, S3_COPY],
            Self::Gcs => &[GCS_LIST, GCS_OBJECT, GCS_ERROR, S3_UPLOAD, S3_COMPLETE],
            Self::Azure => &[AZURE_LIST, AZURE_BLOCKS, AZURE_ERROR],
            Self::Dav => &[DAV_LIST, DAV_LIST, ""],
        };
        // Some alterations are the head's.
        let (in_head, in_body): (Vec<_>, Vec<_>) =
            mutations.iter().cloned().enumerate().partition(|(i, _)| (seed >> 8 >> i) & 3 == 0);
        let only =
            |those: Vec<(usize, Mutation)>| those.into_iter().map(|(_, m)| m).collect::<Vec<_>>();
        let body = alter(bodies[seed % bodies.len()].as_bytes(), &only(in_body));
        let length = match seed >> 16 & 15 {
            0 => body.len() + 1000,
            1 => usize::MAX >> 1,
            2 => body.len() / 2,
            _ => body.len(),
        };
        let head = String::from_utf8_lossy(&alter(HEAD.as_bytes(), &only(in_head))).into_owned();
        let mut answer = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n{head}\r\n\r\n"
        )
        .into_bytes();
        answer.extend_from_slice(&body);
        answer
    }
}

pub struct Hostile {
    answer: Arc<Mutex<Arc<Vec<u8>>>>,
    stores: Vec<Arc<dyn Store>>,
}

impl Hostile {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let answer: Arc<Mutex<Arc<Vec<u8>>>> = Arc::default();
        let said = answer.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let answer = said.lock().clone();
                tokio::spawn(serve(stream, answer));
            }
        });
        let mut stores = Vec::new();
        for kind in Kind::ALL {
            stores.push(open(kind, &endpoint).await);
        }
        Self { answer, stores }
    }

    pub fn say(&self, answer: Vec<u8>) {
        *self.answer.lock() = Arc::new(answer);
    }

    pub fn store(&self, kind: Kind) -> Arc<dyn Store> {
        let at = Kind::ALL.iter().position(|k| *k == kind).unwrap();
        self.stores[at].clone()
    }
}

async fn open(kind: Kind, endpoint: &str) -> Arc<dyn Store> {
    let prefix = String::new();
    let location = match kind {
        Kind::S3 => Location::S3 { bucket: "b".to_owned(), prefix },
        Kind::Gcs => Location::Gcs { bucket: "b".to_owned(), prefix },
        Kind::Azure => Location::Azure { container: "c".to_owned(), prefix },
        Kind::Dav => Location::WebDav { url: format!("{endpoint}/dav") },
    };
    let endpoint = match kind {
        Kind::Azure => format!("{endpoint}/account"),
        _ => endpoint.to_owned(),
    };
    let options = StoreOptions {
        endpoint: Some(endpoint),
        region: Some("us-east-1".to_owned()),
        anonymous: true,
        azure_account: Some("account".to_owned()),
        webdav_user: Some("u".to_owned()),
        webdav_password: Some(Secret::new("p")),
        ..StoreOptions::default()
    };
    bucket::open(&location, &options, clock::system()).await.unwrap()
}

/// Reads the head of a request, answers, and closes.
async fn serve(mut stream: TcpStream, answer: Arc<Vec<u8>>) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => request.extend_from_slice(&buffer[..n]),
        }
    }
    let _ = stream.write_all(&answer).await; // it may have gone already
    let _ = stream.shutdown().await;
}

const HEAD: &str = "etag: \"e\"\r\nlast-modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n\
content-range: bytes 0-8/9\r\nx-amz-checksum-crc64nvme: rosUhgp5mIg=\r\n\
x-amz-meta-trialfs-nonce: n\r\nx-goog-generation: 5\r\n\
x-goog-hash: crc32c=AAAAAA==\r\nretry-after: 1\r\n\
x-ms-request-id: 1\r\n\
x-amz-bucket-region: us-east-1";
const S3_LIST: &str = include_str!("../data/answers/s3_list.xml");
const S3_ERROR: &str = include_str!("../data/answers/s3_error.xml");
const S3_UPLOAD: &str = include_str!("../data/answers/s3_upload.xml");
const S3_COMPLETE: &str = include_str!("../data/answers/s3_complete.xml");
const S3_COPY: &str = include_str!("../data/answers/s3_copy.xml");
const GCS_LIST: &str = include_str!("../data/answers/gcs_list.json");
const GCS_OBJECT: &str = include_str!("../data/answers/gcs_object.json");
const GCS_ERROR: &str =
    r#"{"error":{"code":412,"message":"m","errors":[{"reason":"conditionNotMet","message":"m"}]}}"#;
const AZURE_LIST: &str = include_str!("../data/answers/azure_list.xml");
const AZURE_BLOCKS: &str = include_str!("../data/answers/azure_blocks.xml");
const AZURE_ERROR: &str =
    "<?xml version=\"1.0\"?><Error><Code>BlobNotFound</Code><Message>m</Message></Error>";
const DAV_LIST: &str = include_str!("../data/answers/dav_list.xml");
