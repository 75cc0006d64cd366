//! CRC64NVME as S3's headers say it: eight bytes, the highest first, in base64.
//!
//! Owns the spelling. Does not own where it is sent or compared.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use reqwest::header::HeaderValue;

/// What the server is to find.
pub fn header_of(body: &[u8]) -> HeaderValue {
    let text = BASE64_STANDARD.encode(crc_fast::crc64_nvme(body).to_be_bytes());
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
}

/// What the server says; `None` for what is not the sum of a whole object (`...-3`: of its parts).
pub fn of_header(header: &HeaderValue) -> Option<u64> {
    let bytes = BASE64_STANDARD.decode(header.as_bytes()).ok()?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_can_be_read_and_a_sum_of_sums_is_none() {
        let sent = header_of(b"123456789");
        assert_eq!(sent, "rosUhgp5mIg=", "the check value of the catalogue of CRCs");
        assert_eq!(of_header(&sent), Some(0xae8b_1486_0a79_9888));
        for other in ["", "rosUhgp5mIg=-3", "rosU", "%"] {
            assert_eq!(of_header(&HeaderValue::from_static(other)), None, "{other}");
        }
    }
}
