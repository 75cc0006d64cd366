//! What every store must do, asked through [`Bucket`]: one suite for all of them. What a store
//! can't do it says in its capabilities, and then the suite does not ask for it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use trialfs::bucket::{Bucket, BucketError, Condition, Metadata};
use trialfs::types::{ETag, Key};

/// Names that programs use, spaces and signs included; every one must come back as it was.
const NAMES: [&str; 12] = [
    "plain.txt",
    "with space",
    "plus+equals=comma,",
    "[brackets]{braces}",
    "percent%41%",
    "query?hash#",
    "ünïcödé-日本",
    "quote'\"<>&",
    "-dash",
    ".hidden",
    "a..b...",
    "semi;colon:at@",
];

pub struct Suite {
    pub bucket: Arc<Bucket>,
    /// Under which everything of this run lives; ends in `/` or is empty.
    pub root: String,
    pub pages: Pages,
}

/// What the pages of one listing have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    Nothing,
    /// Every page has all prefixes.
    Prefixes,
}

impl Suite {
    pub async fn run(&self) {
        self.objects_come_back_whole().await;
        self.absence_is_told().await;
        self.ranges_are_cut_at_the_end().await;
        self.names_survive().await;
        self.listings_show_one_level_or_all().await;
        self.listings_go_on_where_they_stopped().await;
        self.listings_begin_within_a_name().await;
        self.a_full_page_that_ends_with_a_marker_is_not_the_last().await;
        self.metadata_is_kept().await;
        self.conditions_hold().await;
        self.one_of_many_creators_wins().await;
        self.uploads_show_nothing_before_they_are_complete().await;
        self.an_empty_part_makes_an_empty_object().await;
        self.no_marker_is_made_by_parts().await;
        self.uploads_to_one_key_do_not_disturb_each_other().await;
        self.an_upload_is_completed_once().await;
        self.completions_honour_conditions().await;
        self.parts_are_copied().await;
        self.copies_are_whole().await;
        self.markers_keep_directories().await;
        self.renames_move_whole().await;
        self.clean().await;
    }

    fn key(&self, name: &str) -> Key {
        Key::new(format!("{}{name}", self.root))
    }

    async fn put(&self, name: &str, body: &[u8]) -> ETag {
        self.try_put(name, body, &Condition::Always).await.unwrap()
    }

    async fn try_put(
        &self,
        name: &str,
        body: &[u8],
        condition: &Condition,
    ) -> Result<ETag, BucketError> {
        let body = Bytes::copy_from_slice(body);
        let written = self.bucket.put(&self.key(name), body, condition, &Metadata::new()).await?;
        Ok(written.etag)
    }

    async fn read(&self, name: &str) -> Result<Bytes, BucketError> {
        let size = self.bucket.head(&self.key(name)).await?.size;
        if size == 0 {
            return Ok(Bytes::new());
        }
        Ok(self.bucket.get_bytes(&self.key(name), 0..size, None).await?.1)
    }

    async fn names(&self, dir: &str) -> (Vec<String>, Vec<String>) {
        let page = self.bucket.list_all(&format!("{}{dir}", self.root), true).await.unwrap();
        let cut = |key: &str| key[self.root.len() + dir.len()..].to_owned();
        let mut files: Vec<_> = page.objects.iter().map(|o| cut(o.key.as_str())).collect();
        let mut dirs: Vec<_> = page.prefixes.iter().map(|p| cut(p)).collect();
        files.retain(|name| !name.is_empty()); // the directory's own marker
        files.sort();
        dirs.sort();
        (files, dirs)
    }

