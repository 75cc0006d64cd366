//! The XML of S3 (and of GCS, which speaks it too): pages of a LIST, errors, ids, lists of parts.
//!
//! Pure: text in, values out. The text comes from a server that may lie; nothing here panics.

use percent_encoding::percent_decode_str;
use quick_xml::DeError;
use serde::Deserialize;

use crate::bucket::date;
use crate::bucket::error::BucketError;
use crate::bucket::store::{ListedObject, Page};
use crate::types::{ETag, Key};

/// The `<Error>` of a failed request; empty where there was none.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ErrorBody {
    pub code: String,
    pub message: String,
    pub region: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListBody {
    #[serde(default)]
    encoding_type: String,
    #[serde(default)]
    is_truncated: bool,
    next_continuation_token: Option<String>,
    #[serde(default)]
    contents: Vec<Contents>,
    #[serde(default)]
    common_prefixes: Vec<CommonPrefix>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Contents {
    #[serde(default)]
    key: String,
    #[serde(default)]
    last_modified: String,
    #[serde(rename = "ETag", default)]
    etag: String,
    #[serde(default)]
    size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CommonPrefix {
    #[serde(default)]
    prefix: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UploadBody {
    upload_id: String,
}

#[derive(Deserialize)]
struct WrittenBody {
    #[serde(rename = "ETag")]
    etag: String,
}

/// What every listing is called, in whatever namespace.
const LIST_ROOT: &[u8] = b"ListBucketResult";

/// One page of a LIST.
pub fn page(body: &[u8]) -> Result<Page, BucketError> {
    let list: ListBody = parse(body, "listing")?;
    if !body.windows(LIST_ROOT.len()).any(|part| part == LIST_ROOT) {
        // Somebody's web page, which must not pass for an empty bucket.
        return Err(BucketError::Invalid("the listing is not understood".to_owned()));
    }
    let decode = |text: String| match list.encoding_type.as_str() {
        "url" => percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned(),
        _ => text,
    };
    let object = |c: Contents| ListedObject {
        key: Key::new(decode(c.key)),
        size: c.size,
        etag: etag(&c.etag),
        modified: date::iso(&c.last_modified).unwrap_or(std::time::SystemTime::UNIX_EPOCH),
    };
    let next = list.next_continuation_token.filter(|token| list.is_truncated && !token.is_empty());
    if list.is_truncated && next.is_none() {
        return Err(BucketError::Invalid("a cut listing without a token to go on".to_owned()));
    }
    Ok(Page {
        objects: list.contents.into_iter().map(object).collect(),
        prefixes: list.common_prefixes.into_iter().map(|p| decode(p.prefix)).collect(),
        next,
    })
}

/// The error in `body`, if it is one.
pub fn error(body: &[u8]) -> Option<ErrorBody> {
    let text = std::str::from_utf8(body).ok()?;
    text.contains("<Error").then(|| from_str(text).unwrap_or_default())
}

/// The id of an upload that was begun.
pub fn upload_id(body: &[u8]) -> Result<String, BucketError> {
    Ok(parse::<UploadBody>(body, "new upload")?.upload_id)
}

/// The ETag of what a copy or a completion made.
pub fn written(body: &[u8]) -> Result<ETag, BucketError> {
    Ok(etag(&parse::<WrittenBody>(body, "written object")?.etag))
}

/// The request that completes an upload: `parts[i]` is the ETag of part `i + 1`.
pub fn complete(parts: &[String]) -> String {
    let part = |(i, etag): (usize, &String)| {
        let etag = quick_xml::escape::escape(etag.as_str());
        let number = i + 1;
        format!("<Part><PartNumber>{number}</PartNumber><ETag>&quot;{etag}&quot;</ETag></Part>")
    };
    let parts: String = parts.iter().enumerate().map(part).collect();
    format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>")
}

/// An ETag without its quotes: servers disagree on them between answers.
pub fn etag(text: &str) -> ETag {
    ETag(text.trim().trim_matches('"').to_owned())
}

fn parse<T: for<'a> Deserialize<'a>>(body: &[u8], what: &str) -> Result<T, BucketError> {
    let text = std::str::from_utf8(body)
        .map_err(|_| BucketError::Invalid(format!("the {what} is not UTF-8")))?;
    check_whole(text, what)?;
    from_str(text)
        .map_err(|error| BucketError::Invalid(format!("the {what} is not understood: {error}")))
}

/// What a document says. The library panics at some malformed ones where lists overlap (two texts
/// in a row, `read_text` of 0.39): no server shall end a request of ours so.
pub fn from_str<T: for<'a> Deserialize<'a>>(text: &str) -> Result<T, DeError> {
    std::panic::catch_unwind(|| quick_xml::de::from_str(text))
        .unwrap_or_else(|_| Err(DeError::Custom("it is malformed".to_owned())))
}

/// What an answer of a store is called.
const ROOTS: [&str; 8] = [
    "ListBucketResult",
    "InitiateMultipartUploadResult",
    "CompleteMultipartUploadResult",
    "CopyObjectResult",
    "CopyPartResult",
    "EnumerationResults",
    "BlockList",
    "multistatus",
];

/// An answer that was cut on its way is asked for again: it must pass neither for a short listing
/// nor for something that the store will say for ever.
pub fn check_whole(text: &str, what: &str) -> Result<(), BucketError> {
    match is_cut(text) {
        true => Err(BucketError::Corrupt(format!("the {what} was cut"))),
        false => Ok(()),
    }
}

fn is_cut(text: &str) -> bool {
    const PROLOG: &str = "<?xml";
    let text = text.trim_start_matches('\u{feff}').trim();
    if PROLOG.starts_with(text) {
        return !text.is_empty();
    }
    let root = match text.strip_prefix(PROLOG) {
        Some(rest) => rest.split_once("?>").map_or("", |(_, root)| root.trim_start()),
        None => text,
    };
    let Some(root) = root.strip_prefix('<') else { return root.is_empty() };
    let name = root.split(|c: char| c.is_whitespace() || c == '>' || c == '/').next();
    let name = name.unwrap_or_default();
    let local = name.rsplit(':').next().unwrap_or_default();
    let ours = ROOTS.contains(&local) || ROOTS.iter().any(|known| known.starts_with(root));
    let closed = text.ends_with(&format!("</{name}>"));
    let empty = !root.contains('<') && root.ends_with("/>");
    ours && !closed && !empty
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_keys_come_out_of_a_listing_as_they_are() {
        let body = br#"<?xml version="1.0"?><ListBucketResult>
            <EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>
            <NextContinuationToken>t+1=</NextContinuationToken>
            <Contents><Key>a//b</Key><Size>3</Size><ETag>&quot;e&quot;</ETag>
              <LastModified>1970-01-01T00:00:01Z</LastModified><Owner><ID>x</ID></Owner></Contents>
            <Contents><Key>..%2Fx%01+%2B%20</Key><Size>0</Size><ETag>"f-2"</ETag></Contents>
            <CommonPrefixes><Prefix>d%0A/</Prefix></CommonPrefixes></ListBucketResult>"#;
        let page = page(body).unwrap();
        let keys: Vec<_> = page.objects.iter().map(|o| o.key.as_str()).collect();
        assert_eq!(keys, ["a//b", "../x\u{1} + "]);
        assert_eq!(page.objects[0].etag, ETag("e".to_owned()));
        assert_eq!(page.prefixes, ["d\n/"]);
        assert_eq!(page.next.as_deref(), Some("t+1="));
    }

    #[test]
    fn objects_and_prefixes_may_come_in_any_order() {
        let body = b"<ListBucketResult><Contents><Key>d/..</Key></Contents><CommonPrefixes>\
            <Prefix>d/../</Prefix></CommonPrefixes><Contents><Key>d/f</Key></Contents>\
            <IsTruncated>false</IsTruncated></ListBucketResult>";
        let page = page(body).unwrap();
        assert_eq!((page.objects.len(), page.prefixes.len()), (2, 1));
    }

    #[test]
    fn a_listing_that_lies_is_an_error_and_not_a_short_listing() {
        let cut = b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>";
        assert!(page(cut).is_err());
        assert!(page(b"<html>").is_err());
        assert!(page(b"<html><body>Log in</body></html>").is_err());
        assert!(page(b"\xff").is_err());
    }

    #[test]
    fn a_listing_that_was_cut_anywhere_is_asked_for_again() {
        let whole = "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"s3\"><IsTruncated>false\
                     </IsTruncated><Contents><Key>a</Key></Contents>\
                     <Contents><Key>b</Key></Contents>\
                     </ListBucketResult>";
        assert_eq!(page(whole.as_bytes()).unwrap().objects.len(), 2);
        for end in 1..whole.len() {
            let cut = page(&whole.as_bytes()[..end]);
            assert!(matches!(cut, Err(BucketError::Corrupt(_))), "{}: {cut:?}", &whole[..end]);
        }
        for other in ["<p>hi", "<html><body>", "hi", "{}"] {
            assert!(matches!(page(other.as_bytes()), Err(BucketError::Invalid(_))), "{other}");
        }
        assert!(check_whole("<D:multistatus/>", "").is_ok());
        assert!(check_whole("<D:multistatus xmlns:D=\"DAV:\"><D:response>", "").is_err());
    }

    #[test]
    fn an_error_inside_a_200_is_seen() {
        let body = b"  \n<Error><Code>InternalError</Code><Message>m</Message></Error>";
        assert_eq!(error(body).unwrap().code, "InternalError");
        assert_eq!(error(b"<CompleteMultipartUploadResult/>"), None);
    }

    #[test]
    fn parts_are_numbered_from_one_and_escaped() {
        let body = complete(&["a".to_owned(), "<".to_owned()]);
        assert!(body.contains("<PartNumber>1</PartNumber><ETag>&quot;a&quot;"), "{body}");
        assert!(body.contains("<PartNumber>2</PartNumber><ETag>&quot;&lt;&quot;"), "{body}");
    }

    #[test]
    fn what_the_library_panics_at_is_an_error() {
        #[derive(Debug, serde::Deserialize)]
        struct Two {
            #[allow(dead_code)]
            a: Vec<String>,
            #[allow(dead_code)]
            b: Vec<String>,
        }
        // Texts that a skipped element kept apart come in a row once it is replayed elsewhere.
        for text in ["<x><a>1<b/>2</a><b>3</b></x>", "<x><a>1</a><b>2<a/>3</b><a>4</a></x>", "<x>"]
        {
            assert!(from_str::<Two>(text).is_err(), "{text}");
        }
    }
}
