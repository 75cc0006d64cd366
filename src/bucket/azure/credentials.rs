//! Who we are to Azure, as its own tools and `object_store` find it: account key, SAS, client
//! secret, workload identity, else the machine's managed identity or the login of `az`.
//!
//! Owns the order of these and how the source of a copy is authorised. Secrets leave only in
//! requests; no error and no `Debug` shows them.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use object_store::azure::{
    AzureConfigKey, AzureCredential, AzureCredentialProvider, MicrosoftAzureBuilder,
};
use object_store::{BackoffConfig, RetryConfig};
use parking_lot::Mutex;

use crate::bucket::azure::account::{Account, Connection};
use crate::bucket::error::BucketError;
use crate::bucket::{date, http};
use crate::clock::Clock;
use crate::config::Secret;

const NONE_FOUND: &str = "no credentials found: set AZURE_STORAGE_KEY, \
     AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_CONNECTION_STRING, or log in with `az login`";
/// How long a source of credentials is waited for; the machine's own answers in milliseconds, `az`
/// in a second or two.
const LOOK_TIMEOUT: Duration = Duration::from_secs(8);
/// How long the source of a copy may be read under the signature made for it: the longest copy, and
/// clocks that differ.
const SOURCE_VALID: Duration = Duration::from_secs(3600);
/// The version of the service that the requests and signatures speak.
pub const VERSION: &str = "2023-11-03";

pub struct Credentials {
    /// Asked in turn; the first that answers is asked alone from then on.
    sources: Mutex<Vec<AzureCredentialProvider>>,
    /// With which the source of a copy is signed.
    key: Option<Secret>,
    clock: Arc<dyn Clock>,
}

/// How the server may read the source of a copy.
pub struct SourceAccess {
    /// What follows the source's URL: empty, or `?` and a signature.
    pub query: String,
    /// A token that goes into a header of its own.
    pub authorization: Option<String>,
}

