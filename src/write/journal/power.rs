//! The journal on a disk whose power is cut at each write and each sync: counted in pass one, then
//! for every k. What was acknowledged before is found again, whatever became of what was written
//! and not synced. The log is so small that it goes round several times.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::intent::tests::intent;
use super::super::intent::{Before, CloseId, Intent};
use super::log::Medium;
use super::{FileName, Journal};
use crate::types::ETag;

/// What becomes of writes that no sync followed.
#[derive(Debug, Clone, Copy)]
enum Unsynced {
    Lost,
    Kept,
    /// Every other one; of the last only a half.
    Torn,
}

const LOG_BYTES: usize = 6 * 4096;

#[derive(Debug, Default)]
struct Power {
    operations: u64,
    cut_at: Option<u64>,
}

/// One file of the disk.
#[derive(Debug, Default)]
struct Disk {
    synced: Vec<u8>,
    now: Vec<u8>,
    writes: Vec<(u64, Vec<u8>)>,
}

/// The storage under a store or a log.
#[derive(Debug, Clone, Default)]
struct Storage {
    disk: Arc<Mutex<Disk>>,
    power: Arc<Mutex<Power>>,
}

impl Storage {
    fn of(image: Vec<u8>, power: &Arc<Mutex<Power>>) -> Self {
        let disk = Disk { synced: image.clone(), now: image, writes: Vec::new() };
        Self { disk: Arc::new(Mutex::new(disk)), power: power.clone() }
    }

    /// Counts an operation; an error once the power is cut.
    fn operate(&self, work: impl FnOnce(&mut Disk)) -> io::Result<()> {
        let mut power = self.power.lock();
        power.operations += 1;
        if power.cut_at.is_some_and(|at| power.operations >= at) {
            return Err(io::Error::other("no power"));
        }
        work(&mut self.disk.lock());
        Ok(())
    }

    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.operate(|disk| {
            let start = at as usize;
            disk.now[start..start + data.len()].copy_from_slice(data);
            disk.writes.push((at, data.to_vec()));
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.operate(|disk| {
            disk.synced = disk.now.clone();
            disk.writes.clear();
        })
    }

    /// The disk as the next boot finds it.
    fn after(&self, unsynced: Unsynced) -> Self {
        let disk = self.disk.lock();
        let mut image = disk.synced.clone();
        for (at, (offset, data)) in disk.writes.iter().enumerate() {
            let data = match unsynced {
                Unsynced::Lost => &[][..],
                Unsynced::Kept => data,
                Unsynced::Torn if at + 1 == disk.writes.len() => &data[..data.len() / 2],
                Unsynced::Torn if at % 2 == 0 => &[],
                Unsynced::Torn => data,
            };
            let start = *offset as usize;
            image.resize(image.len().max(start + data.len()), 0);
            image[start..start + data.len()].copy_from_slice(data);
        }
        // Whatever was written to a length that was never synced: a file system keeps the length.
        image.resize(image.len().max(disk.now.len()), 0);
        Self::of(image, &Arc::default())
    }
}

impl Medium for Storage {
    fn load(&self) -> io::Result<Vec<u8>> {
        Ok(self.disk.lock().now.clone())
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(at, data)?;
        self.sync()
    }
}

impl redb::StorageBackend for Storage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.disk.lock();
        let range = offset as usize..offset as usize + out.len();
        let found = disk.now.get(range).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate(|disk| disk.now.resize(len as usize, 0))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(offset, data)
    }
}

/// What the journal said it has, and what it was asked for last.
#[derive(Default)]
struct Told {
    sure: Vec<Intent>,
    asked: Vec<Intent>,
}

/// Puts, replaces, publishes and removes, until the power is cut.
async fn run(journal: &Journal, told: &Mutex<Told>) -> io::Result<()> {
    for n in 1..=8u64 {
        let new = intent(n, &format!("k{}", n % 3), &vec![n as u8; 700 * n as usize]);
        let replaces: Vec<CloseId> = if n % 4 == 0 { vec![CloseId(n - 1)] } else { Vec::new() };
        let before = if n == 6 { Before::Closed(CloseId(5)) } else { Before::Absent };
        let new = Intent { before, ..new };
        let mut after = told.lock().sure.clone();
        after.retain(|old| !replaces.contains(&old.id));
        after.push(new.clone());
        told.lock().asked = after.clone();
        journal.put(new, FileName::Unneeded, replaces, || ()).await?;
        told.lock().sure = after;
    }
    let rest = told.lock().sure[1..].to_vec();
    told.lock().asked = rest.clone();
    let first = told.lock().sure[0].id;
    journal.remove(vec![first]).await?;
    told.lock().sure = rest.clone();
    let (earlier, later) = (rest[rest.len() - 2].id, rest[rest.len() - 1].clone());
    let mut moved = rest[..rest.len() - 2].to_vec();
    moved.push(Intent { id: earlier, ..later.clone() });
    told.lock().asked = moved.clone();
    journal.take_place(earlier, later.id).await?;
    told.lock().sure = moved;
    journal.published(CloseId(5), ETag("e".to_owned()));
    journal.settled().await
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_wherever_the_power_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let staged = dir.path().join("staged");
    std::fs::create_dir(&staged).unwrap();
    let begin = || {
        let power = Arc::default();
        let store = Storage::of(Vec::new(), &power);
        let log = Storage::of(vec![0; LOG_BYTES], &power);
        let journal = Journal::over(store.clone(), log.clone(), &staged).unwrap().0;
        (power, [store, log], journal)
    };
    let (power, [_, log], journal) = begin();
    let made = power.lock().operations;
    run(&journal, &Mutex::default()).await.unwrap();
    drop(journal);
    let all = power.lock().operations;
    assert!(log.disk.lock().now[..4096] != [0; 4096], "nothing was logged");
    assert!(all - made > 30, "{} operations are too few to show anything", all - made);
    for at in made + 1..=all {
        for unsynced in [Unsynced::Lost, Unsynced::Kept, Unsynced::Torn] {
            let (power, disks, journal) = begin();
            power.lock().cut_at = Some(at);
            let told = Mutex::default();
            let _ = run(&journal, &told).await; // cut short
            drop(journal);
            let [store, log] = disks.map(|disk| disk.after(unsynced));
            let Told { sure, asked } = told.into_inner();
            let (_, found) = Journal::over(store, log, &staged).unwrap();
            let without_base = |intents: &[Intent]| -> Vec<Intent> {
                let plain = |intent: &Intent| Intent { before: Before::Absent, ..intent.clone() };
                let still = intents.iter().filter(|intent| intent.id != CloseId(5));
                still.map(plain).collect()
            };
            let (found, sure, asked) =
                (without_base(&found), without_base(&sure), without_base(&asked));
            let ids = |intents: &[Intent]| intents.iter().map(|i| i.id.0).collect::<Vec<_>>();
            assert!(
                found == sure || found == asked,
                "cut at {at}, unsynced {unsynced:?}: {:?} of {:?}",
                ids(&found),
                ids(&sure)
            );
        }
    }
}
