//! What the emulated bucket holds: objects with generations, and uploads under way.
//!
//! Owns the preconditions. Does not own requests.

use std::collections::{BTreeMap, HashMap};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

pub type Metadata = BTreeMap<String, String>;

/// Generations are times in microseconds on the real one; here they count on from one such.
const GENERATION_FIRST: u64 = 1_700_000_000_000_000;

#[derive(Clone)]
pub struct Object {
    pub bytes: Bytes,
    pub generation: u64,
    pub metadata: Metadata,
}

#[derive(Default)]
pub struct Upload {
    pub key: String,
    pub metadata: Metadata,
    pub parts: BTreeMap<u64, (String, Bytes)>,
}

#[derive(Default)]
pub struct Contents {
    pub objects: BTreeMap<String, Object>,
    pub uploads: HashMap<String, Upload>,
    written: u64,
}

/// Why a request is not carried out.
#[derive(Debug)]
pub enum Refusal {
    NoBucket,
    NoObject,
    NoSuchUpload,
    Precondition,
    BadDigest,
    InvalidPart,
    TooSmall,
    Invalid(String),
}

impl Object {
    /// As the JSON API shows it: numbers are text, times have fractions.
    pub fn resource(&self, key: &str) -> Value {
        json!({
            "kind": "storage#object",
            "name": key,
            "size": self.bytes.len().to_string(),
            "generation": self.generation.to_string(),
            "metageneration": "1",
            "updated": "2024-02-29T12:00:00.750Z",
            "crc32c": crc32c(&self.bytes),
            "metadata": self.metadata,
        })
    }
}

impl Contents {
    /// The object at `key`, if it is of the generation `expected`.
    pub fn at(&self, key: &str, expected: Option<u64>) -> Result<&Object, Refusal> {
        let object = self.objects.get(key).ok_or(Refusal::NoObject)?;
        match expected {
            Some(expected) if expected != object.generation => Err(Refusal::Precondition),
            _ => Ok(object),
        }
    }

    /// Whether `key` may be written; an `expected` generation of 0: only where nothing is.
    pub fn check(&self, key: &str, expected: Option<u64>) -> Result<(), Refusal> {
        let found = self.objects.get(key).map_or(0, |object| object.generation);
        if expected.is_none_or(|expected| expected == found) {
            Ok(())
        } else {
            Err(Refusal::Precondition)
        }
    }

    /// Writes an object of a new generation, and shows it.
    pub fn write(&mut self, key: &str, bytes: Bytes, metadata: Metadata) -> Value {
        self.written += 1;
        let object = Object { bytes, generation: GENERATION_FIRST + self.written, metadata };
        let shown = object.resource(key);
        self.objects.insert(key.to_owned(), object);
        shown
    }

    pub fn begin(&mut self, upload: Upload) -> String {
        self.written += 1;
        let id = format!("upload/{}+=", self.written);
        self.uploads.insert(id.clone(), upload);
        id
    }

    pub fn upload(&mut self, key: &str, id: &str) -> Result<&mut Upload, Refusal> {
        self.uploads.get_mut(id).filter(|upload| upload.key == key).ok_or(Refusal::NoSuchUpload)
    }
}

impl Refusal {
    /// Status, XML code, JSON reason, words.
    pub fn words(&self) -> (u16, &'static str, &'static str, &str) {
        match self {
            Self::NoBucket => (404, "NoSuchBucket", "notFound", "The bucket does not exist."),
            Self::NoObject => (404, "NoSuchKey", "notFound", "No such object"),
            Self::NoSuchUpload => (404, "NoSuchUpload", "notFound", "The upload does not exist."),
            Self::Precondition => {
                (412, "PreconditionFailed", "conditionNotMet", "A precondition did not hold.")
            }
            Self::BadDigest => (400, "BadDigest", "invalid", "The hash did not match."),
            Self::InvalidPart => (400, "InvalidPart", "invalid", "A part was not found."),
            Self::TooSmall => (400, "EntityTooSmall", "invalid", "A part is too small."),
            Self::Invalid(why) => (400, "InvalidArgument", "invalid", why),
        }
    }
}

pub fn metadata_of(value: &Value) -> Metadata {
    let pairs = value.as_object().into_iter().flatten();
    pairs
        .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect()
}

/// CRC32C in the form in which both APIs tell it, bit by bit from its definition.
pub fn crc32c(bytes: &[u8]) -> String {
    let table: Vec<u32> = (0..256u32)
        .map(|byte| {
            (0..8).fold(byte, |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
        })
        .collect();
    let next = |crc: u32, byte: &u8| crc >> 8 ^ table[(crc as u8 ^ byte) as usize];
    STANDARD.encode((!bytes.iter().fold(!0, next)).to_be_bytes())
}
