//! What stands at both ends of a rename before it is decided.

use std::collections::BTreeSet;

use super::{GRACE, Mover};
use crate::bucket::{BucketError, ListedObject, Page};
use crate::checkpoint::moves::Survey;
use crate::checkpoint::record::key::{MARK_PREFIX, child_prefix, control_prefix, mark_key};
use crate::checkpoint::record::{Escaped, KeyKind, RecordKey, Suffix};
use crate::types::{CONTROL_DIR, KEY_BYTES_MAX, Name};

/// Marks asked for in a directory above: one of another rename is enough.
const MARKS_MAX: u16 = 2;
/// Objects asked for in the destination: an empty directory has less.
const TARGET_LIST_MAX: u16 = 1000;

/// What a survey found.
#[derive(Debug, Default)]
pub struct Surveyed {
    pub survey: Survey,
    /// Directories in the source that have transactions, which the caller must see decided: the key
    /// of the parent, and the name as it stands in keys.
    pub nested: BTreeSet<(String, String)>,
    /// Keys that no record can name: such a directory is not renamed by one.
    pub odd: bool,
    /// A key would be longer than stores take: such a directory is not renamed at all.
    pub long: bool,
}

impl Mover {
    /// Puts the mark in the destination, and LISTs everything, all at once.
    ///
    /// What is listed counts from when no rival is there, since from our pointers on none begins:
    /// a rival that was done in between would have left half of it. Sources go no sooner than
    /// [`GRACE`] after a decision, so if no rival was there when we pointed, and all of it took
    /// less, there was none; else the directories are listed again.
    pub async fn survey(&self) -> Result<Surveyed, BucketError> {
        let mark = mark_key(&self.ends.target(), self.id);
        let (marked, found, rival, above) =
            tokio::join!(self.mark(&mark), self.list_both(), self.has_rival(), self.marks_above());
        marked?;
        let (mut found, rival) = (found?, rival? || above?);
        let first = self.state.lock().first_look;
        let clean = first.is_some_and(|(began, rival)| {
            !rival && self.clock.now().saturating_duration_since(began) < GRACE
        });
        if !rival && !clean {
            found = self.list_both().await?;
        }
        found.survey.rival |= rival;
        Ok(found)
    }

    async fn list_both(&self) -> Result<Surveyed, BucketError> {
        let (source, target) = (self.ends.source(), self.ends.target());
        let (objects, there) = tokio::join!(
            self.list_below(&source),
            self.bucket.list(&target, false, None, TARGET_LIST_MAX)
        );
        let mut found = self.sort(&source, objects?.objects);
        let there = match there {
            Err(BucketError::NotFound) => Page::default(),
            other => other?,
        };
        let control = control_prefix(target.trim_end_matches('/'));
        let ours = |object: &ListedObject| {
            let marker = object.key.as_str() == target && self.over;
            marker || object.key.as_str().starts_with(&control)
        };
        found.survey.taken = there.next.is_some() || !there.objects.iter().all(ours);
        Ok(found)
    }

    /// Whether the records beside the two names tell of another rename of one of them.
    pub(super) async fn has_rival(&self) -> Result<bool, BucketError> {
        let records = |dir: &str, child: &Name| child_prefix(dir, &Escaped::of(child));
        let from = records(&self.ends.from_dir, &self.ends.from);
        let to = records(&self.ends.to_dir, &self.ends.to);
        let (from, to) = tokio::join!(self.list_below(&from), self.list_below(&to));
        let records = from?.objects.into_iter().chain(to?.objects);
        Ok(records.into_iter().any(|object| self.is_rival(&object)))
    }

    pub(super) async fn list_below(&self, prefix: &str) -> Result<Page, BucketError> {
        match self.bucket.list_all(prefix, false).await {
            Err(BucketError::NotFound) => Ok(Page::default()),
            other => other,
        }
    }

    fn sort(&self, source: &str, objects: Vec<ListedObject>) -> Surveyed {
        let mut found = Surveyed::default();
        let target = self.ends.target().len();
        for object in objects {
            let Some(text) = object.key.as_str().strip_prefix(source) else { continue };
            let long = target + text.len() > KEY_BYTES_MAX;
            if let Ok(suffix) = Suffix::new(text) {
                found.long |= long;
                found.survey.entries.insert(suffix, object.etag);
                continue;
            }
            let control = text.rsplit_once('/').filter(|(dir, _)| dir.ends_with(CONTROL_DIR));
            let Some((dir, record)) = control else {
                let odd = !text.ends_with(&format!("{CONTROL_DIR}/"));
                found.long |= odd && long;
                found.odd |= odd;
                continue;
            };
            let dir = dir.strip_suffix(CONTROL_DIR).unwrap_or(dir);
            match RecordKey::parse(record) {
                Some(key) if matches!(key.kind, KeyKind::From(_) | KeyKind::Into(_)) => {
                    found.survey.rival = true;
                }
                Some(key) => {
                    let dir = format!("{source}{dir}").trim_end_matches('/').to_owned();
                    found.nested.insert((dir, key.child.as_str().to_owned()));
                }
                None => {
                    found.survey.rival |= record.starts_with(MARK_PREFIX) && !self.is_mark(record)
                }
            }
        }
        found
    }

    fn is_mark(&self, record: &str) -> bool {
        record.strip_prefix(MARK_PREFIX).is_some_and(|id| id == self.id.to_string())
    }

    /// Whether a record says that another rename of one of the two names is under way.
    fn is_rival(&self, object: &ListedObject) -> bool {
        let record = object.key.as_str().rsplit('/').next().and_then(RecordKey::parse);
        record.is_some_and(|key| match key.kind {
            KeyKind::From(id) | KeyKind::Into(id) => id != self.id,
            _ => false,
        })
    }

    /// Whether a directory above one of the two is being renamed.
    async fn marks_above(&self) -> Result<bool, BucketError> {
        let mut above = BTreeSet::new();
        for dir in [&self.ends.from_dir, &self.ends.to_dir] {
            let mut dir = dir.as_str();
            while !dir.is_empty() {
                above.insert(dir);
                dir = dir.rsplit_once('/').map_or("", |(dir, _)| dir);
            }
        }
        let asked = above.into_iter().map(|dir| async move {
            let prefix = format!("{}{MARK_PREFIX}", control_prefix(dir));
            match self.bucket.list(&prefix, false, None, MARKS_MAX).await {
                Err(BucketError::NotFound) => Ok(false),
                page => Ok(!page?.objects.is_empty()),
            }
        });
        let marked: Vec<bool> = futures::future::try_join_all(asked).await?;
        Ok(marked.contains(&true))
    }
}
