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
/// dying one; one that lives shorter than twice as long, at half its life.
const REFRESH_BEFORE: Duration = Duration::from_secs(300);
/// One that tells no expiry is asked for again after this.
const UNKNOWN_LIFETIME: Duration = Duration::from_secs(3600);
/// How long the sources are looked through; past it there is no metadata service and no login.
const LOOK_TIMEOUT: Duration = Duration::from_secs(8);
/// Sources that were asked are left alone for so long, whatever they answered: neither a credential
/// that the store won't take nor a source that hangs costs more than one look in this time.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(15);

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
    cached: parking_lot::Mutex<Option<Cached>>,
    /// Held while the sources are asked.
    asking: Mutex<()>,
}

#[derive(Clone)]
struct Cached {
    credential: Arc<AwsCredential>,
    refresh_at: SystemTime,
    /// Until then nobody need wait for the next one.
    good_until: SystemTime,
    asked_at: SystemTime,
}

enum Source {
    Fixed(Arc<AwsCredential>),
    Chain(chain::Chain),
}

impl Credentials {
    /// Keys of the environment if they are there and no profile is asked for by flag, else the
    /// chain. Reads files, makes no request.
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
        let cached = parking_lot::Mutex::default();
        Ok((Self { source, clock, cached, asking: Mutex::default() }, profile))
    }

    /// The credential to sign with now: where the sources fail, the last there was, for the store
    /// to judge. [`BucketError::Denied`] if there never was one.
    pub async fn get(&self) -> Result<Arc<AwsCredential>, BucketError> {
        let chain = match &self.source {
            Source::Fixed(credential) => return Ok(credential.clone()),
            Source::Chain(chain) => chain,
        };
        let _asking = match self.known() {
            Some(known) if !known.is_due(self.clock.wall()) => return Ok(known.credential),
            // One asks ahead of time, and the others go on with what is still good.
            Some(known) if self.clock.wall() < known.good_until => match self.asking.try_lock() {
                Ok(asking) => asking,
                Err(_) => return Ok(known.credential),
            },
            _ => self.asking.lock().await,
        };
        if let Some(known) = self.known().filter(|known| !known.is_due(self.clock.wall())) {
            return Ok(known.credential); // another asked meanwhile
        }
        let found = tokio::time::timeout(LOOK_TIMEOUT, chain.credential()).await;
        let now = self.clock.wall();
        match found.unwrap_or_else(|_| Err(BucketError::Denied(no_answer()))) {
            Ok((credential, expiry)) => {
                let credential = Arc::new(credential);
                let good_until = expiry.unwrap_or(now + UNKNOWN_LIFETIME);
                let refresh_at = refresh_at(now, good_until);
                let cached = Cached { credential, refresh_at, good_until, asked_at: now };
                *self.cached.lock() = Some(cached.clone());
                Ok(cached.credential)
            }
            Err(error) => match self.cached.lock().as_mut() {
                Some(cached) => {
                    tracing::warn!(%error, "credentials could not be refreshed");
                    cached.asked_at = now;
                    Ok(cached.credential.clone())
                }
                None => Err(error),
            },
        }
    }

    fn known(&self) -> Option<Cached> {
        self.cached.lock().clone()
    }

    /// The store says that the credential is no longer good: the next request asks for another.
    pub fn expire(&self) {
        if let Some(cached) = self.cached.lock().as_mut() {
            (cached.refresh_at, cached.good_until) =
                (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH);
        }
    }
}

impl Cached {
    fn is_due(&self, now: SystemTime) -> bool {
        // A clock that was set back must not keep anybody from asking.
        let asked_ago = now.duration_since(self.asked_at).unwrap_or(ASK_AGAIN_AFTER);
        now >= self.refresh_at && asked_ago >= ASK_AGAIN_AFTER
    }
}

/// When to ask for the successor of a credential got `now`.
fn refresh_at(now: SystemTime, good_until: SystemTime) -> SystemTime {
    let life = good_until.duration_since(now).unwrap_or_default();
    now + life - REFRESH_BEFORE.min(life / 2)
}

