//! Where a bucket of Google Cloud Storage answers: the URLs of both its APIs.
//!
//! Pure. Does not own which request goes where.

use crate::bucket::error::BucketError;
use crate::bucket::http;
use crate::types::Key;

const GOOGLE: &str = "https://storage.googleapis.com";

/// What is asked of a bucket, as a query.
type Query<'a> = [(&'a str, &'a str)];

/// The host of a bucket, and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Without a `/` at its end.
    host: String,
    bucket: String,
}

impl Endpoint {
    /// `told` is a URL, or as emulators have it a host and port.
    pub fn new(bucket: &str, told: Option<&str>) -> Result<Self, BucketError> {
        if bucket.is_empty() || bucket.contains(['/', '?', '#', '@', ':', '%']) {
            return Err(BucketError::Invalid(format!("{bucket:?} is no name of a bucket")));
        }
        let host = told.map_or_else(|| Ok(GOOGLE.to_owned()), normalised)?;
        Ok(Self { host, bucket: bucket.to_owned() })
    }

    /// Whether it speaks plain HTTP.
    pub fn is_plain(&self) -> bool {
        self.host.starts_with("http://")
    }

    /// An object in the XML API.
    pub fn xml(&self, key: &Key, query: &Query<'_>) -> Result<url::Url, BucketError> {
        self.url(format!("{}/{}", self.bucket, http::encode_path(key.as_str())), query)
    }

    /// The objects of the bucket in the JSON API.
    pub fn objects(&self, query: &Query<'_>) -> Result<url::Url, BucketError> {
        self.url(format!("storage/v1/b/{}/o", self.bucket), query)
    }

    /// An object in the JSON API.
    pub fn object(&self, key: &Key, query: &Query<'_>) -> Result<url::Url, BucketError> {
        self.url(format!("storage/v1/b/{}/o/{}", self.bucket, encoded(key)), query)
    }

    pub fn upload(&self, query: &Query<'_>) -> Result<url::Url, BucketError> {
        self.url(format!("upload/storage/v1/b/{}/o", self.bucket), query)
    }

    pub fn move_to(
        &self,
        from: &Key,
        to: &Key,
        query: &Query<'_>,
    ) -> Result<url::Url, BucketError> {
        let (bucket, from, to) = (&self.bucket, encoded(from), encoded(to));
        self.url(format!("storage/v1/b/{bucket}/o/{from}/moveTo/o/{to}"), query)
    }

    pub fn rewrite_to(
        &self,
        from: &Key,
        to: &Key,
        query: &Query<'_>,
    ) -> Result<url::Url, BucketError> {
        let (bucket, from, to) = (&self.bucket, encoded(from), encoded(to));
        self.url(format!("storage/v1/b/{bucket}/o/{from}/rewriteTo/b/{bucket}/o/{to}"), query)
    }

    fn url(&self, path: String, query: &Query<'_>) -> Result<url::Url, BucketError> {
        let mut url = url::Url::parse(&format!("{}/{path}", self.host))
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

/// A key as one component of a path.
fn encoded(key: &Key) -> String {
    http::encode_component(key.as_str())
}

fn normalised(told: &str) -> Result<String, BucketError> {
    let with_scheme = match told.contains("://") {
        true => told.to_owned(),
        false => format!("http://{told}"),
    };
    let url = url::Url::parse(&with_scheme)
        .map_err(|error| BucketError::Invalid(format!("endpoint: {error}")))?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none();
    match plain {
        true => Ok(url.as_str().trim_end_matches('/').to_owned()),
        false => Err(BucketError::Invalid("an endpoint is http(s)://host[:port]".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stand_in_both_apis_as_each_wants_them() {
        let (google, key) = (Endpoint::new("b.c", None).unwrap(), Key::new("a b/ü?#%.."));
        let xml = google.xml(&key, &[("uploads", "")]).unwrap();
        assert_eq!(
            xml.as_str(),
            "https://storage.googleapis.com/b.c/a%20b/%C3%BC%3F%23%25..?uploads="
        );
        let object = google.object(&key, &[]).unwrap();
        assert_eq!(
            object.as_str(),
            "https://storage.googleapis.com/storage/v1/b/b.c/o/a%20b%2F%C3%BC%3F%23%25.."
        );
        let moved = google.move_to(&Key::new("a/b"), &Key::new("../c"), &[]).unwrap();
        assert!(moved.path().ends_with("/o/a%2Fb/moveTo/o/..%2Fc"), "{moved}");
    }

    #[test]
    fn an_emulator_may_be_a_host_and_port() {
        for told in ["127.0.0.1:9", "http://127.0.0.1:9/"] {
            let endpoint = Endpoint::new("b", Some(told)).unwrap();
            assert_eq!(endpoint.host, "http://127.0.0.1:9");
            assert!(endpoint.is_plain());
        }
        assert!(!Endpoint::new("b", None).unwrap().is_plain());
        assert!(Endpoint::new("b", Some("https://k:secret@h")).is_err());
    }

    #[test]
    fn a_key_that_a_url_would_bend_is_refused() {
        let endpoint = Endpoint::new("b", None).unwrap();
        assert!(endpoint.xml(&Key::new("a/../b"), &[]).is_err());
        assert!(endpoint.object(&Key::new(".."), &[]).is_err());
        assert!(endpoint.object(&Key::new("a/../b"), &[]).is_ok());
    }
}
