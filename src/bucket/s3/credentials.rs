//! Who we are to S3: keys from the environment, else whatever the AWS tools would find (profiles,
//! SSO, roles, web identity, instance metadata), kept fresh for as long as the mount lives.
//!
//! Owns the cached credential and its refresh. Does not own signing. Secrets leave only as the
//! value that the signer takes; no error and no `Debug` shows them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use object_store::aws::AwsCredential;
use tokio::sync::Mutex;

use crate::bucket::error::BucketError;
use crate::bucket::s3::endpoint::variable;
use crate::clock::Clock;
use crate::config::StoreOptions;

/// A credential is refreshed this long before it expires, so that no request is signed with a
/// dying one.
const REFRESH_BEFORE: Duration = Duration::from_secs(300);
/// One that tells no expiry is asked for again after this.
const UNKNOWN_LIFETIME: Duration = Duration::from_secs(3600);
/// How long the sources are looked through; past it there is no metadata service and no login.
const LOOK_TIMEOUT: Duration = Duration::from_secs(8);

const NONE_FOUND: &str = "no credentials found: set AWS_ACCESS_KEY_ID and \
     AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or log in with `aws sso login`";

/// What is found beside keys in the user's AWS profile.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Profile {
    pub region: Option<String>,
    pub endpoint: Option<String>,
}

/// Where credentials come from.
pub struct Credentials {
    source: Source,
    clock: Arc<dyn Clock>,
    cached: Mutex<Option<Cached>>,
}

struct Cached {
    credential: Arc<AwsCredential>,
    refresh_at: SystemTime,
}

enum Source {
    Fixed(Arc<AwsCredential>),
    Chain(chain::Chain),
}

impl Credentials {
    /// Keys of the environment if they are there and no profile is asked for, else the chain. Reads
    /// files, makes no request.
    pub async fn find(
        options: &StoreOptions,
        region: Option<&str>,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Profile), BucketError> {
        let (found, profile) = chain::find(options, region).await?;
        let source = match from_environment().filter(|_| options.profile.is_none()) {
            Some(credential) => Source::Fixed(Arc::new(credential)),
            None => Source::Chain(found),
        };
        Ok((Self { source, clock, cached: Mutex::new(None) }, profile))
    }

    /// The credential to sign with now. [`BucketError::Denied`] if there is none;
    /// [`BucketError::Unavailable`] if one was there and its source does not answer now.
    pub async fn get(&self) -> Result<Arc<AwsCredential>, BucketError> {
        let chain = match &self.source {
            Source::Fixed(credential) => return Ok(credential.clone()),
            Source::Chain(chain) => chain,
        };
        let mut cached = self.cached.lock().await; // one asks, the others wait for the answer
        let now = self.clock.wall();
        if let Some(cached) = cached.as_ref().filter(|cached| now < cached.refresh_at) {
            return Ok(cached.credential.clone());
        }
        let found = tokio::time::timeout(LOOK_TIMEOUT, chain.credential()).await;
        match found.unwrap_or_else(|_| Err(BucketError::Denied(NONE_FOUND.to_owned()))) {
            Ok((credential, expiry)) => {
                let credential = Arc::new(credential);
                let refresh_at = match expiry {
                    Some(expiry) => expiry.checked_sub(REFRESH_BEFORE).unwrap_or(now),
                    None => now + UNKNOWN_LIFETIME,
                };
                *cached = Some(Cached { credential: credential.clone(), refresh_at });
                Ok(credential)
            }
            // The old one may be good for some minutes yet, and the store will tell.
            Err(error) => match cached.as_ref() {
                Some(cached) => {
                    tracing::warn!(%error, "credentials could not be refreshed");
                    Ok(cached.credential.clone())
                }
                None => Err(error),
            },
        }
    }

    /// The store says that the credential is no longer good: the next request asks for another.
    pub async fn expire(&self) {
        if let Some(cached) = self.cached.lock().await.as_mut() {
            cached.refresh_at = SystemTime::UNIX_EPOCH;
        }
    }
}

fn from_environment() -> Option<AwsCredential> {
    Some(AwsCredential {
        key_id: variable(&["AWS_ACCESS_KEY_ID"])?,
        secret_key: variable(&["AWS_SECRET_ACCESS_KEY"])?,
        token: variable(&["AWS_SESSION_TOKEN"]),
    })
}

