//! A listing as a whole: its pages in a row, or side by side where it is known or guessed where
//! they end.
//!
//! Owns which pages are asked for and when there are no more. Does not own where they may end
//! (`boundaries`, `guess`).

use std::time::Instant;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;

use super::boundaries::{self, Segment};
use super::{Bucket, BucketError, Page, guess};
use crate::types::Key;

/// The most entries asked for in one LIST; S3 gives no more.
const PAGE_ENTRIES_MAX: u16 = 1000;
/// Pages of one listing that are asked for at once: where their ends were learnt, and where they
/// are guessed, as behind the last page so many are asked for in vain.
const LEARNT_AT_ONCE_MAX: usize = 8;
const GUESSED_AT_ONCE_MAX: usize = 4;
/// The same before the first guess has come true.
const GUESSED_AT_FIRST: usize = 2;
/// A guess is wrong if what it is about has fewer entries, or more than a page.
const GUESSED_ENTRIES_MIN: usize = 500;
/// After so many that were wrong the rest is asked for in a row.
const WRONG_GUESSES_MAX: usize = 2;
/// What is about a guess is asked for in a row from here on.
const GUESSED_PAGES_MAX: u32 = 2;
/// The most pages of one LIST: ten million entries. A store that goes round in circles ends here.
const PAGES_MAX: u32 = 10_000;

/// Whoever wants the pages of a listing before all have come; `()` does not.
pub trait PageReader: Send + Sync {
    /// A page, as soon as those before it have come, and a moment before which it was not asked
    /// for. What it is told may come again in another page.
    fn page(&self, page: &Page, asked: Instant);

    /// Returns once another page may be asked for: a reader who falls behind would be told what
    /// is old by then.
    fn room(&self) -> BoxFuture<'_, ()>;
}

impl PageReader for () {
    fn page(&self, _page: &Page, _asked: Instant) {}

    fn room(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Where a page of a listing begins.
#[derive(PartialEq, Eq)]
enum From {
    Start,
    Page(String),
    Behind(Key),
    /// Behind the last entry of a full page that claims that nothing follows.
    Doubtful(Key),
}

/// A segment that is asked for, page after page.
struct Pages<'a> {
    bucket: &'a Bucket,
    prefix: &'a str,
    delimiter: bool,
    segment: Segment,
    reader: &'a dyn PageReader,
    /// `None`: it has all come.
    from: Option<From>,
    all: Page,
    /// Nothing follows the segment either.
    is_last: bool,
}

impl<'a> Pages<'a> {
    fn new(
        bucket: &'a Bucket,
        prefix: &'a str,
        delimiter: bool,
        segment: Segment,
        reader: &'a dyn PageReader,
    ) -> Self {
        let from = Some(segment.start.clone().map_or(From::Start, From::Behind));
        let all = Page::default();
        Self { bucket, prefix, delimiter, segment, reader, from, all, is_last: false }
    }

    /// One page. A full one that claims to be the last is not believed where one can be asked for
    /// behind it: SeaweedFS says so of one that ends with a directory's marker.
    async fn next(&mut self, from: From) -> Result<(), BucketError> {
        let Self { bucket, prefix, delimiter, .. } = *self;
        let max = PAGE_ENTRIES_MAX;
        self.reader.room().await;
        let asked = bucket.caller.clock.now();
        let page = match &from {
            From::Start => bucket.list(prefix, delimiter, None, max).await?,
            From::Page(token) => bucket.list(prefix, delimiter, Some(token), max).await?,
            From::Behind(key) => bucket.list_behind(prefix, delimiter, key, max).await?,
            From::Doubtful(key) => match bucket.list_behind(prefix, delimiter, key, max).await {
                Err(BucketError::Unsupported(_)) => Page::default(),
                page => page?,
            },
        };
        self.reader.page(&page, asked);
        let next = match page.next.clone() {
            Some(token) => Some(From::Page(token)),
            None if page.entries() < usize::from(max) => None,
            None => page.last().map(From::Doubtful).filter(|next| *next != from),
        };
        self.is_last = next.is_none();
        self.from = next.filter(|_| !self.segment.ends_in(&page));
        match from {
            From::Doubtful(_) => self.all.extend_with_new(page),
            _ => self.all.extend(page),
        }
        Ok(())
    }

    /// All that is still to come.
    async fn rest(mut self) -> Result<Page, BucketError> {
        for _ in 0..PAGES_MAX {
            let Some(from) = self.from.take() else { return Ok(self.all) };
            self.next(from).await?;
        }
        Err(BucketError::Invalid(format!("a listing of more than {PAGES_MAX} pages")))
    }

