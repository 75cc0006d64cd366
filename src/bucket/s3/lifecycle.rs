//! The lifecycle rules of a bucket: when they end uploads that nobody completed.
//!
//! Pure: text in, days out. The text comes from a server that may lie; nothing here panics.

use serde::Deserialize;

use crate::bucket::xml;

#[derive(Deserialize)]
struct Rules {
    #[serde(rename = "Rule", default)]
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Rule {
    status: String,
    /// Of rules in the form before 2015.
    prefix: String,
    filter: Filter,
    abort_incomplete_multipart_upload: Option<Abort>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Filter {
    prefix: String,
    and: And,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct And {
    prefix: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Abort {
    days_after_initiation: u32,
}

/// The fewest days after which a rule ends an upload of some key below `prefix`. What is not
/// understood is no rule.
pub fn uploads_end_after_days(body: &[u8], prefix: &str) -> Option<u32> {
    let text = std::str::from_utf8(body).ok()?;
    let Rules { rules } = xml::from_str(text).ok()?;
    let meets = |rule: &Rule| {
        let told = [&rule.prefix, &rule.filter.prefix, &rule.filter.and.prefix];
        told.iter().all(|told| prefix.starts_with(told.as_str()) || told.starts_with(prefix))
    };
    let ends =
        |rule: &Rule| Some(rule.abort_incomplete_multipart_upload.as_ref()?.days_after_initiation);
    rules.iter().filter(|rule| rule.status == "Enabled" && meets(rule)).filter_map(ends).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soonest_rule_that_meets_our_prefix_counts() {
        let rule = |status: &str, place: &str, days: u32| {
            format!(
                "<Rule><ID>r</ID><Status>{status}</Status>{place}<AbortIncompleteMultipartUpload>\
                 <DaysAfterInitiation>{days}</DaysAfterInitiation>\
                 </AbortIncompleteMultipartUpload></Rule>"
            )
        };
        let body = format!(
            "<?xml version=\"1.0\"?><LifecycleConfiguration xmlns=\"s3\">\
             <Rule><Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule>{}{}{}{}\
             </LifecycleConfiguration>",
            rule("Disabled", "<Prefix></Prefix>", 1),
            rule("Enabled", "<Filter><Prefix>other/</Prefix></Filter>", 2),
            rule("Enabled", "<Filter><And><Prefix>runs/a/</Prefix></And></Filter>", 3),
            rule("Enabled", "<Filter><Prefix></Prefix></Filter>", 9),
        );
        let of = |prefix| uploads_end_after_days(body.as_bytes(), prefix);
        assert_eq!(of("runs/"), Some(3));
        assert_eq!(of("runs/a/b/"), Some(3));
        assert_eq!(of("runs/b/"), Some(9));
        assert_eq!(of(""), Some(2));
    }

    #[test]
    fn what_is_not_understood_is_no_rule() {
        for body in [
            &b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>"[..],
            b"<LifecycleConfiguration><Rule><AbortIncompleteMultipartUpload/></Rule>",
            b"<html>",
            b"\xff",
            b"",
        ] {
            assert_eq!(uploads_end_after_days(body, ""), None);
        }
    }
}
