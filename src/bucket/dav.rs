//! The driver for WebDAV exports (`http(s)://`): files are resources, directories collections.
//!
//! Owns the requests, and their order where WebDAV's own ways would destroy: PUT in place shows
//! half a file on some servers, MOVE replaces a directory by a file, DELETE takes all below. So a
//! file is PUT under `.trialfs/tmp/` and moved to its name; what is replaced or deleted is looked
//! at first; a directory is moved aside before it is deleted, and back if it was not empty after
//! all. Exclusive creates are MOVEs that may not overwrite, which on Apache is not safe. There is
//! no compare-and-swap and no metadata.
//!
//! Does not own how answers are read ([`propfind`]).

mod propfind;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use reqwest::header::{self, HeaderName};
use reqwest::{Client, Method, RequestBuilder, Response};
use url::Url;

use crate::bucket::error::BucketError;
use crate::bucket::http;
use crate::bucket::pages::{Snapshots, Token};
use crate::bucket::store::{
    Body, Capabilities, Condition, Metadata, ObjectInfo, Page, Store, Written,
};
use crate::clock::{Clock, ulid};
use crate::config::{Secret, StoreOptions};
use crate::types::{CONTROL_DIR, ETag, Key};

use propfind::Entry;

const DEPTH: HeaderName = HeaderName::from_static("depth");
const DESTINATION: HeaderName = HeaderName::from_static("destination");
const OVERWRITE: HeaderName = HeaderName::from_static("overwrite");
/// Directories that one listing goes through.
const DIRECTORIES_MAX: usize = 100_000;
/// Directories below one another that are made for one file.
const DEPTH_MAX: usize = 512;

struct WebDav {
    client: Client,
    /// With `/` at its end, without user or password.
    base: Url,
    /// The decoded path of `base`.
    base_path: String,
    login: Option<(String, String)>,
    clock: Arc<dyn Clock>,
    snapshots: Snapshots<Entry>,
    /// Apache looks whether a name is free and then takes it: of many at once two were seen to win.
    creates_race: AtomicBool,
}

impl std::fmt::Debug for WebDav {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebDav").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

/// Opens the driver for an export. User and password: the options', else the URL's. No request.
pub fn open(
    url: &str,
    options: &StoreOptions,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn Store>, BucketError> {
    let mut base = Url::parse(url)
        .map_err(|error| BucketError::Invalid(format!("the URL of the export: {error}")))?;
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let told = options.webdav_password.as_ref().map(Secret::reveal).unwrap_or_default();
    let login = match (&options.webdav_user, base.username()) {
        (Some(user), _) => Some((user.clone(), told.to_owned())),
        (None, "") => None,
        (None, user) => Some((decode(user), decode(base.password().unwrap_or_default()))),
    };
    if base.set_username("").and(base.set_password(None)).is_err() || !base.has_host() {
        return Err(BucketError::Invalid("the URL of the export names no host".to_owned()));
    }
    base.set_query(None);
    base.set_fragment(None);
    let path = format!("{}/", base.path().trim_end_matches('/'));
    base.set_path(&path);
    let client = http::client(options.ca_bundle.as_deref())?;
    let snapshots = Snapshots::new(|entry: &Entry| entry.key.as_str());
    let base_path = decode(&path);
    let creates_race = AtomicBool::new(false);
    Ok(Arc::new(WebDav { client, base, base_path, login, clock, snapshots, creates_race }))
}

/// How deep a PROPFIND looks.
#[derive(Clone, Copy)]
enum Depth {
    Itself,
    Children,
}

/// Whether a MOVE or COPY may replace.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Overwrite {
    Yes,
    No,
}

fn named(status: u16) -> BucketError {
    let text = format!("HTTP {status}");
    match status {
        401 | 403 => BucketError::Denied(format!("{text}; check the user and password")),
        404 | 409 => BucketError::NotFound,
        405 | 501 => BucketError::Unsupported("do this"),
        408 => BucketError::TimedOut(text),
        412 => BucketError::Precondition,
        414 => BucketError::KeyTooLong,
        507 => BucketError::NoSpace(text),
        423 | 429 | 500.. => BucketError::Unavailable(text),
        _ => BucketError::Invalid(text),
    }
}

impl WebDav {
    fn url(&self, key: &str) -> Result<Url, BucketError> {
        let path = format!("{}{}", self.base.path(), http::encode_path(key));
        let mut url = self.base.clone();
        url.set_path(&path);
        match url.path() == path && !key.contains("//") {
            true => Ok(url),
            false => Err(BucketError::Invalid(format!("no resource can be named {key:?}"))),
        }
    }