fn no_answer() -> String {
    format!(
        "the source of the credentials (a metadata service, or the profile's credential_process) \
         did not answer within {} s",
        LOOK_TIMEOUT.as_secs()
    )
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
    use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
    use aws_config::provider_config::ProviderConfig;
    use aws_config::{BehaviorVersion, Region};
    use aws_credential_types::Credentials;
    use aws_credential_types::provider::ProvideCredentials;
    use aws_credential_types::provider::error::CredentialsError;
    use object_store::aws::AwsCredential;

    use super::{NONE_FOUND, Profile};
    use crate::bucket::error::BucketError;
    use crate::bucket::http::message;
    use crate::config::StoreOptions;

    /// Looks anew at each question: what is looked through keeps the files that it once read, and
    /// other tools write fresh keys into them.
    pub struct Chain {
        profile: Option<String>,
        region: Region,
    }

    pub async fn find(
        options: &StoreOptions,
        region: Option<&str>,
    ) -> Result<(Chain, Profile), BucketError> {
        let mut regions = ProfileFileRegionProvider::builder();
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).no_credentials();
        if let Some(profile) = &options.profile {
            regions = regions.profile_name(profile);
            loader = loader.profile_name(profile);
        }
        let from_profile = regions.build().region().await.map(|region| region.to_string());
        // A region is always given: looked for, it would be asked of the instance's metadata.
        let region = region.map(str::to_owned).or_else(|| from_profile.clone());
        let region = Region::new(region.unwrap_or("us-east-1".to_owned()));
        let config = loader.region(region.clone()).load().await;
        let endpoint = config.endpoint_url().map(str::to_owned);
        let chain = Chain { profile: options.profile.clone(), region };
        Ok((chain, Profile { region: from_profile, endpoint }))
    }

    impl Chain {
        pub async fn credential(&self) -> Result<(AwsCredential, Option<SystemTime>), BucketError> {
            let found = match &self.profile {
                Some(profile) => self.of_profile(profile).await,
                None => self.anywhere().await,
            };
            let found = found.map_err(|error| name(&error, self.profile.as_deref()))?;
            let credential = AwsCredential {
                key_id: found.access_key_id().to_owned(),
                secret_key: found.secret_access_key().to_owned(),
                token: found.session_token().map(str::to_owned),
            };
            Ok((credential, found.expiry()))
        }

        /// A profile that was asked for by name comes before the environment, as `aws --profile`
        /// has it, and is not replaced by the instance's role where it is not there.
        async fn of_profile(&self, profile: &str) -> Result<Credentials, CredentialsError> {
            let config = ProviderConfig::without_region().with_region(Some(self.region.clone()));
            let provider = ProfileFileCredentialsProvider::builder()
                .configure(&config)
                .profile_name(profile)
                .build();
            provider.provide_credentials().await
        }

        async fn anywhere(&self) -> Result<Credentials, CredentialsError> {
            let loader = aws_config::defaults(BehaviorVersion::latest());
            let config = loader.region(self.region.clone()).load().await;
            match config.credentials_provider() {
                Some(provider) => provider.provide_credentials().await,
                None => Err(CredentialsError::not_loaded("no source is built in")),
            }
        }
    }

    fn name(error: &CredentialsError, profile: Option<&str>) -> BucketError {
        let mut why = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            why = format!("{why}: {cause}");
            source = cause.source();
        }
        let why = message(&why);
        BucketError::Denied(match (profile, error) {
            (Some(profile), _) => format!("the profile `{profile}` gives no credentials ({why})"),
            (None, CredentialsError::CredentialsNotLoaded(_)) => NONE_FOUND.to_owned(),
            (None, _) => format!("{NONE_FOUND} ({why})"),
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_that_lives_a_minute_is_not_asked_for_at_every_request() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |life| refresh_at(now, now + Duration::from_secs(life));
        assert_eq!(at(3600), now + Duration::from_secs(3300));
        assert_eq!(at(60), now + Duration::from_secs(30));
        assert_eq!(refresh_at(now, now - Duration::from_secs(9)), now, "it came expired");
    }

    #[test]
    fn a_source_that_hangs_holds_up_one_request_and_not_each() {
        let asked_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let credential =
            AwsCredential { key_id: String::new(), secret_key: String::new(), token: None };
        let past = SystemTime::UNIX_EPOCH;
        let credential = Arc::new(credential);
        let cached = Cached { credential, refresh_at: past, good_until: past, asked_at };
        assert!(!cached.is_due(asked_at + Duration::from_secs(1)));
        assert!(cached.is_due(asked_at + ASK_AGAIN_AFTER));
        assert!(cached.is_due(past), "the clock was set back");
    }
}
