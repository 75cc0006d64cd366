//! Who we are to Google: application default credentials, found where Google's tools look and
//! refreshed for as long as the mount lives: federated ones by `external`, others by
//! `object_store`.
//!
//! Owns what becomes of a token that is refused. Does not own the flows. Tokens leave only as the
//! header that carries them; no error and no `Debug` shows one.
//!
//! Looked for in this order: the file that `GOOGLE_APPLICATION_CREDENTIALS` names; what `gcloud
//! auth application-default login` wrote; the metadata server of the machine (Compute Engine, GKE,
//! Cloud Run). Files may be keys of service accounts, users' logins and federated identities.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::gcp::{GcpCredentialProvider, GoogleCloudStorageBuilder};
use object_store::{BackoffConfig, RetryConfig};
use parking_lot::Mutex;
use reqwest::Client;
use reqwest::header::HeaderValue;

use crate::bucket::error::BucketError;
use crate::bucket::gcs::account::{self, Account};
use crate::bucket::gcs::external::External;
use crate::bucket::http;
use crate::clock::Clock;

/// How long the sources are asked; past it there is no metadata server and no login.
const LOOK_TIMEOUT: Duration = Duration::from_secs(8);
const RETRIES_MAX: usize = 2;

const FILE_VARIABLE: &str = "GOOGLE_APPLICATION_CREDENTIALS";
const NONE_FOUND: &str = "no credentials found: set GOOGLE_APPLICATION_CREDENTIALS to a key file, \
     or run `gcloud auth application-default login`, or mount with --anonymous";

/// Where tokens come from.
pub struct Credentials {
    source: Source,
    state: Mutex<State>,
}

/// What a provider of tokens is made of.
struct Source {
    file: Option<PathBuf>,
    client: Client,
    clock: Arc<dyn Clock>,
}

struct State {
    provider: GcpCredentialProvider,
    /// Whether the store took a token of this provider.
    accepted: bool,
    epoch: Epoch,
}

/// Counts the providers, so that requests that fail together renew the token once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(u64);

impl Credentials {
    /// Reads files, makes no request.
    pub fn find(client: Client, clock: Arc<dyn Clock>) -> Result<Self, BucketError> {
        Self::of(Source { file: told_file().or_else(gcloud_file), client, clock })
    }

    fn of(source: Source) -> Result<Self, BucketError> {
        let provider = source.provider()?;
        let state = Mutex::new(State { provider, accepted: false, epoch: Epoch(0) });
        Ok(Self { source, state })
    }

    /// The header that says who we are. A request to Google where the token has run out.
    /// [`BucketError::Denied`] if there is none to be had; [`BucketError::Unavailable`] if one was
    /// there and its source does not answer now.
    pub async fn bearer(&self) -> Result<(HeaderValue, Epoch), BucketError> {
        let (provider, accepted, epoch) = {
            let state = self.state.lock();
            (state.provider.clone(), state.accepted, state.epoch)
        };
        let found = tokio::time::timeout(LOOK_TIMEOUT, provider.get_credential()).await;
        let why = match found {
            Ok(Ok(token)) => {
                let mut value = http::value(&format!("Bearer {}", token.bearer))?;
                value.set_sensitive(true);
                return Ok((value, epoch));
            }
            Ok(Err(object_store::Error::Generic { source, .. })) => {
                http::message(&source.to_string())
            }
            Ok(Err(error)) => http::message(&error.to_string()),
            Err(_) => "no answer in time".to_owned(),
        };
        Err(match (&self.source.file, accepted || epoch != Epoch(0)) {
            (_, true) => BucketError::Unavailable(format!("a fresh token can't be had: {why}")),
            (Some(file), false) => {
                BucketError::Denied(format!("no token for {}: {why}", file.display()))
            }
            (None, false) => BucketError::Denied(NONE_FOUND.to_owned()),
        })
    }

    /// The store took the token of `epoch`.
    pub fn accepted(&self, epoch: Epoch) {
        let mut state = self.state.lock();
        state.accepted |= state.epoch == epoch;
    }

