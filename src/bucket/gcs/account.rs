//! The file of workload identity federation (`external_account`): where the token of the machine's
//! own identity provider is found, and for what it is exchanged.
//!
//! Pure: the file, what is asked, and what is answered. Does not own the asking (`external`).

use serde::Deserialize;
use serde_json::{Value, json};

use crate::bucket::http;

const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// How long a borrowed account's token lives where the file does not say.
const LIFETIME_S_DEFAULT: u64 = 3600;

/// The file, as `gcloud iam workload-identity-pools create-cred-config` writes it.
#[derive(Deserialize)]
pub struct Account {
    audience: String,
    subject_token_type: String,
    pub token_url: String,
    #[serde(rename = "service_account_impersonation_url")]
    pub impersonation_url: Option<String>,
    #[serde(default, rename = "service_account_impersonation")]
    impersonation: Impersonation,
    #[serde(default)]
    workforce_pool_user_project: Option<String>,
    /// Sent as HTTP's basic authentication where both are there.
    pub client_id: Option<String>,
    pub client_secret: Option<String>,
    credential_source: CredentialSource,
}

#[derive(Default, Deserialize)]
struct Impersonation {
    token_lifetime_seconds: Option<u64>,
}

#[derive(Deserialize)]
struct CredentialSource {
    file: Option<String>,
    url: Option<String>,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    format: Format,
    environment_id: Option<String>,
    executable: Option<Value>,
    certificate: Option<Value>,
}

#[derive(Default, Deserialize)]
struct Format {
    #[serde(rename = "type")]
    kind: Option<String>,
    subject_token_field_name: Option<String>,
}

/// Where the identity provider's token is.
pub enum Subject<'a> {
    File(&'a str),
    Url(&'a str, Vec<(&'a str, &'a str)>),
}

/// A token, and for how long or until when it is good, as it was told.
#[derive(Debug, PartialEq, Eq)]
pub struct Granted {
    pub token: String,
    pub seconds: Option<u64>,
}

/// Whether a file of credentials is one of federation.
pub fn is_external(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Kind {
        #[serde(rename = "type")]
        kind: String,
    }
    serde_json::from_str::<Kind>(text).is_ok_and(|file| file.kind == "external_account")
}

impl Account {
    /// Why not: the file is not whole, its source is not supported, or tokens would be sent in the
    /// clear.
    pub fn parse(text: &str) -> Result<Self, String> {
        // No word of the file itself: it may hold a secret.
        let account: Self = serde_json::from_str(text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            format!("not understood at line {line}, column {column}")
        })?;
        account.subject()?;
        for address in [Some(&account.token_url), account.impersonation_url.as_ref()] {
            if !address.is_none_or(|address| is_safe(address)) {
                return Err(
                    "token_url and service_account_impersonation_url: https only".to_owned()
                );
            }
        }
        if account.is_json() && account.credential_source.format.subject_token_field_name.is_none()
        {
            return Err(
                "credential_source: the format json needs subject_token_field_name".to_owned()
            );
        }
        Ok(account)
    }

    pub fn subject(&self) -> Result<Subject<'_>, String> {
        let source = &self.credential_source;
        let unsupported = |what: &str| {
            format!("credential_source of the kind {what} is not supported (file and url are)")
        };
        if source.environment_id.is_some() {
            return Err(unsupported("aws1"));
        }
        if source.executable.is_some() {
            return Err(unsupported("executable"));
        }
        if source.certificate.is_some() {
            return Err(unsupported("certificate"));
        }
        match (&source.file, &source.url) {
            (Some(file), _) => Ok(Subject::File(file)),
            (None, Some(url)) => {
                let headers = source.headers.iter().map(|(n, v)| (n.as_str(), v.as_str()));
                Ok(Subject::Url(url, headers.collect()))
            }
            (None, None) => Err("credential_source names neither a file nor a url".to_owned()),
        }
    }

    fn is_json(&self) -> bool {
        self.credential_source.format.kind.as_deref() == Some("json")
    }

    /// The token in what the source holds.
    pub fn subject_token(&self, held: &str) -> Result<String, String> {
        let token = match self.is_json() {
            false => Some(held.trim().to_owned()),
            true => {
                let held: Value = serde_json::from_str(held).unwrap_or_default();
                let name = self.credential_source.format.subject_token_field_name.as_deref();
                held.get(name.unwrap_or_default()).and_then(Value::as_str).map(str::to_owned)
            }
        };
        let token = token.filter(|token| !token.is_empty());
        token
            .ok_or_else(|| "credential_source holds no token in the format that is told".to_owned())
    }

    /// The form in which the token service is asked to exchange `subject_token`.
    pub fn exchange(&self, subject_token: &str) -> String {
        let project =
            self.workforce_pool_user_project.as_ref().filter(|_| self.client_id.is_none());
        let options = project.map(|project| json!({ "userProject": project }).to_string());
        let mut form = vec![
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
            ("audience", &self.audience),
            ("scope", SCOPE),
            ("subject_token_type", &self.subject_token_type),
            ("subject_token", subject_token),
        ];
        form.extend(options.as_deref().map(|options| ("options", options)));
        http::encode_query(&form)
    }

    /// What a service account is asked for to lend its own token.
    pub fn impersonation(&self) -> String {
        let seconds = self.impersonation.token_lifetime_seconds.unwrap_or(LIFETIME_S_DEFAULT);
        json!({ "scope": [SCOPE], "lifetime": format!("{seconds}s") }).to_string()
    }
}

