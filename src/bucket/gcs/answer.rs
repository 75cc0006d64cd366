//! What a refusal of Google Cloud Storage means to us: pure, one table for both its APIs.

use serde::Deserialize;

use crate::bucket::error::BucketError;
use crate::bucket::http::message;
use crate::bucket::xml;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ErrorBody {
    error: ErrorDetails,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ErrorDetails {
    message: String,
    errors: Vec<Reason>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reason {
    reason: String,
}

/// Names a failed request. `body` is JSON, XML or, from a proxy, anything.
pub fn error(status: u16, body: &[u8]) -> BucketError {
    let (reason, text) = match xml::error(body) {
        Some(error) => (error.code, error.message),
        None => {
            let body: ErrorBody = serde_json::from_slice(body).unwrap_or_default();
            let first = body.error.errors.into_iter().next().unwrap_or_default();
            (first.reason, body.error.message)
        }
    };
    let text = match message(&text) {
        text if text.is_empty() => format!("HTTP {status}"),
        text => text,
    };
    by_reason(status, &reason, &text).unwrap_or_else(|| by_status(status, text))
}

fn by_reason(status: u16, reason: &str, text: &str) -> Option<BucketError> {
    let text = text.to_owned();
    Some(match reason {
        "NoSuchBucket" => BucketError::Invalid("there is no such bucket".to_owned()),
        "rateLimitExceeded" | "userRateLimitExceeded" | "SlowDown" | "TooManyRequests" => {
            BucketError::Unavailable(text)
        }
        "quotaExceeded" | "dailyLimitExceeded" | "QuotaExceeded" => BucketError::Quota(text),
        "BadDigest" | "IncompleteBody" => BucketError::Corrupt(text),
        "KeyTooLong" | "KeyTooLongError" => BucketError::KeyTooLong,
        // The JSON API tells a wrong CRC by its message alone.
        "invalid" if status == 400 && text.to_ascii_lowercase().contains("crc32c") => {
            BucketError::Corrupt(text)
        }
        _ => return None,
    })
}

fn by_status(status: u16, text: String) -> BucketError {
    match status {
        401 => BucketError::Unauthenticated(text),
        403 => BucketError::Denied(text),
        404 | 410 => BucketError::NotFound,
        405 | 501 => BucketError::Unsupported("do this"),
        408 => BucketError::TimedOut(text),
        // Another write was under way: not yet known how it ends.
        409 => BucketError::Unavailable(text),
        412 => BucketError::Precondition,
        429 | 500.. => BucketError::Unavailable(text),
        _ => BucketError::Invalid(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(status: u16, reason: &str, text: &str) -> BucketError {
        let body = serde_json::json!({ "error": {
            "code": status, "message": text, "errors": [{ "domain": "global", "reason": reason }]
        }});
        error(status, body.to_string().as_bytes())
    }

    #[test]
    fn an_outage_is_never_an_absence_nor_a_refusal() {
        for status in [408, 409, 429, 500, 502, 503, 504, 599] {
            assert!(error(status, b"<html>").is_transient(), "{status}");
        }
        assert!(json(403, "rateLimitExceeded", "slow").is_transient());
        assert!(!matches!(
            error(404, b"<Error><Code>NoSuchBucket</Code></Error>"),
            BucketError::NotFound
        ));
    }

    #[test]
    fn refusals_of_both_apis_are_told_apart() {
        assert_eq!(json(412, "conditionNotMet", ""), BucketError::Precondition);
        let xml = b"<?xml version='1.0'?><Error><Code>PreconditionFailed</Code></Error>";
        assert_eq!(error(412, xml), BucketError::Precondition);
        assert_eq!(error(404, b"<Error><Code>NoSuchUpload</Code></Error>"), BucketError::NotFound);
        assert_eq!(json(404, "notFound", "No such object"), BucketError::NotFound);
        assert!(matches!(json(403, "forbidden", "no"), BucketError::Denied(text) if text == "no"));
        assert!(matches!(json(403, "quotaExceeded", ""), BucketError::Quota(_)));
        let wrong = "Provided CRC32C \"x\" doesn't match calculated CRC32C \"y\".";
        assert!(matches!(json(400, "invalid", wrong), BucketError::Corrupt(_)));
        assert!(matches!(json(400, "invalid", "else"), BucketError::Invalid(_)));
    }
}
