//! Where a bucket answers and how requests to it are signed: endpoint, region, style, encryption.
//!
//! Owns the precedence of flags over environment over defaults. Does not own credentials.

use crate::bucket::error::BucketError;
use crate::bucket::http;
use crate::config::StoreOptions;
use crate::types::Key;

/// What servers other than AWS's take for a region.
const REGION_ANY: &str = "us-east-1";

/// The first of these variables that is set and not empty.
pub fn variable(names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

/// A bucket's own URL, under which its keys are, and the region that requests are signed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Without a `/` at its end.
    url: String,
    pub region: String,
}

impl Endpoint {
    /// The endpoint that was told, by flag or `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`.
    pub fn told(options: &StoreOptions) -> Option<String> {
        let told = options.endpoint.clone();
        told.or_else(|| variable(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]))
    }

    /// The region that was told, by flag or `AWS_REGION` or `AWS_DEFAULT_REGION`.
    pub fn told_region(options: &StoreOptions) -> Option<String> {
        let told = options.region.clone();
        told.or_else(|| variable(&["AWS_REGION", "AWS_DEFAULT_REGION"]))
    }

    /// `region` is needed on AWS only.
    pub fn new(
        bucket: &str,
        endpoint: Option<&str>,
        region: Option<String>,
        path_style: Option<bool>,
    ) -> Result<Self, BucketError> {
        if bucket.is_empty() || bucket.contains(['/', '?', '#', '@', ':', '%']) {
            return Err(BucketError::Invalid(format!("{bucket:?} is no name of a bucket")));
        }
        let region = region.unwrap_or_else(|| REGION_ANY.to_owned());
        let host = match endpoint {
            Some(endpoint) => normalised(endpoint)?,
            None if region.starts_with("cn-") => format!("https://s3.{region}.amazonaws.com.cn"),
            None => format!("https://s3.{region}.amazonaws.com"),
        };
        // A dotted name does not fit the one label of AWS's certificate.
        let by_path = path_style.unwrap_or(endpoint.is_some() || bucket.contains('.'));
        let url = match host.split_once("://") {
            Some((scheme, host)) if !by_path => format!("{scheme}://{bucket}.{host}"),
            _ => format!("{host}/{bucket}"),
        };
        Ok(Self { url, region })
    }

    /// The URL of `key`, or of the bucket itself.
    pub fn url(&self, key: Option<&Key>, query: &[(&str, &str)]) -> Result<url::Url, BucketError> {
        let path = http::encode_path(key.map_or("", Key::as_str));
        let text = format!("{}/{path}", self.url);
        let mut url = url::Url::parse(&text)
            .map_err(|error| BucketError::Invalid(format!("endpoint: {error}")))?;
        if !url.path().ends_with(&path) {
            return Err(BucketError::Invalid("a key with `.` or `..` in it".to_owned()));
        }
        if !query.is_empty() {
            url.set_query(Some(&http::encode_query(query)));
        }
        Ok(url)
    }
}

fn normalised(endpoint: &str) -> Result<String, BucketError> {
    let with_scheme = match endpoint.contains("://") {
        true => endpoint.to_owned(),
        false => format!("https://{endpoint}"),
    };
    let url = url::Url::parse(&with_scheme)
        .map_err(|error| BucketError::Invalid(format!("endpoint {endpoint:?}: {error}")))?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none();
    if !plain {
        return Err(BucketError::Invalid("an endpoint is http(s)://host[:port][/path]".to_owned()));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(bucket: &str, endpoint: Option<&str>, region: &str, style: Option<bool>) -> String {
        let endpoint = Endpoint::new(bucket, endpoint, Some(region.to_owned()), style).unwrap();
        endpoint.url(Some(&Key::new("a b/c")), &[]).unwrap().to_string()
    }

    #[test]
    fn buckets_answer_where_each_server_has_them() {
        let here = Some("127.0.0.1:9000");
        for (expected, found) in [
            ("https://b.s3.eu-west-1.amazonaws.com/a%20b/c", url("b", None, "eu-west-1", None)),
            ("https://s3.eu-west-1.amazonaws.com/b.c/a%20b/c", url("b.c", None, "eu-west-1", None)),
            (
                "https://b.s3.cn-north-1.amazonaws.com.cn/a%20b/c",
                url("b", None, "cn-north-1", None),
            ),
            ("https://127.0.0.1:9000/b/a%20b/c", url("b", here, "x", None)),
            ("http://h/p/b/a%20b/c", url("b", Some("http://h/p/"), "x", None)),
            ("https://b.h/a%20b/c", url("b", Some("https://h"), "x", Some(false))),
        ] {
            assert_eq!(expected, found);
        }
    }

    #[test]
    fn a_key_that_a_url_would_bend_is_refused() {
        let endpoint = Endpoint::new("b", Some("http://h"), None, None).unwrap();
        for key in ["../x", "a/../b", "a/./b", ".", "a/.."] {
            assert!(endpoint.url(Some(&Key::new(key)), &[]).is_err(), "{key}");
        }
        for key in ["a//b", "/a", "a/", "...", "a?b#c", "%2e%2e/x", "\u{1}"] {
            assert!(endpoint.url(Some(&Key::new(key)), &[]).is_ok(), "{key}");
        }
    }

    #[test]
    fn an_endpoint_carries_no_secret() {
        assert!(Endpoint::new("b", Some("http://user:pass@h"), None, None).is_err());
        assert!(Endpoint::new("a/b", None, None, None).is_err());
    }
}