    async fn objects_come_back_whole(&self) {
        for size in [0, 1, 4096, 1_000_003] {
            let body: Vec<u8> = (0..size).map(|i: usize| (i * 7 + i / 251) as u8).collect();
            let etag = self.put("whole", &body).await;
            let info = self.bucket.head(&self.key("whole")).await.unwrap();
            assert_eq!((info.size, &info.etag), (size as u64, &etag));
            let page = self.bucket.list_all(&self.root, true).await.unwrap();
            let listed = page.objects.iter().find(|o| o.key == self.key("whole")).unwrap();
            assert_eq!((listed.size, &listed.etag), (size as u64, &etag), "a LIST says the same");
            assert!(self.read("whole").await.unwrap() == body, "{size} bytes differ");
        }
        let before = self.put("whole", b"one").await;
        let after = self.put("whole", b"two").await;
        assert_ne!(before, after, "another content is another version");
        self.bucket.delete(&self.key("whole"), None).await.unwrap();
    }

    async fn absence_is_told(&self) {
        let missing = self.key("missing");
        assert_eq!(self.bucket.head(&missing).await, Err(BucketError::NotFound));
        let got = self.bucket.get_bytes(&missing, 0..1, None).await;
        assert_eq!(got.unwrap_err(), BucketError::NotFound);
        let deleted = self.bucket.delete(&missing, None).await;
        assert!(matches!(deleted, Ok(()) | Err(BucketError::NotFound)), "{deleted:?}");
        assert_eq!(self.names("nowhere/").await, (vec![], vec![]));
        let inside = self.bucket.head(&self.key("no/such/dir/file")).await;
        assert_eq!(inside, Err(BucketError::NotFound));
    }

    async fn ranges_are_cut_at_the_end(&self) {
        let etag = self.put("ranged", b"0123456789").await;
        let key = self.key("ranged");
        for (range, expected) in
            [(0..10, "0123456789"), (2..5, "234"), (8..100, "89"), (9..10, "9"), (0..1, "0")]
        {
            let got = self.bucket.get_bytes(&key, range.clone(), Some(&etag)).await;
            let (info, bytes) = got.unwrap();
            assert_eq!((bytes, info.size), (Bytes::from(expected), 10), "{range:?}");
            assert_eq!(info.etag, etag);
        }
        let later = self.put("ranged", b"abcdefghij").await;
        let stale = self.bucket.get_bytes(&key, 0..10, Some(&etag)).await;
        assert_eq!(stale.unwrap_err(), BucketError::Precondition, "a read never changes version");
        assert!(self.bucket.get_bytes(&key, 0..10, Some(&later)).await.is_ok());
        self.bucket.delete(&key, None).await.unwrap();
    }

    async fn names_survive(&self) {
        for name in NAMES {
            self.put(&format!("names/{name}"), name.as_bytes()).await;
        }
        let mut expected = NAMES.map(str::to_owned).to_vec();
        expected.sort();
        assert_eq!(self.names("names/").await, (expected, vec![]));
        for name in NAMES {
            assert_eq!(self.read(&format!("names/{name}")).await.unwrap(), name.as_bytes());
            self.bucket.delete(&self.key(&format!("names/{name}")), None).await.unwrap();
        }
    }

    async fn listings_show_one_level_or_all(&self) {
        for name in ["tree/a", "tree/b/c", "tree/b/d/e", "treetop"] {
            self.put(name, b"x").await;
        }
        let (files, dirs) = self.names("tree/").await;
        assert_eq!((files, dirs), (vec!["a".to_owned()], vec!["b/".to_owned()]));
        let all = self.bucket.list_all(&format!("{}tree/", self.root), false).await.unwrap();
        let mut keys: Vec<_> = all.objects.iter().map(|o| o.key.clone()).collect();
        keys.retain(|key| !key.is_marker());
        keys.sort();
        assert_eq!(keys, [self.key("tree/a"), self.key("tree/b/c"), self.key("tree/b/d/e")]);
        assert!(all.prefixes.is_empty());
    }

