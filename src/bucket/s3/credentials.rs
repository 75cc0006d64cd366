//! Who we are to S3: keys from the environment, else whatever the AWS tools would find (profiles,
//! SSO, roles, web identity, instance metadata), kept fresh for as long as the mount lives.
//!
//! Owns the sources. Does not own when they are asked again (`lent`), nor signing. Secrets leave
//! only as the value that the signer takes; no error and no `Debug` shows them.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AwsCredential;

use crate::bucket::error::BucketError;
use crate::bucket::lent::Lent;
use crate::bucket::s3::endpoint::variable;
use crate::clock::Clock;
use crate::config::StoreOptions;

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
pub enum Credentials {
    Fixed(Arc<AwsCredential>),
    Chain(chain::Chain, Lent<AwsCredential>),
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
        let credentials = match from_environment().filter(|_| options.profile.is_none()) {
            Some(credential) => Self::Fixed(Arc::new(credential)),
            None => Self::Chain(found, Lent::new(clock)),
        };
        Ok((credentials, profile))
    }

    /// The credential to sign with now: where the sources fail, the last there was, for the store
    /// to judge. [`BucketError::Denied`] if there never was one.
    pub async fn get(&self) -> Result<Arc<AwsCredential>, BucketError> {
        match self {
            Self::Fixed(credential) => Ok(credential.clone()),
            Self::Chain(chain, lent) => {
                let asked = async {
                    let found = tokio::time::timeout(LOOK_TIMEOUT, chain.credential()).await;
                    found.unwrap_or_else(|_| Err(BucketError::Denied(no_answer())))
                };
                lent.get(asked).await
            }
        }
    }

    /// The store says that the credential is no longer good: the next request asks for another.
    pub fn expire(&self) {
        if let Self::Chain(_, lent) = self {
            lent.expire();
        }
    }
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
    use crate::bucket::lent::Loan;
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
        pub async fn credential(&self) -> Result<Loan<AwsCredential>, BucketError> {
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
    use crate::bucket::lent::Loan;
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
        pub async fn credential(&self) -> Result<Loan<AwsCredential>, BucketError> {
            let found = self.0.get_credential().await;
            let found = found.map_err(|_| BucketError::Denied(NONE_FOUND.to_owned()))?;
            let (key_id, secret_key) = (found.key_id.clone(), found.secret_key.clone());
            let credential = AwsCredential { key_id, secret_key, token: found.token.clone() };
            Ok((credential, Some(SystemTime::UNIX_EPOCH)))
        }
    }
}