    fn request(&self, method: &str, key: &str) -> Result<RequestBuilder, BucketError> {
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| BucketError::Unsupported("do this"))?;
        let request = self.client.request(method, self.url(key)?);
        Ok(match &self.login {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        })
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, BucketError> {
        let response = request.send().await.map_err(http::transport_error)?;
        if http::text(response.headers(), "server").is_some_and(|name| name.starts_with("Apache")) {
            self.creates_race.store(true, Ordering::Relaxed);
        }
        match response.status().is_success() {
            true => Ok(response),
            false => Err(http::hold_off(named(response.status().as_u16()), response.headers())),
        }
    }

    async fn propfind(&self, key: &str, depth: Depth) -> Result<Vec<Entry>, BucketError> {
        let depth = match depth {
            Depth::Itself => "0",
            Depth::Children => "1",
        };
        let request = self.request("PROPFIND", key)?.header(DEPTH, depth);
        let request = request.header(header::CONTENT_TYPE, "application/xml").body(propfind::BODY);
        let body = http::collect(self.send(request).await?).await?;
        propfind::entries(&body, &self.base_path)
    }

    /// What stands at `path`, be it file or directory.
    async fn find(&self, path: &str) -> Result<Entry, BucketError> {
        let found = match self.propfind(path, Depth::Itself).await {
            // Some servers only redirect to the name with a slash.
            Err(BucketError::Invalid(_)) if !path.ends_with('/') => {
                self.propfind(&format!("{path}/"), Depth::Itself).await?
            }
            result => result?,
        };
        found.into_iter().next().ok_or(BucketError::NotFound)
    }

    /// What `key` names; a file is not found under a directory's key, nor the reverse.
    async fn object(&self, key: &Key) -> Result<Entry, BucketError> {
        let entry = self.find(key.as_str()).await?;
        match entry.is_collection() == key.is_marker() {
            true => Ok(entry),
            false => Err(BucketError::NotFound),
        }
    }

    /// Whether the directory `key` has entries; our own hidden one counts.
    async fn is_empty(&self, key: &str) -> Result<bool, BucketError> {
        let found = self.propfind(key, Depth::Children).await?;
        Ok(found.iter().all(|entry| entry.key == key))
    }

    /// Refuses to replace a file by a directory, the reverse, or a directory that is not empty.
    async fn replaceable(&self, to: &Key) -> Result<(), BucketError> {
        let path = to.as_str().trim_end_matches('/');
        match self.find(path).await {
            Err(BucketError::NotFound) => Ok(()),
            Err(error) => Err(error),
            Ok(entry) if entry.is_collection() != to.is_marker() => Err(BucketError::WrongKind),
            Ok(entry) if !entry.is_collection() || self.is_empty(&entry.key).await? => Ok(()),
            Ok(_) => Err(BucketError::NotEmpty),
        }
    }

    async fn transfer(
        &self,
        method: &str,
        from: &str,
        to: &str,
        overwrite: Overwrite,
    ) -> Result<(), BucketError> {
        let request = self.request(method, from)?.header(DESTINATION, self.url(to)?.as_str());
        let overwrite = if overwrite == Overwrite::Yes { "T" } else { "F" };
        let depth = if method == "COPY" { "0" } else { "infinity" };
        let request = request.header(OVERWRITE, overwrite).header(DEPTH, depth);
        self.send(request).await.map(drop)
    }

