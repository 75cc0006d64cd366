//! What a refusal of Azure Blob Storage means to us: pure, one table.

use serde::Deserialize;

use crate::bucket::error::BucketError;
use crate::bucket::http::message;
use crate::bucket::xml;

/// The `<Error>` of a failed request. The code is in a header too, so that HEAD tells it.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Refusal {
    pub code: String,
    pub message: String,
}

/// Reads a refusal from the body of an answer and the code of its header, if they are there.
pub fn refusal(body: &[u8], code: Option<&str>) -> Refusal {
    let text = std::str::from_utf8(body).unwrap_or_default().trim_start_matches('\u{feff}');
    let read = || xml::from_str::<Refusal>(text).unwrap_or_default();
    let mut found = if text.contains("<Error") { read() } else { Refusal::default() };
    if let Some(code) = code {
        found.code = code.to_owned();
    }
    // What follows in further lines is the id and time of the request.
    found.message = found.message.lines().next().unwrap_or_default().to_owned();
    found
}

/// Names a failed request.
pub fn error(status: u16, refusal: &Refusal) -> BucketError {
    let text = match (refusal.code.as_str(), message(&refusal.message)) {
        ("", text) if text.is_empty() => format!("HTTP {status}"),
        ("", text) => text,
        (code, text) if text.is_empty() => code.to_owned(),
        (code, text) => format!("{code}: {text}"),
    };
    by_code(status, &refusal.code, &text).unwrap_or_else(|| by_status(status, text))
}

fn by_code(status: u16, code: &str, text: &str) -> Option<BucketError> {
    let text = text.to_owned();
    Some(match code {
        // A block list that names blocks which are gone: of an upload that was completed or
        // aborted, or on whose name another write was committed.
        "BlobNotFound" | "ResourceNotFound" | "InvalidBlockList" => BucketError::NotFound,
        "ContainerNotFound" => BucketError::Invalid("there is no such container".to_owned()),
        "BlobAlreadyExists"
        | "ConditionNotMet"
        | "SourceConditionNotMet"
        | "TargetConditionNotMet" => BucketError::Precondition,
        // The source of a copy was asked by the server, which hands on how that one answered.
        "CannotVerifyCopySource" => match status {
            404 => BucketError::NotFound,
            401 | 403 => BucketError::Denied(text),
            412 => BucketError::Precondition,
            400..500 => BucketError::Invalid(text),
            _ => BucketError::Unavailable(text),
        },
        "ServerBusy" | "InternalError" | "PendingCopyOperation" | "ContainerBeingDeleted" => {
            BucketError::Unavailable(text)
        }
        "OperationTimedOut" => BucketError::TimedOut(text),
        "Md5Mismatch" | "Crc64Mismatch" | "IncompleteBody" => BucketError::Corrupt(text),
        "LeaseIdMissing" | "BlobImmutableDueToPolicy" | "BlobArchived" | "AccountIsDisabled" => {
            BucketError::Denied(text)
        }
        "APINotImplemented" | "NotImplemented" => BucketError::Unsupported("do this"),
        "InvalidBlobOrBlock" => BucketError::Invalid(format!(
            "{text}: another tool began an upload of this name and left it unfinished"
        )),
        "AuthenticationFailed" => BucketError::Unauthenticated(text),
        "InsufficientAccountPermissions" => BucketError::Denied(text),
        _ => return None,
    })
}

fn by_status(status: u16, text: String) -> BucketError {
    match status {
        401 | 403 => BucketError::Denied(text),
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
        error(status, &Refusal { code: code.to_owned(), ..Refusal::default() })
    }

    #[test]
    fn an_outage_is_never_an_absence() {
        for status in [429, 500, 502, 503, 504, 599] {
            assert!(kind(status, "").is_transient(), "{status}");
        }
        for code in ["ServerBusy", "OperationTimedOut", "InternalError", "PendingCopyOperation"] {
            assert!(kind(409, code).is_transient(), "{code}");
        }
        assert!(kind(500, "CannotVerifyCopySource").is_transient());
        assert!(!matches!(kind(404, "ContainerNotFound"), BucketError::NotFound));
        assert_eq!(kind(404, "BlobNotFound"), BucketError::NotFound);
        assert_eq!(kind(404, ""), BucketError::NotFound);
    }

    #[test]
    fn refusals_are_told_apart() {
        assert_eq!(kind(409, "BlobAlreadyExists"), BucketError::Precondition);
        assert_eq!(kind(412, "ConditionNotMet"), BucketError::Precondition);
        assert_eq!(kind(400, "InvalidBlockList"), BucketError::NotFound);
        assert!(matches!(kind(412, "LeaseIdMissing"), BucketError::Denied(_)));
        assert!(matches!(kind(403, "AuthorizationFailure"), BucketError::Denied(_)));
        assert!(matches!(kind(400, "Crc64Mismatch"), BucketError::Corrupt(_)));
        assert!(matches!(kind(409, "InvalidBlobType"), BucketError::Invalid(_)));
    }

    #[test]
    fn a_refusal_is_read_from_body_or_header_without_its_ids() {
        let body = "\u{feff}<?xml version=\"1.0\"?><Error><Code>ServerBusy</Code><Message>wait\n\
                    RequestId:1\nTime:2</Message></Error>";
        let found = refusal(body.as_bytes(), None);
        assert_eq!((found.code.as_str(), found.message.as_str()), ("ServerBusy", "wait"));
        assert_eq!(refusal(b"", Some("BlobNotFound")).code, "BlobNotFound");
        assert_eq!(refusal(b"<html>", None), Refusal::default());
    }
}
