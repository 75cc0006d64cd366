//! What an S3 server's refusal means to us: pure, one table.

use crate::bucket::error::BucketError;
use crate::bucket::http::message;
use crate::bucket::xml::ErrorBody;

/// Names a failed request. `status` is HTTP's; `error` is empty for HEAD, whose answers have no
/// body.
pub fn error(status: u16, error: &ErrorBody) -> BucketError {
    let text = match (error.code.as_str(), message(&error.message)) {
        ("", text) if text.is_empty() => format!("HTTP {status}"),
        ("", text) => text,
        (code, text) if text.is_empty() => code.to_owned(),
        (code, text) => format!("{code}: {text}"),
    };
    by_code(error, &text).unwrap_or_else(|| by_status(status, text))
}

/// Whether another credential may be taken where this one was not.
pub fn expired(error: &ErrorBody) -> bool {
    matches!(error.code.as_str(), "ExpiredToken" | "TokenRefreshRequired" | "InvalidToken")
}

/// Never [`BucketError::NotFound`]: that a bucket is gone says nothing of an object.
pub fn no_bucket() -> BucketError {
    let text = "there is no such bucket; create it first, or check its name and --endpoint";
    BucketError::Invalid(text.to_owned())
}

fn by_code(error: &ErrorBody, text: &str) -> Option<BucketError> {
    let text = text.to_owned();
    Some(match error.code.as_str() {
        "NoSuchKey" | "NoSuchUpload" => BucketError::NotFound,
        "NoSuchBucket" => no_bucket(),
        "PreconditionFailed" => BucketError::Precondition,
        // Another write was under way: not yet known how it ends.
        "ConditionalRequestConflict" | "OperationAborted" => BucketError::Unavailable(text),
        "SlowDown" | "Throttling" | "ServiceUnavailable" | "RequestTimeTooSkewed" => {
            BucketError::Unavailable(text)
        }
        // The next attempt asks for fresh credentials.
        "ExpiredToken" | "TokenRefreshRequired" => BucketError::Unavailable(text),
        "RequestTimeout" => BucketError::TimedOut(text),
        "BadDigest" | "XAmzContentChecksumMismatch" | "IncompleteBody" => {
            BucketError::Corrupt(text)
        }
        "KeyTooLongError" | "KeyTooLong" => BucketError::KeyTooLong,
        "XMinioStorageFull" | "InsufficientStorage" | "StorageFull" => BucketError::NoSpace(text),
        "QuotaExceeded" | "XMinioAdminBucketQuotaExceeded" => BucketError::Quota(text),
        "NotImplemented" => BucketError::Unsupported("do this"),
        "PermanentRedirect" | "AuthorizationHeaderMalformed" if !error.region.is_empty() => {
            let region = &error.region;
            BucketError::Invalid(format!(
                "the bucket is in region {region}: give --region {region}"
            ))
        }
        "SignatureDoesNotMatch" => BucketError::Unauthenticated(format!(
            "the secret is not that of the access key ({}); check AWS_SECRET_ACCESS_KEY or the \
             profile",
            error.code
        )),
        "InvalidAccessKeyId" => BucketError::Unauthenticated(format!(
            "the store does not know the access key ({}); check AWS_ACCESS_KEY_ID or the profile, \
             and --endpoint",
            error.code
        )),
        "InvalidToken" => BucketError::Unauthenticated(text),
        "AuthorizationHeaderMalformed" => BucketError::Denied(text),
        _ => return None,
    })
}

fn by_status(status: u16, text: String) -> BucketError {
    match status {
        401 => BucketError::Unauthenticated(text),
        403 => BucketError::Denied(text),
        404 => BucketError::NotFound,
        405 | 501 => BucketError::Unsupported("do this"),
        408 => BucketError::TimedOut(text),
        412 => BucketError::Precondition,
        429 | 500 | 502..=504 => BucketError::Unavailable(text),
        507 => BucketError::NoSpace(text),
        505.. => BucketError::Unavailable(text),
        _ => BucketError::Invalid(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, code: &str) -> BucketError {
        error(status, &ErrorBody { code: code.to_owned(), ..ErrorBody::default() })
    }

    #[test]
    fn an_outage_is_never_an_absence() {
        for status in [429, 500, 502, 503, 504, 599] {
            assert!(kind(status, "").is_transient(), "{status}");
        }
        assert!(kind(503, "SlowDown").is_transient());
        assert!(!matches!(kind(404, "NoSuchBucket"), BucketError::NotFound));
        assert_eq!(kind(404, ""), BucketError::NotFound);
    }

    #[test]
    fn refusals_are_told_apart() {
        assert!(matches!(kind(403, "AccessDenied"), BucketError::Denied(_)));
        assert!(matches!(kind(403, ""), BucketError::Denied(_)));
        assert!(matches!(kind(400, "ExpiredToken"), BucketError::Unavailable(_)));
        assert!(matches!(kind(403, "InvalidAccessKeyId"), BucketError::Unauthenticated(_)));
        assert!(matches!(kind(507, ""), BucketError::NoSpace(_)));
        assert!(matches!(kind(400, "BadDigest"), BucketError::Corrupt(_)));
        assert_eq!(kind(412, ""), BucketError::Precondition);
        assert_eq!(kind(400, "KeyTooLongError"), BucketError::KeyTooLong);
    }
}