    /// What it means that the store refused the token of `epoch` with `error`: where it took one
    /// before, that it died early, and the next request brings a fresh one.
    pub fn refused(&self, epoch: Epoch, error: BucketError) -> BucketError {
        let mut state = self.state.lock();
        if state.epoch == epoch {
            match (state.accepted, self.source.provider()) {
                (false, _) => return error,
                (true, Err(error)) => return error,
                (true, Ok(provider)) => {
                    *state = State { provider, accepted: false, epoch: Epoch(epoch.0 + 1) };
                }
            }
        }
        BucketError::Unavailable("the token was refused".to_owned())
    }
}

fn told_file() -> Option<PathBuf> {
    std::env::var_os(FILE_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// What `gcloud auth application-default login` wrote, if it did.
fn gcloud_file() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let home = || var("HOME").map(|home| home.join(".config").join("gcloud"));
    let file = var("CLOUDSDK_CONFIG").or_else(home)?.join("application_default_credentials.json");
    file.is_file().then_some(file)
}

impl Source {
    fn provider(&self) -> Result<GcpCredentialProvider, BucketError> {
        match &self.file {
            Some(file) => self.of_file(file),
            None => {
                Ok(builder().build().map_err(|error| unusable("", &error))?.credentials().clone())
            }
        }
    }

    fn of_file(&self, file: &Path) -> Result<GcpCredentialProvider, BucketError> {
        let shown = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|error| unusable(&shown, &error))?;
        if account::is_external(&text) {
            let account = Account::parse(&text).map_err(|error| unusable(&shown, &error))?;
            return Ok(Arc::new(External::new(account, self.client.clone(), self.clock.clone())));
        }
        let store = builder().with_application_credentials(&shown).build();
        Ok(store.map_err(|error| unusable(&shown, &error))?.credentials().clone())
    }
}

fn builder() -> GoogleCloudStorageBuilder {
    let retry = RetryConfig {
        max_retries: RETRIES_MAX,
        retry_timeout: LOOK_TIMEOUT,
        backoff: BackoffConfig::default(),
    };
    GoogleCloudStorageBuilder::new().with_bucket_name("none").with_retry(retry)
}

fn unusable(file: &str, error: &dyn std::fmt::Display) -> BucketError {
    let why = http::message(&error.to_string());
    BucketError::Denied(format!("credentials {file} can't be used: {why}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn of(path: &Path) -> Result<Credentials, BucketError> {
        let (client, clock) = (http::client(None).unwrap(), crate::clock::system());
        Credentials::of(Source { file: Some(path.to_owned()), client, clock })
    }

    fn refusal(path: &Path) -> String {
        let BucketError::Denied(text) = of(path).err().unwrap() else {
            panic!("another error");
        };
        text
    }

    #[test]
    fn a_file_that_is_none_is_named_in_one_line_without_its_content() {
        let missing = refusal(Path::new("/nowhere/key.json"));
        assert!(missing.contains("/nowhere/key.json") && missing.lines().count() == 1, "{missing}");
        for text in ["hunter2", r#"{"type": "no_such", "private_key": "hunter2"}"#] {
            let file = file(text);
            let said = refusal(file.path());
            assert!(said.contains(&file.path().display().to_string()), "{said}");
            assert!(!said.contains("hunter2") && said.lines().count() == 1, "{said}");
        }
    }

    #[test]
    fn a_federated_identity_of_a_kind_that_is_not_supported_is_told_at_once() {
        let file = file(
            r#"{"type": "external_account", "audience": "a", "subject_token_type": "t",
                "token_url": "https://sts.googleapis.com/v1/token",
                "credential_source": {"executable": {"command": "/bin/id"}}}"#,
        );
        let said = refusal(file.path());
        assert!(said.contains("of the kind executable is not supported"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }

    #[test]
    fn a_refused_token_is_renewed_once_it_was_good_and_final_if_it_never_was() {
        let user = r#"{"type": "authorized_user", "client_id": "c", "client_secret": "s",
                       "refresh_token": "r"}"#;
        let file = file(user);
        let credentials = of(file.path()).unwrap();
        let denied = || BucketError::Denied("no".to_owned());
        assert_eq!(credentials.refused(Epoch(0), denied()), denied());
        credentials.accepted(Epoch(0));
        for _ in 0..3 {
            let together = credentials.refused(Epoch(0), denied());
            assert!(together.is_transient(), "requests that fail together are all asked again");
        }
        credentials.accepted(Epoch(0)); // late
        assert_eq!(credentials.refused(Epoch(1), denied()), denied(), "and not for ever");
    }
}
