//! How many requests were made, by operation, so that tests and `status` can hold us to a budget.
//!
//! Owns the counters. Does not own what a request is: [`crate::bucket::Bucket`] counts attempts.

use std::sync::atomic::{AtomicU64, Ordering};

/// The operations of a [`crate::bucket::store::Store`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    Head,
    Get,
    Put,
    Delete,
    List,
    Copy,
    Rename,
    MultipartCreate,
    Part,
    PartCopy,
    Complete,
    Abort,
}

impl Operation {
    /// Whether the server itself moves bytes, and so answers when it pleases.
    pub fn is_server_work(self) -> bool {
        matches!(self, Self::Copy | Self::PartCopy | Self::Complete)
    }
}

const OPERATIONS: usize = 12;

/// Attempts by operation since the mount; a retry counts as one more attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct RequestCounts {
    pub head: u64,
    pub get: u64,
    pub put: u64,
    pub delete: u64,
    pub list: u64,
    pub copy: u64,
    pub rename: u64,
    pub multipart_create: u64,
    pub part: u64,
    pub part_copy: u64,
    pub complete: u64,
    pub abort: u64,
    /// Attempts that followed a failed one, already in the numbers above.
    pub retries: u64,
    /// Attempts that met no answer, or one that made no sense: not "not found", not "precondition".
    pub errors: u64,
}

impl RequestCounts {
    /// All attempts.
    pub fn total(&self) -> u64 {
        let Self { head, get, put, delete, list, copy, rename, .. } = *self;
        let Self { multipart_create, part, part_copy, complete, abort, .. } = *self;
        let small = head + get + put + delete + list + copy + rename;
        small + multipart_create + part + part_copy + complete + abort
    }
}

/// The live counters behind [`RequestCounts`].
#[derive(Debug, Default)]
pub struct Counters {
    attempts: [AtomicU64; OPERATIONS],
    retries: AtomicU64,
    errors: AtomicU64,
}

impl Counters {
    pub fn attempt(&self, operation: Operation) {
        self.attempts[operation as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub fn error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    pub fn snapshot(&self) -> RequestCounts {
        let of = |operation: Operation| self.attempts[operation as usize].load(Ordering::Relaxed);
        RequestCounts {
            head: of(Operation::Head),
            get: of(Operation::Get),
            put: of(Operation::Put),
            delete: of(Operation::Delete),
            list: of(Operation::List),
            copy: of(Operation::Copy),
            rename: of(Operation::Rename),
            multipart_create: of(Operation::MultipartCreate),
            part: of(Operation::Part),
            part_copy: of(Operation::PartCopy),
            complete: of(Operation::Complete),
            abort: of(Operation::Abort),
            retries: self.retries.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
        }
    }
}