impl Credentials {
    /// Finds where to ask. No request.
    pub fn find(
        account: &Account,
        connection: &Connection,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, BucketError> {
        let mut builder = MicrosoftAzureBuilder::from_env()
            .with_account(&account.name)
            .with_container_name(&account.container)
            .with_use_emulator(false)
            .with_retry(RetryConfig {
                backoff: BackoffConfig::default(),
                max_retries: 1,
                retry_timeout: LOOK_TIMEOUT,
            });
        for (name, value) in [
            (AzureConfigKey::AccessKey, &connection.key),
            (AzureConfigKey::SasKey, &connection.sas),
        ] {
            if let (None, Some(value)) = (builder.get_config_value(&name), value) {
                builder = builder.with_config(name, value);
            }
        }
        let key = builder.get_config_value(&AzureConfigKey::AccessKey).map(Secret::new);
        let mut sources = vec![source(builder.clone())?];
        if !is_told(&builder) {
            sources.push(source(builder.with_use_azure_cli(true))?);
        }
        Ok(Self { sources: Mutex::new(sources), key, clock })
    }

    /// The credential to sign with now; its source caches and refreshes it. [`BucketError::Denied`]
    /// if there is none, [`BucketError::Unreachable`] if one was there and does not answer now.
    pub async fn get(&self) -> Result<Arc<AzureCredential>, BucketError> {
        let sources = self.sources.lock().clone();
        let alone = sources.len() == 1;
        let mut why = String::new();
        for source in sources {
            // Apart, since `az` is waited for without yielding.
            let asked = source.clone();
            let asking = tokio::spawn(async move { asked.get_credential().await });
            match tokio::time::timeout(LOOK_TIMEOUT, asking).await {
                Ok(Ok(Ok(credential))) => {
                    *self.sources.lock() = vec![source];
                    return Ok(credential);
                }
                Ok(Ok(Err(error))) => why = http::message(&error.to_string()),
                Ok(Err(_)) | Err(_) => why = format!("no answer within {LOOK_TIMEOUT:?}"),
            }
        }
        match alone {
            true => Err(BucketError::Unreachable(format!("no token for Azure: {why}"))),
            false => Err(BucketError::Denied(NONE_FOUND.to_owned())),
        }
    }

    /// What lets the server read a blob of `account` as the source of a copy: our own signature or
    /// token, or one made of the account key for reading alone.
    pub fn source_access(
        &self,
        account: &Account,
        credential: &AzureCredential,
    ) -> Result<SourceAccess, BucketError> {
        let query = match (credential, &self.key) {
            (AzureCredential::BearerToken(token), _) => {
                let authorization = Some(format!("Bearer {token}"));
                return Ok(SourceAccess { query: String::new(), authorization });
            }
            (AzureCredential::SASToken(pairs), _) => {
                let pairs: Vec<_> = pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                http::encode_query(&pairs)
            }
            (AzureCredential::AccessKey(_), Some(key)) => {
                let expiry = date::iso_text(self.clock.wall() + SOURCE_VALID);
                let text = read_text(account, &expiry);
                let signature = signature(key, &text)?;
                http::encode_query(&[
                    ("sv", VERSION),
                    ("sr", "c"),
                    ("sp", "r"),
                    ("se", &expiry),
                    ("sig", &signature),
                ])
            }
            (AzureCredential::AccessKey(_), None) => {
                return Err(BucketError::Unsupported("copy with this kind of credential"));
            }
        };
        Ok(SourceAccess { query: format!("?{query}"), authorization: None })
    }
}

/// The first of what `builder` is told, else the machine's managed identity.
fn source(builder: MicrosoftAzureBuilder) -> Result<AzureCredentialProvider, BucketError> {
    let built = builder.build().map_err(|error| {
        BucketError::Denied(format!("credentials for Azure: {}", http::message(&error.to_string())))
    })?;
    Ok(built.credentials().clone())
}

/// Whether the environment says which credential to use.
fn is_told(builder: &MicrosoftAzureBuilder) -> bool {
    use AzureConfigKey as Name;
    let has = |name| builder.get_config_value(&name).is_some_and(|value| !value.is_empty());
    let is_true = |name| builder.get_config_value(&name).is_some_and(|value| value == "true");
    has(Name::Token)
        || has(Name::AccessKey)
        || has(Name::SasKey)
        || has(Name::CredentialType)
        || has(Name::FederatedTokenFile)
        || (has(Name::ClientId) && has(Name::ClientSecret))
        || is_true(Name::UseAzureCli)
}

/// What is signed for reading the blobs of a container: a service SAS of version 2020-12-06 or
/// later, whose sixteen fields stand one on a line.
fn read_text(account: &Account, expiry: &str) -> String {
    let resource = format!("/blob/{}/{}", account.name, account.container);
    let mut fields = [""; 16];
    (fields[0], fields[2], fields[3]) = ("r", expiry, &resource);
    (fields[7], fields[8]) = (VERSION, "c");
    fields.join("\n")
}

fn signature(key: &Secret, text: &str) -> Result<String, BucketError> {
    let key = BASE64_STANDARD
        .decode(key.reveal())
        .map_err(|_| BucketError::Denied("the account key is not base64".to_owned()))?;
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &key);
    Ok(BASE64_STANDARD.encode(aws_lc_rs::hmac::sign(&key, text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_signed_for_reading_alone_and_for_a_while() {
        let account = Account::new("c", Some("me".to_owned()), None).unwrap();
        let text = read_text(&account, "2030-01-01T00:00:00Z");
        let expected = "r\n\n2030-01-01T00:00:00Z\n/blob/me/c\n\n\n\n2023-11-03\nc\n\n\n\n\n\n\n";
        assert_eq!(text, expected);
        // The second test case of RFC 4231.
        let key = Secret::new(BASE64_STANDARD.encode("Jefe"));
        let signed = signature(&key, "what do ya want for nothing?").unwrap();
        assert_eq!(signed, "W9zBRr9gdU5qBCQmCJV1x1oAPwidJzmDnexYuWTsOEM=");
        assert!(signature(&Secret::new("!"), "").is_err());
    }
}
