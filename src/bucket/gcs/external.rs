//! Workload identity federation: a token that the machine's own identity provider gave is exchanged
//! for Google's, and where the file says so that for a service account's.
//!
//! Owns the requests of an exchange: one for the provider's token where it has an address, one to
//! the token service, one for the service account. Does not own the words (`account`) nor when the
//! next is due (`lent`). Tokens leave only in requests; no error and no `Debug` shows one.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::gcp::GcpCredential;
use reqwest::{Client, RequestBuilder, header};

use crate::bucket::error::BucketError;
use crate::bucket::gcs::account::{self, Account, Subject};
use crate::bucket::lent::{Lent, Loan};
use crate::bucket::{date, http};
use crate::clock::Clock;

/// A whole exchange; shorter than anybody waits for a token, so that one that hangs is known as
/// such.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(6);
/// The largest token that is read from a file; real ones have some KiB.
const SUBJECT_BYTES_MAX: u64 = 256 << 10;

/// A federated identity.
pub struct External {
    account: Account,
    client: Client,
    clock: Arc<dyn Clock>,
    lent: Lent<GcpCredential>,
}

impl std::fmt::Debug for External {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("External").finish_non_exhaustive()
    }
}

impl External {
    pub fn new(account: Account, client: Client, clock: Arc<dyn Clock>) -> Self {
        let lent = Lent::new(clock.clone());
        Self { account, client, clock, lent }
    }

    async fn exchange(&self) -> Result<Loan<GcpCredential>, BucketError> {
        let subject =
            self.account.subject_token(&self.held().await?).map_err(BucketError::Denied)?;
        let mut request = self.client.post(&self.account.token_url);
        if let (Some(id), Some(secret)) = (&self.account.client_id, &self.account.client_secret) {
            let quoted = (http::encode_component(id), http::encode_component(secret));
            request = request.basic_auth(quoted.0, Some(quoted.1));
        }
        let request = request
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(self.account.exchange(&subject));
        let asked_at = self.clock.wall();
        let answer = ask("the token service", request).await?;
        let granted = account::exchanged(&answer).ok_or_else(|| odd("the token service"))?;
        let Some(url) = &self.account.impersonation_url else {
            let until = granted.seconds.map(|seconds| asked_at + Duration::from_secs(seconds));
            return Ok((GcpCredential { bearer: granted.token }, until));
        };
        let request = self
            .client
            .post(url)
            .bearer_auth(&granted.token)
            .header(header::CONTENT_TYPE, "application/json")
            .body(self.account.impersonation());
        let answer = ask("the service account", request).await?;
        let lent = account::impersonated(&answer).ok_or_else(|| odd("the service account"))?;
        Ok((GcpCredential { bearer: lent.0 }, date::iso(&lent.1)))
    }

    /// What the source holds: read anew each time, since others write fresh tokens there.
    async fn held(&self) -> Result<String, BucketError> {
        let bytes = match self.account.subject().map_err(BucketError::Denied)? {
            Subject::File(path) => read(path).await.map_err(|error| {
                BucketError::Unavailable(format!("credential_source {path}: {error}"))
            })?,
            Subject::Url(url, headers) => {
                let request =
                    headers.into_iter().fold(self.client.get(url), |request, (name, value)| {
                        request.header(name, value)
                    });
                ask("credential_source", request).await?.to_vec()
            }
        };
        String::from_utf8(bytes).map_err(|_| odd("credential_source"))
    }
}

#[async_trait]
impl CredentialProvider for External {
    type Credential = GcpCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<GcpCredential>> {
        let asked = async {
            let answer = tokio::time::timeout(EXCHANGE_TIMEOUT, self.exchange()).await;
            answer.unwrap_or_else(|_| Err(BucketError::TimedOut(format!("{EXCHANGE_TIMEOUT:?}"))))
        };
        let lent = self.lent.get(asked).await;
        lent.map_err(|error| object_store::Error::Generic {
            store: "GCS",
            source: plain(error).into(),
        })
    }
}