    /// The segment, or so many pages of it; and all behind it if that comes with its last page.
    async fn segment(mut self, pages_max: u32) -> Result<Listed, BucketError> {
        let mut asked = 0;
        while asked < pages_max
            && let Some(from) = self.from.take()
        {
            self.next(from).await?;
            asked += 1;
        }
        let Self { segment, mut all, from, is_last, .. } = self;
        let more = match from {
            // What stands behind the end is nobody else's to tell.
            None if is_last => None,
            None => {
                segment.cut(&mut all);
                Some(More { behind: segment.end, is_whole: true })
            }
            Some(_) => {
                let behind = boundaries::last_file(&all).or(segment.start);
                Some(More { behind, is_whole: false })
            }
        };
        Ok(Listed { all, asked, more })
    }
}

/// What a segment has.
struct Listed {
    all: Page,
    asked: u32,
    /// `None`: nothing.
    more: Option<More>,
}

/// Where more follows.
struct More {
    behind: Option<Key>,
    /// What was asked for has come.
    is_whole: bool,
}

/// How the ends of segments are known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Learnt,
    Guessed,
}

impl Bucket {
    /// All pages of a LIST as one; a request for each 1000 entries. One level that had many pages
    /// at its last listing is asked for in segments, side by side: then one request more for
    /// each segment in which more was made since than a page holds. The first time their ends are
    /// guessed from the names of the first page, where those are numbers or hashes: a few requests
    /// more that bring nothing.
    pub async fn list_all(&self, prefix: &str, delimiter: bool) -> Result<Page, BucketError> {
        match delimiter {
            true => self.list_level(prefix, &()).await,
            false => self.list_in_a_row(prefix, delimiter, &()).await,
        }
    }

    /// The same of one level, for a reader of its pages.
    pub async fn list_level(
        &self,
        prefix: &str,
        reader: &dyn PageReader,
    ) -> Result<Page, BucketError> {
        let all = match self.list_side_by_side(prefix, reader).await {
            Err(BucketError::Unsupported(_)) => self.list_in_a_row(prefix, true, reader).await?,
            all => all?,
        };
        self.boundaries.learn(prefix, &all, PAGE_ENTRIES_MAX.into());
        Ok(all)
    }

    async fn list_in_a_row(
        &self,
        prefix: &str,
        delimiter: bool,
        reader: &dyn PageReader,
    ) -> Result<Page, BucketError> {
        let pages = Pages::new(self, prefix, delimiter, Segment::default(), reader);
        pages.rest().await
    }

    async fn list_side_by_side(
        &self,
        prefix: &str,
        reader: &dyn PageReader,
    ) -> Result<Page, BucketError> {
        if let Some(ends) = self.boundaries.ends(prefix) {
            let segments = boundaries::segments(None, ends.iter().cloned());
            return self.list_segments(prefix, segments, Ends::Learnt, reader).await;
        }
        let mut first = Pages::new(self, prefix, true, Segment::default(), reader);
        first.next(From::Start).await?;
        let more = first.from.is_some() && self.lists_behind();
        let Some(ends) = more.then(|| guess::ends(&first.all)).flatten() else {
            return first.rest().await;
        };
        let segments = boundaries::segments(boundaries::last_file(&first.all), ends);
        let mut all = first.all;
        all.extend(self.list_segments(prefix, segments, Ends::Guessed, reader).await?);
        Ok(all)
    }

    /// One level, its segments side by side.
    async fn list_segments(
        &self,
        prefix: &str,
        segments: impl Iterator<Item = Segment> + Send,
        ends: Ends,
        reader: &dyn PageReader,
    ) -> Result<Page, BucketError> {
        let (mut at_once, at_once_max, pages_max) = match ends {
            Ends::Learnt => (LEARNT_AT_ONCE_MAX, LEARNT_AT_ONCE_MAX, PAGES_MAX),
            Ends::Guessed => (GUESSED_AT_FIRST, GUESSED_AT_ONCE_MAX, GUESSED_PAGES_MAX),
        };
        let mut segments = segments.peekable();
        let mut under_way = FuturesOrdered::new();
        let (mut all, mut wrong) = (Page::default(), 0);
        loop {
            let wanted = under_way.len() < at_once && segments.peek().is_some();
            tokio::select! {
                biased;
                () = reader.room(), if wanted => {
                    let asked = self.caller.clock.now();
                    let segment = segments.next().unwrap_or_default();
                    let pages = Pages::new(self, prefix, true, segment, &());
                    under_way.push_back(async move {
                        Ok((pages.segment(pages_max).await?, asked))
                    });
                }
                // Heard also while the reader makes the next ones wait.
                Some(listed) = under_way.next() => {
                    let (Listed { all: page, asked: pages, more }, asked) = listed?;
                    let is_right = pages == 1 && page.entries() >= GUESSED_ENTRIES_MIN;
                    reader.page(&page, asked);
                    all.extend(page);
                    let Some(More { behind, is_whole }) = more else { return Ok(all) };
                    wrong += usize::from(ends == Ends::Guessed && !is_right);
                    if !is_whole || wrong >= WRONG_GUESSES_MAX {
                        let rest = Segment { start: behind, end: None };
                        all.extend(Pages::new(self, prefix, true, rest, reader).rest().await?);
                        return Ok(all);
                    }
                    at_once = at_once_max;
                }
                else => return Ok(all),
            }
        }
    }
}