    async fn listings_go_on_where_they_stopped(&self) {
        let mut expected = Vec::new();
        for i in 0..7 {
            self.put(&format!("pages/{i}"), b"x").await;
            self.put(&format!("pages/dir{i}/x"), b"x").await;
            expected.extend([format!("{i}"), format!("dir{i}/")]);
        }
        let prefix = format!("{}pages/", self.root);
        let (mut found, mut next) = (Vec::new(), None);
        for _ in 0..20 {
            let page = self.bucket.list(&prefix, true, next.as_deref(), 3).await.unwrap();
            assert!(page.objects.len() + page.prefixes.len() <= 14);
            found.extend(page.objects.iter().map(|o| o.key.as_str()[prefix.len()..].to_owned()));
            found.extend(page.prefixes.iter().map(|p| p[prefix.len()..].to_owned()));
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        found.retain(|name| !name.is_empty());
        found.sort();
        expected.sort();
        if self.pages == Pages::Prefixes {
            found.dedup();
        }
        assert_eq!(found, expected, "nothing twice, nothing left out");
        let behind = self.bucket.list_behind(&prefix, true, &self.key("pages/3"), 1000).await;
        let Ok(page) = behind else {
            assert!(matches!(behind, Err(BucketError::Unsupported(_))), "{behind:?}");
            return;
        };
        let files: Vec<_> = page.objects.iter().map(|o| o.key.clone()).collect();
        assert_eq!(files, ["4", "5", "6"].map(|name| self.key(&format!("pages/{name}"))));
        assert_eq!(page.prefixes.len(), 7, "those that stand behind the object");
    }

    /// SeaweedFS says of such a page that it is the last: an unfinished rename or a cleaning up
    /// would take the rest for gone.
    async fn a_full_page_that_ends_with_a_marker_is_not_the_last(&self) {
        let none = self.bucket.list_behind(&self.root, false, &self.key("full/a"), 1).await;
        if none.is_err() || !self.bucket.capabilities().markers {
            return;
        }
        let files = (0..998).map(|i| format!("full/a{i:04}"));
        let names: Vec<String> =
            files.chain(["full/m/x".to_owned(), "full/z".to_owned()]).collect();
        self.put("full/m/", b"").await;
        futures::stream::iter(&names)
            .for_each_concurrent(16, |name| async { drop(self.put(name, b"x").await) })
            .await;
        let prefix = format!("{}full/", self.root);
        let page = self.bucket.list_all(&prefix, false).await.unwrap();
        let mut found: Vec<String> =
            page.objects.iter().map(|o| o.key.as_str().to_owned()).collect();
        found.retain(|key| !key.ends_with('/'));
        found.sort();
        let expected: Vec<String> = names.iter().map(|n| self.key(n).as_str().to_owned()).collect();
        assert_eq!(found, expected);
    }

    /// As the records of one checkpoint directory are asked for.
    async fn listings_begin_within_a_name(&self) {
        if !self.bucket.capabilities().multipart {
            return;
        }
        for name in ["w/x.1", "w/x.2", "w/xy.3", "w/y"] {
            self.put(name, b"body").await;
        }
        let prefix = format!("{}w/x.", self.root);
        let found = self.bucket.list_all(&prefix, false).await.unwrap().objects;
        let keys: Vec<_> = found.into_iter().map(|object| object.key).collect();
        assert_eq!(keys, [self.key("w/x.1"), self.key("w/x.2")]);
    }

    async fn metadata_is_kept(&self) {
        if !self.bucket.capabilities().metadata {
            return;
        }
        let metadata: Metadata = [("trialfs-kind", "symlink"), ("other", "x = y; z")]
            .map(|(k, v)| (k.into(), v.into()))
            .into();
        let key = self.key("with-metadata");
        let body = Bytes::from_static(b"target");
        self.bucket.put(&key, body, &Condition::Always, &metadata).await.unwrap();
        assert_eq!(self.bucket.head(&key).await.unwrap().metadata, metadata);
        let (info, _) = self.bucket.get_bytes(&key, 0..100, None).await.unwrap();
        assert_eq!(info.metadata, metadata);
        self.put("with-metadata", b"plain").await;
        assert_eq!(self.bucket.head(&key).await.unwrap().metadata, Metadata::new());
    }

    async fn conditions_hold(&self) {
        let can = self.bucket.capabilities();
        let refused = Err(BucketError::Precondition);
        let key = self.key("conditional");
        if can.create_if_absent {
            self.try_put("conditional", b"1", &Condition::IfAbsent).await.unwrap();
            assert_eq!(self.try_put("conditional", b"2", &Condition::IfAbsent).await, refused);
            assert_eq!(self.read("conditional").await.unwrap(), "1");
        }
        let first = self.put("conditional", b"first").await;
        if can.replace_if_match {
            let replace = Condition::IfMatch(first.clone());
            let second = self.try_put("conditional", b"second", &replace).await.unwrap();
            assert_eq!(self.try_put("conditional", b"third", &replace).await, refused);
            assert_eq!(self.read("conditional").await.unwrap(), "second");
            let nowhere = self.try_put("not-there", b"x", &Condition::IfMatch(second)).await;
            assert!(matches!(nowhere, Err(BucketError::Precondition | BucketError::NotFound)));
        }
        let last = self.put("conditional", b"the last").await;
        if can.delete_if_match {
            assert_eq!(
                self.bucket.delete(&key, Some(&first)).await,
                Err(BucketError::Precondition)
            );
            assert_eq!(self.read("conditional").await.unwrap(), "the last");
        }
        self.bucket.delete(&key, can.delete_if_match.then_some(&last)).await.unwrap();
        assert_eq!(self.bucket.head(&key).await, Err(BucketError::NotFound));
    }

    async fn one_of_many_creators_wins(&self) {
        if !self.bucket.capabilities().create_if_absent {
            return;
        }
        for round in 0..3 {
            let name = format!("race-{round}");
            let bodies: Vec<_> = (0..8).map(|i| format!("writer {i}")).collect();
            let races = bodies
                .iter()
                .map(|body| self.try_put(&name, body.as_bytes(), &Condition::IfAbsent));
            let results = futures::future::join_all(races).await;
            let winners: Vec<_> = (0..8).filter(|i| results[*i].is_ok()).collect();
            assert_eq!(winners.len(), 1, "{results:?}");
            assert_eq!(self.read(&name).await.unwrap(), bodies[winners[0]]);
        }
    }

    async fn upload(&self, name: &str, parts: &[Bytes]) -> (String, Vec<String>) {
        let key = self.key(name);
        let upload = self.bucket.create_multipart(&key, &Metadata::new()).await.unwrap();
        let mut etags = Vec::new();
        for (number, part) in (1..).zip(parts) {
            let part = self.bucket.upload_part(&key, &upload, number, part.clone()).await;
            etags.push(part.unwrap());
        }
        (upload, etags)
    }

    fn part(&self, fill: u8) -> Bytes {
        Bytes::from(vec![fill; self.bucket.capabilities().part_min.max(100_000) as usize])
    }

    async fn uploads_show_nothing_before_they_are_complete(&self) {
        if !self.bucket.capabilities().multipart {
            return;
        }
        let (key, parts) = (self.key("up/loaded"), [self.part(1), Bytes::from_static(b"tail")]);
        let (upload, etags) = self.upload("up/loaded", &parts).await;
        assert_eq!(self.bucket.head(&key).await, Err(BucketError::NotFound));
        assert_eq!(self.names("up/").await.0, Vec::<String>::new());
        let complete = self.bucket.complete_multipart(&key, &upload, &etags, &Condition::Always);
        let written = complete.await.unwrap();
        let info = self.bucket.head(&key).await.unwrap();
        assert_eq!(info.size, parts[0].len() as u64 + 4);
        // rclone's S3 gives the completed object another ETag than it told.
        let told = !self.bucket.capabilities().replace_if_match || info.etag == written.etag;
        assert!(told, "{info:?} {written:?}");
        assert_eq!(self.read("up/loaded").await.unwrap(), parts.concat());
        if self.bucket.capabilities().metadata {
            let again = self.bucket.complete_multipart(&key, &upload, &etags, &Condition::Always);
            assert_eq!(again.await.unwrap().etag, info.etag, "a completed upload is complete");
        }
        let (upload, etags) = self.upload("up/aborted", &parts[1..]).await;
        let aborted = self.key("up/aborted");
        self.bucket.abort_multipart(&aborted, &upload).await.unwrap();
        self.bucket.abort_multipart(&aborted, &upload).await.unwrap();
        let late = self.bucket.complete_multipart(&aborted, &upload, &etags, &Condition::Always);
        assert!(late.await.is_err(), "an aborted upload is never completed");
        assert_eq!(self.bucket.head(&aborted).await, Err(BucketError::NotFound));
    }

    async fn an_empty_part_makes_an_empty_object(&self) {
        let can = self.bucket.capabilities();
        if !can.multipart {
            return;
        }
        let condition = match can.create_if_absent {
            true => Condition::IfAbsent,
            false => Condition::Always,
        };
        for (parts, size) in [(vec![Bytes::new()], 0), (vec![Bytes::from_static(b"x")], 1)] {
            let name = format!("up/small-{size}");
            let (upload, etags) = self.upload(&name, &parts).await;
            let key = self.key(&name);
            assert_eq!(self.bucket.head(&key).await, Err(BucketError::NotFound));
            let complete = self.bucket.complete_multipart(&key, &upload, &etags, &condition);
            complete.await.unwrap();
            assert_eq!(self.bucket.head(&key).await.unwrap().size, size);
            assert_eq!(self.read(&name).await.unwrap(), parts.concat());
        }
    }

    /// SeaweedFS makes `dir/dir` of an upload at `dir/`.
    async fn no_marker_is_made_by_parts(&self) {
        if !self.bucket.capabilities().multipart {
            return;
        }
        let refused = self.bucket.create_multipart(&self.key("marked/"), &Metadata::new()).await;
        assert_eq!(refused, Err(BucketError::WrongKind));
    }

    async fn uploads_to_one_key_do_not_disturb_each_other(&self) {
        if !self.bucket.capabilities().multipart {
            return;
        }
        let key = self.key("up/shared");
        let (one, two) = ([self.part(5), self.part(6)], [self.part(7), self.part(8)]);
        let begun = tokio::join!(self.upload("up/shared", &one), self.upload("up/shared", &two));
        let ((first, first_parts), (second, second_parts)) = begun;
        self.put("up/shared", b"and a third who writes it whole").await;
        let always = &Condition::Always;
        let complete = self.bucket.complete_multipart(&key, &second, &second_parts, always);
        complete.await.unwrap();
        assert!(self.read("up/shared").await.unwrap() == two.concat());
        let complete = self.bucket.complete_multipart(&key, &first, &first_parts, always);
        complete.await.unwrap();
        assert!(self.read("up/shared").await.unwrap() == one.concat());
    }

    async fn an_upload_is_completed_once(&self) {
        if !self.bucket.capabilities().multipart {
            return;
        }
        let (key, always) = (self.key("up/once"), &Condition::Always);
        let (upload, parts) = self.upload("up/once", &[self.part(9)]).await;
        self.bucket.complete_multipart(&key, &upload, &parts, always).await.unwrap();
        self.bucket.delete(&key, None).await.unwrap();
        let again = self.bucket.complete_multipart(&key, &upload, &parts, always).await;
        assert_eq!(again, Err(BucketError::NotFound), "what was deleted is not brought back");
        assert_eq!(self.bucket.head(&key).await, Err(BucketError::NotFound));
        self.put("up/once", b"newer").await;
        let again = self.bucket.complete_multipart(&key, &upload, &parts, always).await;
        assert_eq!(again, Err(BucketError::NotFound), "nor is what was replaced");
        assert_eq!(self.read("up/once").await.unwrap(), "newer");
    }

    async fn completions_honour_conditions(&self) {
        let can = self.bucket.capabilities();
        if !can.multipart || !can.create_if_absent {
            return;
        }
        let key = self.key("up/conditional");
        let there = self.put("up/conditional", b"already here").await;
        let (upload, etags) = self.upload("up/conditional", &[Bytes::from_static(b"late")]).await;
        let create = self.bucket.complete_multipart(&key, &upload, &etags, &Condition::IfAbsent);
        assert_eq!(create.await, Err(BucketError::Precondition));
        assert_eq!(self.read("up/conditional").await.unwrap(), "already here");
        if !can.replace_if_match {
            return;
        }
        let stale = Condition::IfMatch(ETag("00000000000000000000000000000000".to_owned()));
        let (upload, etags) = self.upload("up/conditional", &[Bytes::from_static(b"next")]).await;
        let replace = self.bucket.complete_multipart(&key, &upload, &etags, &stale).await;
        assert_eq!(replace, Err(BucketError::Precondition));
        let (upload, etags) = self.upload("up/conditional", &[Bytes::from_static(b"next")]).await;
        let right = Condition::IfMatch(there);
        self.bucket.complete_multipart(&key, &upload, &etags, &right).await.unwrap();
        assert_eq!(self.read("up/conditional").await.unwrap(), "next");
    }

    async fn parts_are_copied(&self) {
        if !self.bucket.capabilities().part_copy {
            return;
        }
        let body = [self.part(3), Bytes::from_static(b"0123456789")].concat();
        let (etag, from) = (self.put("source", &body).await, self.key("source"));
        let key = self.key("grown");
        let upload = self.bucket.create_multipart(&key, &Metadata::new()).await.unwrap();
        let range = 10..body.len() as u64;
        let stale = ETag("00000000000000000000000000000000".to_owned());
        let wrong =
            self.bucket.upload_part_copy(&key, &upload, 1, &from, &stale, range.clone()).await;
        assert_eq!(wrong, Err(BucketError::Precondition), "a part of the version meant, or none");
        let first = self.bucket.upload_part_copy(&key, &upload, 1, &from, &etag, range).await;
        let tail = self.bucket.upload_part(&key, &upload, 2, Bytes::from_static(b"tail")).await;
        let parts = [first.unwrap(), tail.unwrap()];
        self.bucket.complete_multipart(&key, &upload, &parts, &Condition::Always).await.unwrap();
        assert_eq!(self.read("grown").await.unwrap(), [&body[10..], b"tail"].concat());
    }

    async fn copies_are_whole(&self) {
        let can = self.bucket.capabilities();
        let etag = self.put("from", b"the source").await;
        let (from, to) = (self.key("from"), self.key("copies/to"));
        let metadata: Metadata = match can.metadata {
            true => [("mark".to_owned(), "new".to_owned())].into(),
            false => Metadata::new(),
        };
        let copy = self.bucket.copy(&from, Some(&etag), &to, &Condition::Always, &metadata).await;
        if matches!(copy, Err(BucketError::Unsupported(_))) {
            return;
        }
        assert_eq!(self.read("copies/to").await.unwrap(), "the source");
        let info = self.bucket.head(&to).await.unwrap();
        assert_eq!(info.etag, copy.unwrap().etag);
        assert_eq!(info.metadata.get("mark"), metadata.get("mark"));
        let stale = ETag("00000000000000000000000000000000".to_owned());
        let stale = self.bucket.copy(&from, Some(&stale), &to, &Condition::Always, &metadata).await;
        assert_eq!(stale, Err(BucketError::Precondition));
        if can.create_if_absent && (can.copy_condition || can.part_copy) {
            let onto = self.bucket.copy(&from, Some(&etag), &to, &Condition::IfAbsent, &metadata);
            assert_eq!(onto.await, Err(BucketError::Precondition));
            let fresh = self.key("copies/fresh");
            let copy =
                self.bucket.copy(&from, Some(&etag), &fresh, &Condition::IfAbsent, &metadata);
            copy.await.unwrap();
            assert_eq!(self.read("copies/fresh").await.unwrap(), "the source");
        }
        let gone = self.key("not-there");
        let gone = self.bucket.copy(&gone, None, &to, &Condition::Always, &metadata).await;
        assert_eq!(gone, Err(BucketError::NotFound));
    }

    async fn markers_keep_directories(&self) {
        if !self.bucket.capabilities().markers {
            return;
        }
        let (marker, always) = (self.key("kept/"), Condition::Always);
        self.bucket.put(&marker, Bytes::new(), &always, &Metadata::new()).await.unwrap();
        let (_, dirs) = self.names("").await;
        assert!(dirs.contains(&"kept/".to_owned()), "{dirs:?}");
        let info = self.bucket.head(&marker).await.unwrap();
        assert_eq!(info.size, 0);
        assert_eq!(self.names("kept/").await.1, Vec::<String>::new());
        let can = self.bucket.capabilities();
        if can.real_directories {
            self.put("kept/file", b"x").await;
            assert_eq!(self.bucket.delete(&marker, None).await, Err(BucketError::NotEmpty));
            assert_eq!(self.read("kept/file").await.unwrap(), "x");
            self.bucket.delete(&self.key("kept/file"), None).await.unwrap();
        }
        self.bucket.delete(&marker, None).await.unwrap();
        assert_eq!(self.bucket.head(&marker).await, Err(BucketError::NotFound));
        if can.create_if_absent {
            let create = || self.try_put("kept/", b"", &Condition::IfAbsent);
            create().await.unwrap();
            assert_eq!(create().await, Err(BucketError::Precondition));
            self.bucket.delete(&marker, None).await.unwrap();
        }
    }

    async fn renames_move_whole(&self) {
        let can = self.bucket.capabilities();
        let rename = async |from: &str, to: &str, condition: Condition| {
            self.bucket.rename(&self.key(from), &self.key(to), &condition).await
        };
        if can.rename_file {
            let etag = self.put("moving/a", b"moved").await;
            self.put("moving/b", b"old").await;
            assert_eq!(
                rename("moving/a", "moving/b", Condition::IfAbsent).await,
                Err(BucketError::Precondition)
            );
            rename("moving/a", "moving/b", Condition::Always).await.unwrap();
            assert_eq!(self.read("moving/b").await.unwrap(), "moved");
            assert_eq!(self.bucket.head(&self.key("moving/a")).await, Err(BucketError::NotFound));
            let now = self.bucket.head(&self.key("moving/b")).await.unwrap().etag;
            tracing::debug!(kept = (now == etag), "a rename and its ETag");
            rename("moving/b", "moving/c", Condition::IfAbsent).await.unwrap();
            let gone = rename("moving/b", "moving/d", Condition::Always).await;
            assert_eq!(gone, Err(BucketError::NotFound));
        }
        if can.rename_directory {
            self.put("moving/dir/x", b"1").await;
            self.put("moving/dir/sub/y", b"2").await;
            rename("moving/dir/", "moving/dest/", Condition::IfAbsent).await.unwrap();
            assert_eq!(self.read("moving/dest/sub/y").await.unwrap(), "2");
            let page = self.bucket.list_all(&format!("{}moving/dir/", self.root), false).await;
            assert_eq!(page.unwrap().objects, vec![]);
            self.put("moving/other/z", b"3").await;
            let onto = rename("moving/other/", "moving/dest/", Condition::IfAbsent).await;
            assert_eq!(onto, Err(BucketError::Precondition));
        }
    }

    /// Takes everything away again, deepest first: directories that are real go last. A server that
    /// writes back shows what is gone a while longer.
    async fn clean(&self) {
        for _ in 0..100 {
            let page = self.bucket.list_all(&self.root, false).await.unwrap();
            let mut keys: Vec<_> = page.objects.into_iter().map(|o| o.key).collect();
            keys.retain(|key| key.as_str() != self.root && key.as_str() != ".trialfs/");
            if keys.is_empty() {
                return;
            }
            keys.sort();
            keys.reverse();
            for key in keys {
                match self.bucket.delete(&key, None).await {
                    Ok(()) | Err(BucketError::NotFound | BucketError::NotEmpty) => {}
                    Err(error) => panic!("{key}: {error}"),
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let page = self.bucket.list_all(&self.root, false).await.unwrap();
        let left: Vec<_> = page.objects.iter().map(|o| o.key.as_str()).collect();
        panic!("what was deleted is still listed: {left:?}");
    }
}
