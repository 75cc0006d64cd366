//! Which storage account: its name, where it answers, and what the environment says of both.
//!
//! Pure: the environment comes in as a function. Owns the precedence of flags over environment over
//! connection string. Does not own who we are to the account (`credentials`).

use crate::bucket::error::BucketError;
use crate::bucket::http;
use crate::types::Key;

const NO_ACCOUNT: &str = "no storage account told: give --azure-account NAME, or set \
     AZURE_STORAGE_ACCOUNT or AZURE_STORAGE_CONNECTION_STRING";

/// The account and address that Azurite and `UseDevelopmentStorage=true` stand for; its key is
/// public.
const DEVELOPMENT: (&str, &str) = ("devstoreaccount1", "http://127.0.0.1:10000/devstoreaccount1");
const DEVELOPMENT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A container of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub container: String,
    /// The container's own URL, under which its blobs are; without a `/` at its end.
    url: String,
}

/// What a connection string, as the portal shows it, says.
#[derive(Default, Clone, PartialEq, Eq)]
pub struct Connection {
    pub account: Option<String>,
    pub endpoint: Option<String>,
    pub key: Option<String>,
    pub sas: Option<String>,
}

/// Where an account is, as far as the environment says: what `az` and `object_store` read.
pub fn told(env: &dyn Fn(&str) -> Option<String>) -> Connection {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    let connection = match set("AZURE_STORAGE_CONNECTION_STRING") {
        Some(text) => Connection::parse(&text),
        None if set("AZURE_STORAGE_USE_EMULATOR").is_some_and(|word| word == "true") => {
            Connection::development()
        }
        None => Connection::default(),
    };
    let account = set("AZURE_STORAGE_ACCOUNT").or_else(|| set("AZURE_STORAGE_ACCOUNT_NAME"));
    Connection {
        account: account.or(connection.account),
        endpoint: set("AZURE_STORAGE_ENDPOINT").or(connection.endpoint),
        key: set("AZURE_STORAGE_KEY").or(connection.key),
        sas: connection.sas,
    }
}