    /// [`Self::transfer`], making the directories above `to` if they turn out to be missing, which
    /// servers say by 403, 404, 409 or even 500.
    async fn transfer_into(
        &self,
        method: &str,
        from: &str,
        to: &str,
        overwrite: Overwrite,
    ) -> Result<(), BucketError> {
        use BucketError::{Denied, NotFound, Unavailable, Unreachable};
        let failed = match self.transfer(method, from, to, overwrite).await {
            Err(error @ (NotFound | Denied(_) | Unavailable(_) | Unreachable(_))) => error,
            result => return result,
        };
        if self.find(from).await.is_err() {
            return Err(failed);
        }
        match self.make_parents(to).await {
            Ok(()) => self.transfer(method, from, to, overwrite).await,
            Err(BucketError::WrongKind) => Err(BucketError::WrongKind),
            Err(_) => Err(failed),
        }
    }

    /// MKCOL; `false` if something is there already.
    async fn make_one(&self, dir: &str) -> Result<bool, BucketError> {
        match self.send(self.request("MKCOL", dir)?).await {
            Ok(_) => Ok(true),
            Err(BucketError::Unsupported(_)) => Ok(false),
            // Of two at once Apache tells one that it may not.
            Err(error @ BucketError::Denied(_)) => match self.find(dir).await {
                Ok(_) => Ok(false),
                Err(_) => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Makes the directories above `path`, from the lowest missing one that can be made.
    async fn make_parents(&self, path: &str) -> Result<(), BucketError> {
        let path = path.trim_end_matches('/');
        let mut above: Vec<&str> =
            path.match_indices('/').map(|(end, _)| &path[..=end]).take(DEPTH_MAX).collect();
        let mut missing = Vec::new();
        while let Some(dir) = above.pop() {
            match self.make_one(dir).await {
                Err(BucketError::NotFound) => missing.push(dir),
                Ok(false) if !self.find(dir.trim_end_matches('/')).await?.is_collection() => {
                    return Err(BucketError::WrongKind);
                }
                Ok(_) => break,
                Err(error) => return Err(error),
            }
        }
        for dir in missing.into_iter().rev() {
            self.make_one(dir).await?;
        }
        Ok(())
    }

    fn tmp_path(&self) -> String {
        format!("{CONTROL_DIR}/tmp/{}", ulid(&*self.clock))
    }

    /// Puts a body under a temporary name and tells its ETag, which a MOVE keeps.
    async fn stage(&self, path: &str, body: Bytes) -> Result<ETag, BucketError> {
        let put = || Ok(self.send(self.request("PUT", path)?.body(body.clone())));
        let response = match put()?.await {
            Err(BucketError::NotFound | BucketError::Denied(_)) => {
                self.make_parents(path).await?;
                put()?.await?
            }
            result => result?,
        };
        match http::text(response.headers(), "etag") {
            Some(etag) => Ok(propfind::etag(etag)),
            None => Ok(self.find(path).await?.etag),
        }
    }

    /// Moves what was staged to its name, or takes it away again.
    async fn publish(
        &self,
        staged: &str,
        to: &Key,
        condition: &Condition,
    ) -> Result<(), BucketError> {
        let overwrite = match condition {
            Condition::Always => Overwrite::Yes,
            _ => Overwrite::No,
        };
        let moved = self.transfer_into("MOVE", staged, to.as_str(), overwrite).await;
        if moved.is_err() {
            self.discard(staged).await;
        }
        moved
    }

    /// Best effort: what stays is hidden.
    async fn discard(&self, staged: &str) {
        if let Ok(request) = self.request("DELETE", staged) {
            let _ = self.send(request).await;
        }
    }

    /// Makes a directory. Not every server's MKCOL tells whether one was there: where that matters
    /// it is made aside and moved to its name.
    async fn make_marker(&self, key: &Key, condition: &Condition) -> Result<Written, BucketError> {
        let dir = key.as_str();
        if *condition == Condition::IfAbsent {
            let aside = format!("{}/", self.tmp_path());
            self.make_parents(&aside).await?;
            self.make_one(&aside).await?;
            self.publish(&aside, key, condition).await?;
        } else {
            match self.make_one(dir).await {
                Err(BucketError::NotFound) => {
                    self.make_parents(dir).await?;
                    self.make_one(dir).await?;
                }
                made => drop(made?),
            }
        }
        let entry = self.find(dir.trim_end_matches('/')).await?;
        if entry.is_collection() {
            Ok(Written { etag: entry.etag })
        } else {
            Err(BucketError::WrongKind)
        }
    }

    /// Removes an empty directory. WebDAV's DELETE takes all that is below, so it is moved aside
    /// first, where nobody adds to it any more, and looked at again.
    async fn remove_directory(&self, dir: &str) -> Result<(), BucketError> {
        if !self.is_empty(dir).await? {
            return Err(BucketError::NotEmpty);
        }
        let aside = format!("{}/", self.tmp_path());
        self.transfer_into("MOVE", dir, &aside, Overwrite::No).await?;
        if self.is_empty(&aside).await? {
            return self.send(self.request("DELETE", &aside)?).await.map(drop);
        }
        self.transfer("MOVE", &aside, dir, Overwrite::No).await?;
        Err(BucketError::NotEmpty)
    }

    /// Everything in the directory `prefix`, sorted; nothing if there is none.
    async fn children(&self, prefix: &str) -> Result<Vec<Entry>, BucketError> {
        let mut found = match self.propfind(prefix, Depth::Children).await {
            Err(BucketError::NotFound) => return Ok(Vec::new()),
            result => result?,
        };
        let hidden = format!("{CONTROL_DIR}/tmp/");
        found.retain(|entry| {
            entry.key.starts_with(prefix)
                && !entry.key.is_empty()
                && !entry.key.starts_with(&hidden)
        });
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    /// Everything below `prefix`, a request for each directory.
    async fn descendants(&self, prefix: &str) -> Result<Vec<Entry>, BucketError> {
        let mut all = Vec::new();
        let mut todo = vec![prefix.to_owned()];
        for _ in 0..DIRECTORIES_MAX {
            let Some(dir) = todo.pop() else {
                all.sort_unstable_by(|a: &Entry, b| a.key.cmp(&b.key));
                return Ok(all);
            };
            for entry in self.children(&dir).await? {
                if entry.key == dir && dir != prefix {
                    continue; // its parent told of it
                }
                if entry.is_collection() && entry.key != dir {
                    todo.push(entry.key.clone());
                }
                all.push(entry);
            }
        }
        Err(BucketError::Invalid(format!("more than {DIRECTORIES_MAX} directories")))
    }
}

#[async_trait]
impl Store for WebDav {
    async fn head(&self, key: &Key) -> Result<ObjectInfo, BucketError> {
        Ok(self.object(key).await?.info())
    }

    /// If-Match is not sent: Apache refuses it for two seconds after a PUT. The answer's ETag is
    /// that of its body, and is compared by [`crate::bucket::Bucket`].
    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        _: Option<&ETag>,
    ) -> Result<(ObjectInfo, Body), BucketError> {
        let request = self.request("GET", key.as_str())?;
        let request = request.header(header::RANGE, http::range_value(&range));
        let response = self.send(request).await?;
        let headers = response.headers();
        let (size, etag) = (http::total_size(headers), http::text(headers, "etag"));
        let (Some(size), Some(etag)) = (size, etag.map(propfind::etag)) else {
            return Err(BucketError::Invalid("an answer without size or ETag".to_owned()));
        };
        http::check_range(headers, &range, size)?;
        let info = propfind::info(size, etag, http::modified(headers));
        Ok((info, http::body(response)))
    }

    async fn put(
        &self,
        key: &Key,
        body: Bytes,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        if !metadata.is_empty() {
            return Err(BucketError::Unsupported("keep metadata"));
        }
        if matches!(condition, Condition::IfMatch(_)) {
            return Err(BucketError::Unsupported("replace under a condition"));
        }
        if key.is_marker() {
            return self.make_marker(key, condition).await;
        }
        let staged = self.tmp_path();
        let look = async {
            match condition {
                Condition::Always => self.replaceable(key).await,
                _ => Ok(()),
            }
        };
        let (look, etag) = tokio::join!(look, self.stage(&staged, body));
        if look.is_err() {
            self.discard(&staged).await;
        }
        look?;
        let etag = etag?;
        self.publish(&staged, key, condition).await?;
        Ok(Written { etag })
    }

    async fn delete(&self, key: &Key, if_match: Option<&ETag>) -> Result<(), BucketError> {
        let entry = self.object(key).await?;
        if if_match.is_some_and(|etag| *etag != entry.etag) {
            return Err(BucketError::Precondition);
        }
        match key.is_marker() {
            true => self.remove_directory(key.as_str()).await,
            false => self.send(self.request("DELETE", key.as_str())?).await.map(drop),
        }
    }

    async fn list(
        &self,
        prefix: &str,
        delimiter: bool,
        page: Option<&str>,
        max: u16,
    ) -> Result<Page, BucketError> {
        let token = page.and_then(Token::parse);
        let entries = match self.snapshots.kept(token.as_ref()) {
            Some(entries) => entries,
            None if delimiter => Arc::new(self.children(prefix).await?),
            None => Arc::new(self.descendants(prefix).await?),
        };
        let (range, next) = self.snapshots.cut(&entries, token.as_ref(), max, &*self.clock);
        let mut page = Page { next, ..Page::default() };
        for entry in &entries[range] {
            match delimiter && entry.is_collection() && entry.key != prefix {
                true => page.prefixes.push(entry.key.clone()),
                false => page.objects.push(entry.listed()),
            }
        }
        Ok(page)
    }

    async fn copy(
        &self,
        from: &Key,
        from_etag: Option<&ETag>,
        to: &Key,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        if !metadata.is_empty() {
            return Err(BucketError::Unsupported("keep metadata"));
        }
        if matches!(condition, Condition::IfMatch(_)) {
            return Err(BucketError::Unsupported("replace under a condition"));
        }
        let source = self.object(from).await?;
        if from_etag.is_some_and(|etag| *etag != source.etag) {
            return Err(BucketError::Precondition);
        }
        if *condition == Condition::Always {
            self.replaceable(to).await?;
        }
        let staged = self.tmp_path();
        self.transfer_into("COPY", from.as_str(), &staged, Overwrite::No).await?;
        let etag = self.find(&staged).await?.etag;
        self.publish(&staged, to, condition).await?;
        Ok(Written { etag })
    }

    async fn rename(&self, from: &Key, to: &Key, condition: &Condition) -> Result<(), BucketError> {
        if from.is_marker() != to.is_marker() {
            return Err(BucketError::WrongKind);
        }
        let overwrite = match condition {
            Condition::Always => Overwrite::Yes,
            Condition::IfAbsent => Overwrite::No,
            Condition::IfMatch(_) => return Err(BucketError::Unsupported("compare and rename")),
        };
        self.object(from).await?;
        if overwrite == Overwrite::Yes {
            self.replaceable(to).await?;
        }
        self.transfer_into("MOVE", from.as_str(), to.as_str(), overwrite).await
    }

    async fn create_multipart(&self, _: &Key, _: &Metadata) -> Result<String, BucketError> {
        Err(BucketError::Unsupported("take a file in parts"))
    }

    async fn upload_part(&self, _: &Key, _: &str, _: u32, _: Bytes) -> Result<String, BucketError> {
        Err(BucketError::Unsupported("take a file in parts"))
    }

    async fn upload_part_copy(
        &self,
        _: &Key,
        _: &str,
        _: u32,
        _: &Key,
        _: &ETag,
        _: Range<u64>,
    ) -> Result<String, BucketError> {
        Err(BucketError::Unsupported("take a file in parts"))
    }

    async fn complete_multipart(
        &self,
        _: &Key,
        _: &str,
        _: &[String],
        _: &Condition,
    ) -> Result<Written, BucketError> {
        Err(BucketError::Unsupported("take a file in parts"))
    }

    async fn abort_multipart(&self, _: &Key, _: &str) -> Result<(), BucketError> {
        Err(BucketError::NotFound)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            create_if_absent: !self.creates_race.load(Ordering::Relaxed),
            replace_if_match: false,
            delete_if_match: false,
            multipart: false,
            part_copy: false,
            copy_condition: true,
            tells_crc: false,
            ranged_reads: true,
            metadata: false,
            markers: true,
            real_directories: true,
            rename_file: true,
            rename_directory: true,
            create_sees_directories: false,
            list_after_write: true,
            put_max: 1 << 42,
            part_min: 1,
            parts_max: 1,
        }
    }
}