/// The chain of the AWS tools.
#[cfg(feature = "aws-config")]
mod chain {
    use std::time::SystemTime;

    use aws_config::meta::region::ProvideRegion;
    use aws_config::profile::ProfileFileRegionProvider;
    use aws_config::{BehaviorVersion, Region};
    use aws_credential_types::provider::error::CredentialsError;
    use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
    use object_store::aws::AwsCredential;

    use super::{NONE_FOUND, Profile};
    use crate::bucket::error::BucketError;
    use crate::bucket::http::message;
    use crate::config::StoreOptions;

    pub struct Chain(SharedCredentialsProvider);

    pub async fn find(
        options: &StoreOptions,
        region: Option<&str>,
    ) -> Result<(Chain, Profile), BucketError> {
        let mut regions = ProfileFileRegionProvider::builder();
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(profile) = &options.profile {
            regions = regions.profile_name(profile);
            loader = loader.profile_name(profile);
        }
        let from_profile = regions.build().region().await.map(|region| region.to_string());
        // A region is always given: looked for, it would be asked of the instance's metadata.
        let region = region.map(str::to_owned).or_else(|| from_profile.clone());
        let config = loader.region(Region::new(region.unwrap_or("us-east-1".to_owned())));
        let config = config.load().await;
        let endpoint = config.endpoint_url().map(str::to_owned);
        let provider = config.credentials_provider();
        let provider = provider.ok_or_else(|| BucketError::Denied(NONE_FOUND.to_owned()))?;
        Ok((Chain(provider), Profile { region: from_profile, endpoint }))
    }

    impl Chain {
        pub async fn credential(&self) -> Result<(AwsCredential, Option<SystemTime>), BucketError> {
            let found = self.0.provide_credentials().await.map_err(|error| name(&error))?;
            let credential = AwsCredential {
                key_id: found.access_key_id().to_owned(),
                secret_key: found.secret_access_key().to_owned(),
                token: found.session_token().map(str::to_owned),
            };
            Ok((credential, found.expiry()))
        }
    }

    fn name(error: &CredentialsError) -> BucketError {
        match error {
            CredentialsError::CredentialsNotLoaded(_) => BucketError::Denied(NONE_FOUND.to_owned()),
            error => {
                let mut text = error.to_string();
                let mut source = std::error::Error::source(error);
                while let Some(cause) = source {
                    text = format!("{text}: {cause}");
                    source = cause.source();
                }
                BucketError::Denied(format!("{NONE_FOUND} ({})", message(&text)))
            }
        }
    }
}

/// Without the AWS tools' chain: what `object_store` finds by itself (web identity, containers,
/// instance metadata).
#[cfg(not(feature = "aws-config"))]
mod chain {
    use std::time::SystemTime;

    use object_store::aws::{AmazonS3Builder, AwsCredential, AwsCredentialProvider};

    use super::{NONE_FOUND, Profile};
    use crate::bucket::error::BucketError;
    use crate::config::StoreOptions;

    pub struct Chain(AwsCredentialProvider);

    pub async fn find(
        options: &StoreOptions,
        region: Option<&str>,
    ) -> Result<(Chain, Profile), BucketError> {
        if options.profile.is_some() {
            return Err(BucketError::Unsupported("use profiles: built without `aws-config`"));
        }
        let builder = AmazonS3Builder::from_env().with_bucket_name("none");
        let store = builder
            .with_region(region.unwrap_or("us-east-1"))
            .build()
            .map_err(|_| BucketError::Denied(NONE_FOUND.to_owned()))?;
        Ok((Chain(store.credentials().clone()), Profile::default()))
    }

    impl Chain {
        /// The provider refreshes by itself: what it gives is asked for again at once.
        pub async fn credential(&self) -> Result<(AwsCredential, Option<SystemTime>), BucketError> {
            let found = self.0.get_credential().await;
            let found = found.map_err(|_| BucketError::Denied(NONE_FOUND.to_owned()))?;
            let (key_id, secret_key) = (found.key_id.clone(), found.secret_key.clone());
            let credential = AwsCredential { key_id, secret_key, token: found.token.clone() };
            Ok((credential, Some(SystemTime::UNIX_EPOCH)))
        }
    }
}