/// What the token service granted.
pub fn exchanged(answer: &[u8]) -> Option<Granted> {
    #[derive(Deserialize)]
    struct Answer {
        access_token: String,
        expires_in: Option<u64>,
    }
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    Some(Granted { token: answer.access_token, seconds: answer.expires_in })
}

/// What a service account lent: its token, and until when as it was written.
pub fn impersonated(answer: &[u8]) -> Option<(String, String)> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        access_token: String,
        expire_time: String,
    }
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    Some((answer.access_token, answer.expire_time))
}

/// Why a service refused, in its own words: OAuth's form or that of Google's APIs.
pub fn refusal(answer: &[u8]) -> String {
    let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    let word = |pointer: &str| answer.pointer(pointer).and_then(Value::as_str);
    let kind = word("/error").or_else(|| word("/error/status"));
    let why = word("/error_description").or_else(|| word("/error/message"));
    let words: Vec<_> = [kind, why].into_iter().flatten().collect();
    http::message(&words.join(": "))
}

/// Whether no token goes over a wire in the clear.
fn is_safe(address: &str) -> bool {
    url::Url::parse(address).is_ok_and(|url| match url.host() {
        Some(url::Host::Ipv4(ip)) => url.scheme() == "https" || ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => url.scheme() == "https" || ip.is_loopback(),
        Some(url::Host::Domain(name)) => url.scheme() == "https" || name == "localhost",
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(source: &str) -> Result<Account, String> {
        Account::parse(&format!(
            r#"{{"type": "external_account", "audience": "//iam/p", "client_secret": "hunter2",
                "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
                "token_url": "https://sts.googleapis.com/v1/token",
                "credential_source": {source}}}"#
        ))
    }

    fn why(source: &str) -> String {
        file(source).err().expect("refused")
    }

    #[test]
    fn sources_that_are_not_supported_are_named_in_one_line() {
        let aws = r#"{"environment_id": "aws1", "url": "http://169.254.169.254/latest"}"#;
        assert!(why(aws).contains("of the kind aws1 is not supported"), "{}", why(aws));
        let program = r#"{"executable": {"command": "/bin/true"}}"#;
        assert!(why(program).contains("of the kind executable is not supported"));
        assert!(why("{}").contains("neither a file nor a url"));
        assert!(!why("3").contains("hunter2") && why("3").lines().count() == 1, "{}", why("3"));
    }

    #[test]
    fn a_token_is_read_as_text_or_out_of_json() {
        let text = file(r#"{"file": "/t"}"#).expect("understood");
        assert_eq!(text.subject_token(" ey.x.y\n"), Ok("ey.x.y".to_owned()));
        assert!(text.subject_token("\n").is_err(), "an empty file is no token");
        let json = r#"{"url": "http://m/", "format":
                       {"type": "json", "subject_token_field_name": "id_token"}}"#;
        let json = file(json).expect("understood");
        assert_eq!(json.subject_token(r#"{"id_token": "ey"}"#), Ok("ey".to_owned()));
        assert!(json.subject_token("ey").is_err());
        assert!(file(r#"{"file": "/t", "format": {"type": "json"}}"#).is_err());
    }

    #[test]
    fn tokens_are_not_sent_in_the_clear() {
        assert!(is_safe("https://sts.googleapis.com/v1/token") && is_safe("http://127.0.0.1:9/"));
        assert!(!is_safe("http://sts.googleapis.com/v1/token") && !is_safe("sts"));
    }

    #[test]
    fn refusals_are_told_in_the_words_of_either_api() {
        let oauth = br#"{"error": "invalid_grant", "error_description": "The audience is wrong"}"#;
        assert_eq!(refusal(oauth), "invalid_grant: The audience is wrong");
        let google = br#"{"error": {"code": 403, "message": "no", "status": "DENIED"}}"#;
        assert_eq!(refusal(google), "DENIED: no");
        assert_eq!(refusal(b"<html>"), "");
    }
}
