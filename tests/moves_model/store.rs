//! A store as `moves` assumes it, and what stands in it to somebody who sees all of it at once.
//!
//! Owns what a request does when it arrives, and [`Store::shown`]. Does not own when.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trialfs::checkpoint::moves::{Decided, Records, Reply, Shows, Survey};
use trialfs::checkpoint::record::{Nonce, Ruling, Suffix};
use trialfs::types::ETag;

use crate::scenarios::Mutant;

/// A directory of the model.
pub type Dir = char;
/// A name in one.
pub type Place = (Dir, Suffix);
/// What programs see: content by place.
pub type Tree = BTreeMap<Place, u8>;

/// One rename of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rename {
    pub from: Dir,
    pub to: Dir,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Object {
    pub version: u16,
    pub content: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Store {
    pub objects: BTreeMap<Place, Object>,
    pub froms: BTreeSet<Rename>,
    pub intos: BTreeSet<Rename>,
    pub tos: BTreeMap<Rename, Arc<Decided>>,
    pub moved: BTreeSet<Rename>,
    versions: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Request {
    Look,
    PutFrom,
    PutInto,
    Survey(Part),
    Decide(Ruling, Nonce, BTreeMap<Suffix, ETag>),
    Copy(Suffix, ETag),
    Delete(Suffix, ETag),
    Close,
    DeleteFrom,
    DeleteInto,
    CollectTo,
    CollectMoved,
    /// Of a program, by a mount that looked before it; or one that did not.
    Write(Place, u8),
    Unlink(Place),
    Read(Dir),
}

/// What one request of a survey tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    Records,
    Source,
    Destination,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Records(Records),
    Survey(Survey),
    Data(BTreeMap<Suffix, Object>),
    Plain(Reply),
}

pub fn etag(object: Object) -> ETag {
    ETag(object.version.to_string())
}

fn reply(done: bool) -> Answer {
    Answer::Plain(if done { Reply::Done } else { Reply::Refused })
}

impl Store {
    pub fn put(&mut self, place: Place, content: u8) {
        self.versions += 1;
        self.objects.insert(place, Object { version: self.versions, content });
    }

    pub fn records(&self, of: Rename) -> Records {
        Records { decided: self.tos.get(&of).cloned(), done: self.moved.contains(&of) }
    }

    pub fn data(&self, dir: Dir) -> BTreeMap<Suffix, Object> {
        let here = self.objects.iter().filter(|((at, _), _)| *at == dir);
        here.map(|((_, name), object)| (name.clone(), *object)).collect()
    }

    pub fn apply(&mut self, of: Rename, request: &Request, mutant: Option<Mutant>) -> Answer {
        match request {
            Request::Look => Answer::Records(self.records(of)),
            Request::Read(dir) => Answer::Data(self.data(*dir)),
            Request::PutFrom => reply(self.froms.insert(of)),
            Request::PutInto => reply(self.intos.insert(of)),
            Request::Survey(part) => Answer::Survey(self.survey(of, *part)),
            Request::Decide(ruling, nonce, entries) => {
                if self.tos.contains_key(&of) && mutant != Some(Mutant::DecidesOver) {
                    return reply(false);
                }
                let (ruling, nonce, entries) = (*ruling, *nonce, entries.clone());
                self.tos.insert(of, Arc::new(Decided { ruling, nonce, entries }));
                reply(true)
            }
            Request::Copy(name, version) => {
                let (from, to) = ((of.from, name.clone()), (of.to, name.clone()));
                let source = self.objects.get(&from).copied();
                let same = |object: &Object| {
                    etag(*object) == *version || mutant == Some(Mutant::CopiesAnyVersion)
                };
                let free = !self.objects.contains_key(&to) || mutant == Some(Mutant::CopiesOver);
                match source.filter(same).filter(|_| free) {
                    Some(source) => {
                        self.put(to, source.content);
                        reply(true)
                    }
                    None => reply(false),
                }
            }
            Request::Delete(name, version) => {
                let from = (of.from, name.clone());
                let blind = mutant == Some(Mutant::DeletesBlindly);
                let same = self.objects.get(&from).is_some_and(|o| etag(*o) == *version || blind);
                if same {
                    self.objects.remove(&from);
                }
                reply(same)
            }
            Request::Close => reply(self.moved.insert(of)),
            Request::DeleteFrom => reply(self.froms.remove(&of)),
            Request::DeleteInto => reply(self.intos.remove(&of)),
            Request::CollectTo => reply(self.tos.remove(&of).is_some()),
            Request::CollectMoved => reply(self.moved.remove(&of)),
            Request::Write(place, content) => {
                self.put(place.clone(), *content);
                reply(true)
            }
            Request::Unlink(place) => reply(self.objects.remove(place).is_some()),
        }
    }

    fn survey(&self, of: Rename, part: Part) -> Survey {
        let mut survey = Survey::default();
        match part {
            Part::Records => {
                let ends = [of.from, of.to];
                let touches = |other: &&Rename| {
                    **other != of && (ends.contains(&other.from) || ends.contains(&other.to))
                };
                let mut others = self.froms.iter().chain(&self.intos).filter(touches);
                survey.rival = others.next().is_some();
            }
            Part::Source => {
                let data = self.data(of.from).into_iter();
                survey.entries = data.map(|(name, object)| (name, etag(object))).collect();
            }
            Part::Destination => survey.taken = !self.data(of.to).is_empty(),
        }
        survey
    }

    /// What programs see at this instant.
    pub fn shown(&self, renames: &[Rename]) -> Tree {
        let mut tree: Tree =
            self.objects.iter().map(|(place, object)| (place.clone(), object.content)).collect();
        for of in renames {
            let records = self.records(*of);
            let Some(decided) = records.decided.filter(|_| self.phase(*of) == Shows::Both) else {
                continue;
            };
            tree.retain(|(dir, _), _| *dir != of.from);
            for (name, object) in self.data(of.from) {
                if decided.moves(name.as_str(), &etag(object)) {
                    tree.entry((of.to, name)).or_insert(object.content);
                }
            }
        }
        tree
    }

    pub fn phase(&self, of: Rename) -> Shows {
        self.records(of).phase().shows()
    }
}
