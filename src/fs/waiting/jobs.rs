//! The closed files that wait, by close and by file.
//!
//! Owns both orders. Does not own what becomes of a job. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Job;
use crate::fs::handles::OpenFile;
use crate::types::ETag;
use crate::write::{Before, CloseId};

#[derive(Debug, Default)]
pub struct Jobs {
    all: BTreeMap<CloseId, Job>,
    /// By the address of the file, which each of its jobs holds.
    of_files: BTreeSet<(usize, CloseId)>,
}

impl Jobs {
    pub fn insert(&mut self, id: CloseId, job: Job) {
        self.of_files.insert((Arc::as_ptr(&job.file).addr(), id));
        self.all.insert(id, job);
    }

    pub fn remove(&mut self, id: CloseId) -> Option<Job> {
        let job = self.all.remove(&id)?;
        self.of_files.remove(&(Arc::as_ptr(&job.file).addr(), id));
        Some(job)
    }

    pub fn get(&self, id: CloseId) -> Option<&Job> {
        self.all.get(&id)
    }

    pub fn get_mut(&mut self, id: CloseId) -> Option<&mut Job> {
        self.all.get_mut(&id)
    }

    pub fn contains(&self, id: CloseId) -> bool {
        self.all.contains_key(&id)
    }

    /// A close of the file is in the bucket: a later one that was to replace it replaces that.
    pub fn went_up(&mut self, file: &OpenFile, id: CloseId, etag: &ETag) {
        let ids: Vec<CloseId> = self.of(file).map(|(id, _)| id).collect();
        for follower in ids {
            let follower = self.all.get_mut(&follower).map(|job| &mut job.before);
            if let Some(before) = follower.filter(|before| **before == Before::Closed(id)) {
                *before = Before::Version(etag.clone());
            }
        }
    }

    /// In the order of closes.
    pub fn values(&self) -> impl Iterator<Item = &Job> {
        self.all.values()
    }

    /// Those of one file, in the order of closes.
    pub fn of(&self, file: &OpenFile) -> impl Iterator<Item = (CloseId, &Job)> {
        let address = std::ptr::from_ref(file).addr();
        let ids = self.of_files.range((address, CloseId(0))..=(address, CloseId(u64::MAX)));
        ids.filter_map(|(_, id)| Some((*id, self.all.get(id)?)))
    }
}
