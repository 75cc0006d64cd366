//! Where the journal's entries stand once the log has gone round: a `redb`, synced once for some
//! thousand closes.
//!
//! Owns its tables. Does not own what an entry says (`intent`), nor when it is written (`keeper`).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use redb::{
    Database, ReadableDatabase, ReadableTable, TableDefinition, TableHandle, WriteTransaction,
};

use super::super::intent::CloseId;
use super::log::{Changes, Mark};

/// With a log in front. Whoever knows of none must not take this store for all there is, so it has
/// another name than the one before.
const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("closed-2");
const BEFORE_LOGS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("closed-1");
const MARK: TableDefinition<'_, &str, u64> = TableDefinition::new("log");
const LOG_ID: &str = "id";
const LOG_NUMBER: &str = "number";
/// Pages kept in memory, in bytes: what is committed is seldom read.
const CACHE_BYTES_MAX: usize = 8 << 20;

/// The entries, but for what the log says since its mark.
#[derive(Debug)]
pub struct Store(Database);

impl Store {
    /// An empty one, with the mark of its log.
    pub fn create(path: &Path, mark: Mark) -> io::Result<Self> {
        Self::begin(builder().create(path).map_err(other)?, mark)
    }

    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(builder().open(path).map_err(other)?))
    }

    /// Over any storage: as it is there, or an empty one.
    #[cfg(test)]
    pub fn over(storage: impl redb::StorageBackend, mark: Mark) -> io::Result<Self> {
        let store = Self(builder().create_with_backend(storage).map_err(other)?);
        match store.mark()? {
            Some(_) => Ok(store),
            None => Self::begin(store.0, mark),
        }
    }

    fn begin(store: Database, mark: Mark) -> io::Result<Self> {
        let store = Self(store);
        store.commit(&Changes::new(), mark)?;
        Ok(store)
    }

    /// `None`: it is of a version that had no log.
    pub fn mark(&self) -> io::Result<Option<Mark>> {
        let begun = self.0.begin_read().map_err(other)?;
        let table = match begun.open_table(MARK) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(other(error)),
        };
        let word = |name| Ok::<_, io::Error>(table.get(name).map_err(other)?.map(|n| n.value()));
        let both = word(LOG_ID)?.zip(word(LOG_NUMBER)?);
        Ok(both.map(|(id, number)| Mark { id, number }))
    }

    pub fn get(&self, id: CloseId) -> io::Result<Option<Vec<u8>>> {
        let table = self.0.begin_read().map_err(other)?.open_table(ENTRIES).map_err(other)?;
        Ok(table.get(id.0).map_err(other)?.map(|value| value.value().to_vec()))
    }

    /// Every entry.
    pub fn all(&self) -> io::Result<BTreeMap<CloseId, Vec<u8>>> {
        let table = self.0.begin_read().map_err(other)?.open_table(ENTRIES).map_err(other)?;
        let mut all = BTreeMap::new();
        for entry in table.iter().map_err(other)? {
            let (id, value) = entry.map_err(other)?;
            all.insert(CloseId(id.value()), value.value().to_vec());
        }
        Ok(all)
    }

    /// Takes over what a log said up to its mark: as a whole, durable when this returns, or not at
    /// all. A store that had no log has one from now on.
    pub fn commit(&self, changes: &Changes, mark: Mark) -> io::Result<()> {
        let begun = self.0.begin_write().map_err(other)?;
        rename_old(&begun)?;
        {
            let mut table = begun.open_table(ENTRIES).map_err(other)?;
            for (id, value) in changes {
                match value {
                    Some(value) => drop(table.insert(id.0, value.as_slice()).map_err(other)?),
                    None => drop(table.remove(id.0).map_err(other)?),
                }
            }
            let mut noted = begun.open_table(MARK).map_err(other)?;
            noted.insert(LOG_ID, mark.id).map_err(other)?;
            noted.insert(LOG_NUMBER, mark.number).map_err(other)?;
        }
        begun.commit().map_err(other)
    }
}

fn rename_old(begun: &WriteTransaction) -> io::Result<()> {
    let mut tables = begun.list_tables().map_err(other)?;
    match tables.any(|table| table.name() == BEFORE_LOGS.name()) {
        true => begun.rename_table(BEFORE_LOGS, ENTRIES).map_err(other),
        false => Ok(()),
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES_MAX);
    builder
}

fn other(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) => error,
        error => io::Error::other(error),
    }
}