async fn read(path: &str) -> std::io::Result<Vec<u8>> {
    use tokio::io::AsyncReadExt;
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(SUBJECT_BYTES_MAX).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// The answer to a request, or why `whom` refused.
async fn ask(whom: &str, request: RequestBuilder) -> Result<bytes::Bytes, BucketError> {
    let named = |error: BucketError| BucketError::Unavailable(format!("{whom}: {error}"));
    let response = request.send().await.map_err(|error| named(http::transport_error(error)))?;
    let status = response.status();
    let body = http::collect(response).await.map_err(named)?;
    if status.is_success() {
        return Ok(body);
    }
    let why = format!("{whom} answers {}: {}", status.as_u16(), account::refusal(&body));
    Err(BucketError::Denied(why))
}

/// Without what would blame the store.
fn plain(error: BucketError) -> String {
    match error {
        BucketError::Denied(why) | BucketError::Unavailable(why) => why,
        other => other.to_string(),
    }
}

fn odd(whom: &str) -> BucketError {
    BucketError::Invalid(format!("the answer of {whom} is not understood"))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use parking_lot::Mutex;
    use serde_json::json;
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    use super::*;

    /// A machine's identity provider, Google's token service and a service account, on one port.
    #[derive(Default)]
    struct Cloud {
        /// What was asked: the path, a header `authorization` or `metadata`, the body.
        asked: Mutex<Vec<(String, String, String)>>,
        refuses: Mutex<bool>,
    }

    impl Cloud {
        async fn start() -> (Arc<Self>, String) {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let at = format!("http://{}", listener.local_addr().expect("an address"));
            let cloud = Arc::new(Self::default());
            let serving = cloud.clone();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    serving.serve(stream).await;
                }
            });
            (cloud, at)
        }

        async fn serve(&self, stream: tokio::net::TcpStream) {
            let mut stream = BufReader::new(stream);
            let mut head = Vec::new();
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).await.expect("a line");
                match line.trim() {
                    "" => break,
                    line => head.push(line.to_owned()),
                }
            }
            let header = |name: &str| {
                let line =
                    head.iter().find_map(|line| line.split_once(": ").filter(|h| h.0 == name));
                line.map(|header| header.1.to_owned()).unwrap_or_default()
            };
            let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
            stream.read_exact(&mut body).await.expect("a body");
            let path = head[0].split(' ').nth(1).expect("a path").to_owned();
            let answer = self.answer(&path);
            let shown = header("authorization") + &header("metadata");
            self.asked.lock().push((path, shown, String::from_utf8(body).expect("text")));
            let status = if *self.refuses.lock() { "400 Bad Request" } else { "200 OK" };
            let text = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
                answer.len()
            );
            stream.write_all(text.as_bytes()).await.expect("written");
        }

        fn answer(&self, path: &str) -> String {
            let number = self.asked.lock().len();
            let answer = match path {
                _ if *self.refuses.lock() => {
                    json!({ "error": "invalid_grant", "error_description": "expired" })
                }
                "/identity" => json!({ "id_token": "ey" }),
                "/sts" => json!({ "access_token": format!("sts{number}"), "expires_in": 40 }),
                _ => json!({ "accessToken": "lent", "expireTime": "2100-01-01T00:00:00Z" }),
            };
            answer.to_string()
        }
    }

    /// The system's time, and what a test adds to it.
    #[derive(Debug, Default)]
    struct Later(Mutex<Duration>);

    impl Clock for Later {
        fn now(&self) -> std::time::Instant {
            crate::clock::system().now()
        }

        fn wall(&self) -> SystemTime {
            crate::clock::system().wall() + *self.0.lock()
        }

        fn random(&self) -> u64 {
            0
        }
    }

    fn external(at: &str, more: serde_json::Value, clock: Arc<dyn Clock>) -> External {
        let mut file = json!({
            "type": "external_account",
            "audience": "//iam/p",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": format!("{at}/sts"),
        });
        let more = more.as_object().expect("an object").clone();
        file.as_object_mut().expect("an object").extend(more);
        let account = Account::parse(&file.to_string()).expect("understood");
        External::new(account, http::client(None).expect("a client"), clock)
    }

    #[tokio::test]
    async fn a_token_of_a_file_is_exchanged_and_renewed_with_what_stands_there_then() {
        let (cloud, at) = Cloud::start().await;
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&file, "first\n").expect("written");
        let clock = Arc::new(Later::default());
        let source = json!({ "credential_source": { "file": file.path() } });
        let external = external(&at, source, clock.clone());
        for _ in 0..3 {
            assert_eq!(external.get_credential().await.expect("a token").bearer, "sts0");
        }
        std::fs::write(&file, "second").expect("written");
        *clock.0.lock() = Duration::from_secs(21);
        assert_eq!(external.get_credential().await.expect("a token").bearer, "sts1");
        let asked = cloud.asked.lock().clone();
        assert!(asked[0].2.contains("subject_token=first") && asked[0].2.contains("audience=%2F"));
        assert!(asked.len() == 2 && asked[1].2.contains("subject_token=second"), "{asked:?}");
        // A service that fails is not asked at each request, and what is still good is used.
        *cloud.refuses.lock() = true;
        *clock.0.lock() = Duration::from_secs(45);
        for _ in 0..3 {
            assert_eq!(external.get_credential().await.expect("a token").bearer, "sts1");
        }
        assert_eq!(cloud.asked.lock().len(), 3);
    }

    #[tokio::test]
    async fn a_token_of_an_address_is_exchanged_for_that_of_a_service_account() {
        let (cloud, at) = Cloud::start().await;
        let more = json!({
            "service_account_impersonation_url": format!("{at}/lend"),
            "service_account_impersonation": { "token_lifetime_seconds": 600 },
            "credential_source": {
                "url": format!("{at}/identity"), "headers": { "Metadata": "True" },
                "format": { "type": "json", "subject_token_field_name": "id_token" },
            },
        });
        let external = external(&at, more, crate::clock::system());
        assert_eq!(external.get_credential().await.expect("a token").bearer, "lent");
        let asked = cloud.asked.lock().clone();
        assert_eq!((asked[0].0.as_str(), asked[0].1.as_str()), ("/identity", "True"));
        assert!(
            asked[1].2.contains("subject_token=ey&") || asked[1].2.ends_with("subject_token=ey")
        );
        assert_eq!(asked[2].1, "Bearer sts1");
        assert!(asked[2].2.contains("\"600s\""), "{asked:?}");
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_one_line_without_the_token() {
        let (cloud, at) = Cloud::start().await;
        *cloud.refuses.lock() = true;
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&file, "hunter2").expect("written");
        let source = json!({ "credential_source": { "file": file.path() } });
        let external = external(&at, source, crate::clock::system());
        let said = external.get_credential().await.expect_err("refused").to_string();
        let want = "the token service answers 400: invalid_grant: expired";
        assert!(said.ends_with(want) && !said.contains("hunter2"), "{said}");
    }
}