impl Connection {
    /// Reads `Name=value;...`; what is not known is passed over.
    pub fn parse(text: &str) -> Self {
        let field = |name: &str| {
            let mut pairs = text.split(';').filter_map(|pair| pair.split_once('='));
            let found = pairs.find(|(n, _)| n.trim().eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        if field("UseDevelopmentStorage").is_some_and(|value| value == "true") {
            return Self::development();
        }
        let account = field("AccountName");
        let made = account.as_ref().zip(field("EndpointSuffix")).map(|(account, suffix)| {
            let scheme = field("DefaultEndpointsProtocol");
            format!("{}://{account}.blob.{suffix}", scheme.as_deref().unwrap_or("https"))
        });
        Self {
            account,
            endpoint: field("BlobEndpoint").or(made),
            key: field("AccountKey"),
            sas: field("SharedAccessSignature"),
        }
    }

    fn development() -> Self {
        let (account, endpoint) = DEVELOPMENT;
        Self {
            account: Some(account.to_owned()),
            endpoint: Some(endpoint.to_owned()),
            key: Some(DEVELOPMENT_KEY.to_owned()),
            sas: None,
        }
    }
}

impl Account {
    /// `endpoint` is the account's own URL; without one it is that of the public cloud.
    pub fn new(
        container: &str,
        account: Option<String>,
        endpoint: Option<&str>,
    ) -> Result<Self, BucketError> {
        if container.is_empty() || container.contains(['/', '?', '#', '@', ':', '%']) {
            return Err(BucketError::Invalid(format!("{container:?} is no name of a container")));
        }
        let endpoint = endpoint.map(|endpoint| endpoint.trim_end_matches('/'));
        let account = account.or_else(|| account_of(endpoint?));
        let name = account.ok_or_else(|| BucketError::Invalid(NO_ACCOUNT.to_owned()))?;
        let service = match endpoint {
            Some(endpoint) if is_bare_address(endpoint) => format!("{endpoint}/{name}"),
            Some(endpoint) => endpoint.to_owned(),
            None => format!("https://{name}.blob.core.windows.net"),
        };
        let url = format!("{service}/{container}");
        parsed(&url)?;
        Ok(Self { name, container: container.to_owned(), url })
    }

    /// The URL of `key`, or of the container.
    pub fn url(&self, key: Option<&Key>, query: &[(&str, &str)]) -> String {
        let mut url = self.url.clone();
        if let Some(key) = key {
            url.push('/');
            url.push_str(&http::encode_path(key.as_str()));
        }
        if !query.is_empty() {
            url.push('?');
            url.push_str(&http::encode_query(query));
        }
        url
    }
}

fn parsed(url: &str) -> Result<url::Url, BucketError> {
    let url = url::Url::parse(url).ok().filter(|url| url.has_host());
    url.ok_or_else(|| BucketError::Invalid("the endpoint is no URL: write https://HOST".to_owned()))
}

/// The account that an endpoint names: its first label, or behind an address its first directory.
fn account_of(endpoint: &str) -> Option<String> {
    let url = url::Url::parse(endpoint).ok()?;
    let name = match url.host()? {
        url::Host::Domain(host) if host != "localhost" => host.split_once(".blob.")?.0,
        _ => url.path_segments()?.next()?,
    };
    (!name.is_empty()).then(|| name.to_owned())
}

/// Whether an endpoint is an address alone, behind which accounts are directories.
fn is_bare_address(endpoint: &str) -> bool {
    let Ok(url) = url::Url::parse(endpoint) else { return false };
    let address = match url.host() {
        Some(url::Host::Domain(host)) => host == "localhost",
        host => host.is_some(),
    };
    address && url.path() == "/"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(account: Option<&str>, endpoint: Option<&str>) -> Result<String, BucketError> {
        let account = Account::new("c", account.map(str::to_owned), endpoint)?;
        Ok(account.url(Some(&Key::new("a b/ü?")), &[("comp", "block")]))
    }

    #[test]
    fn a_blob_has_its_url_at_azure_and_elsewhere() {
        let path = "c/a%20b/%C3%BC%3F?comp=block";
        for (account, endpoint, start) in [
            (Some("me"), None, "https://me.blob.core.windows.net/"),
            (Some("me"), Some("http://127.0.0.1:1"), "http://127.0.0.1:1/me/"),
            (Some("me"), Some("http://127.0.0.1:1/me/"), "http://127.0.0.1:1/me/"),
            (None, Some("http://localhost:1/me"), "http://localhost:1/me/"),
            (None, Some("https://me.blob.core.cn"), "https://me.blob.core.cn/"),
            (Some("me"), Some("https://cdn.example"), "https://cdn.example/"),
        ] {
            assert_eq!(url(account, endpoint), Ok(format!("{start}{path}")), "{endpoint:?}");
        }
    }

    #[test]
    fn a_missing_account_is_said_in_one_line() {
        for endpoint in [None, Some("https://cdn.example"), Some("http://127.0.0.1:1")] {
            let error = url(None, endpoint).expect_err("no account");
            assert!(error.to_string().contains("--azure-account"), "{error}");
        }
        assert!(url(Some("me"), Some("nonsense")).is_err());
    }

    #[test]
    fn a_connection_string_is_read_as_the_portal_writes_it() {
        let key = "k+/==";
        let text = format!(
            "DefaultEndpointsProtocol=https;AccountName=me;AccountKey={key};EndpointSuffix=core.cn"
        );
        let found = Connection::parse(&text);
        assert_eq!(found.account.as_deref(), Some("me"));
        assert_eq!(found.endpoint.as_deref(), Some("https://me.blob.core.cn"));
        assert_eq!(found.key.as_deref(), Some(key));
        let text = "BlobEndpoint=https://me.blob.x/;SharedAccessSignature=sv=1&sig=a%3D";
        let found = Connection::parse(text);
        assert_eq!(found.endpoint.as_deref(), Some("https://me.blob.x/"));
        assert_eq!(found.sas.as_deref(), Some("sv=1&sig=a%3D"));
        let local = Connection::parse("UseDevelopmentStorage=true");
        assert!(local == Connection::development() && local != found);
    }

    #[test]
    fn a_variable_of_its_own_outranks_the_connection_string() {
        let all = [
            ("AZURE_STORAGE_CONNECTION_STRING", "AccountName=a;AccountKey=k;EndpointSuffix=x"),
            ("AZURE_STORAGE_ACCOUNT", "b"),
            ("AZURE_STORAGE_ENDPOINT", ""),
        ];
        let env = |name: &str| all.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        let found = told(&env);
        assert_eq!(found.account.as_deref(), Some("b"));
        assert_eq!(found.endpoint.as_deref(), Some("https://a.blob.x"));
        assert!(told(&|_| None) == Connection::default());
    }
}
