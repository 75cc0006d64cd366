//! A credential that is lent for a time: asked for once, handed to every request, and renewed ahead
//! of its end for as long as the mount lives.
//!
//! Owns when its source is asked again. Does not own the sources, nor how long one may take.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Mutex;

use crate::bucket::error::BucketError;
use crate::clock::Clock;

/// A credential is renewed this long before it expires, so that no request is signed with a dying
/// one; one that lives shorter than twice as long, at half its life.
const RENEW_BEFORE: Duration = Duration::from_secs(300);
/// One that tells no expiry is asked for again after this.
const UNKNOWN_LIFETIME: Duration = Duration::from_secs(3600);
/// Sources that were asked are left alone for so long, whatever they answered: neither a credential
/// that the store won't take nor a source that hangs costs more than one look in this time.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(15);

/// What a source gives: a credential, and when it ends.
pub type Loan<T> = (T, Option<SystemTime>);

/// The credential of a mount, and when its successor is due.
pub struct Lent<T> {
    clock: Arc<dyn Clock>,
    cached: parking_lot::Mutex<Option<Cached<T>>>,
    /// Held while the source is asked.
    asking: Mutex<()>,
}

struct Cached<T> {
    credential: Arc<T>,
    renew_at: SystemTime,
    /// Until then nobody need wait for the next one.
    good_until: SystemTime,
    asked_at: SystemTime,
}

impl<T> Clone for Cached<T> {
    fn clone(&self) -> Self {
        Self { credential: self.credential.clone(), ..*self }
    }
}

impl<T> Lent<T> {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, cached: parking_lot::Mutex::default(), asking: Mutex::default() }
    }

    /// The credential to use now; `ask` runs where the next is due, and must be bounded in time.
    /// Where it fails, the last there was, for the store to judge; its error if there never was
    /// one.
    pub async fn get(
        &self,
        ask: impl Future<Output = Result<Loan<T>, BucketError>>,
    ) -> Result<Arc<T>, BucketError> {
        let _asking = match self.known() {
            Some(known) if !known.is_due(self.clock.wall()) => return Ok(known.credential),
            // One asks ahead of time, and the others go on with what is still good.
            Some(known) if self.clock.wall() < known.good_until => match self.asking.try_lock() {
                Ok(asking) => asking,
                Err(_) => return Ok(known.credential),
            },
            _ => self.asking.lock().await,
        };
        if let Some(known) = self.known().filter(|known| !known.is_due(self.clock.wall())) {
            return Ok(known.credential); // another asked meanwhile
        }
        let found = ask.await;
        let now = self.clock.wall();
        match found {
            Ok((credential, expiry)) => {
                let credential = Arc::new(credential);
                let good_until = expiry.unwrap_or(now + UNKNOWN_LIFETIME);
                let renew_at = renew_at(now, good_until);
                let cached = Cached { credential, renew_at, good_until, asked_at: now };
                *self.cached.lock() = Some(cached.clone());
                Ok(cached.credential)
            }
            Err(error) => match self.cached.lock().as_mut() {
                Some(cached) => {
                    tracing::warn!(%error, "credentials could not be refreshed");
                    cached.asked_at = now;
                    Ok(cached.credential.clone())
                }
                None => Err(error),
            },
        }
    }

    fn known(&self) -> Option<Cached<T>> {
        self.cached.lock().clone()
    }

    /// The store says that the credential is no longer good: the next request asks for another.
    pub fn expire(&self) {
        if let Some(cached) = self.cached.lock().as_mut() {
            (cached.renew_at, cached.good_until) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH);
        }
    }
}

impl<T> Cached<T> {
    fn is_due(&self, now: SystemTime) -> bool {
        // A clock that was set back must not keep anybody from asking.
        let asked_ago = now.duration_since(self.asked_at).unwrap_or(ASK_AGAIN_AFTER);
        now >= self.renew_at && asked_ago >= ASK_AGAIN_AFTER
    }
}

/// When to ask for the successor of a credential got `now`.
fn renew_at(now: SystemTime, good_until: SystemTime) -> SystemTime {
    let life = good_until.duration_since(now).unwrap_or_default();
    now + life - RENEW_BEFORE.min(life / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_that_lives_a_minute_is_not_asked_for_at_every_request() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |life| renew_at(now, now + Duration::from_secs(life));
        assert_eq!(at(3600), now + Duration::from_secs(3300));
        assert_eq!(at(60), now + Duration::from_secs(30));
        assert_eq!(renew_at(now, now - Duration::from_secs(9)), now, "it came expired");
    }

    #[test]
    fn a_source_that_hangs_holds_up_one_request_and_not_each() {
        let asked_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let past = SystemTime::UNIX_EPOCH;
        let credential = Arc::new(());
        let cached = Cached { credential, renew_at: past, good_until: past, asked_at };
        assert!(!cached.is_due(asked_at + Duration::from_secs(1)));
        assert!(cached.is_due(asked_at + ASK_AGAIN_AFTER));
        assert!(cached.is_due(past), "the clock was set back");
    }
}
