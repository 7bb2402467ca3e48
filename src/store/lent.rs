//! Connections that are kept at hand. A pool of `sqlx` makes them, which knows how to wait for a database that
//! is away; it does not keep them, for it tests each one as it comes back, which is a round trip for every
//! statement, and goes round all of them. Here the one that was used last is used next. What did not come back
//! whole (a future that was dropped, a statement that broke it, a transaction that is open) is closed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{Connection, Database, Pool};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::backend::is_passing;

/// How long a connection is used: what a session gathers in the database's server goes with it.
const LIFE: Duration = Duration::from_secs(1800);

/// Connections to lend.
pub(super) struct Lender<DB: Database>(Arc<Home<DB>>);

impl<DB: Database> Clone for Lender<DB> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Home<DB: Database> {
    pool: Pool<DB>,
    permits: Arc<Semaphore>,
    kept: Mutex<Vec<Kept<DB>>>,
}

/// A connection at hand, and since when there is one.
type Kept<DB> = (<DB as Database>::Connection, Instant);

impl<DB: Database> Home<DB> {
    // A panic while the lock was held leaves the list whole: each change is one call.
    fn kept(&self) -> MutexGuard<'_, Vec<Kept<DB>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<DB: Database> Lender<DB> {
    /// Lends as many connections as the pool may have, and waits for one as long as the pool would.
    pub(super) fn new(pool: Pool<DB>) -> Self {
        let most = usize::try_from(pool.options().get_max_connections()).unwrap_or(1);
        Self(Arc::new(Home { pool, permits: Arc::new(Semaphore::new(most)), kept: Mutex::default() }))
    }

    /// A connection.
    pub(super) async fn lend(&self) -> Result<Lent<DB>, sqlx::Error> {
        let permit = Arc::clone(&self.0.permits).acquire_owned();
        let permit = tokio::time::timeout(self.0.pool.options().get_acquire_timeout(), permit).await;
        let permit = match permit {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(sqlx::Error::PoolClosed),
            Err(_) => return Err(sqlx::Error::PoolTimedOut),
        };
        let kept = self.0.kept().pop();
        let kept = match kept {
            Some(kept) => kept,
            // Seldom, and some kilobytes, which every future that runs a statement would carry.
            None => (Box::pin(self.0.pool.acquire()).await?.detach(), Instant::now()),
        };
        Ok(Lent { kept: Some(kept), home: Arc::clone(&self.0), _permit: permit })
    }

    /// How many connections there may be, are lent, and are at hand.
    pub(super) fn facts(&self) -> (u32, u32, u32) {
        let count = |places: usize| u32::try_from(places).unwrap_or(u32::MAX);
        let most = self.0.pool.options().get_max_connections();
        let lent = most.saturating_sub(count(self.0.permits.available_permits()));
        (most, lent, count(self.0.kept().len()))
    }

    /// Ends all connections; those that are lent end as they come back.
    pub(super) async fn close(&self) {
        self.0.permits.close();
        let kept = std::mem::take(&mut *self.0.kept());
        for (connection, _) in kept {
            // It is gone, whatever it says.
            let _ = connection.close().await;
        }
        self.0.pool.close().await;
    }
}

/// A connection in somebody's hands. Unless it is given back, it is closed, and what it was at is rolled back.
pub(super) struct Lent<DB: Database> {
    /// There until it is given back.
    kept: Option<Kept<DB>>,
    home: Arc<Home<DB>>,
    _permit: OwnedSemaphorePermit,
}

impl<DB: Database> Lent<DB> {
    /// The connection itself.
    pub(super) fn connection(&mut self) -> Result<&mut DB::Connection, sqlx::Error> {
        self.kept.as_mut().map(|(connection, _)| connection).ok_or(sqlx::Error::PoolClosed)
    }

    /// Gives it back after a statement, where that left it whole. Where the server has gone away, the connections
    /// at hand have gone with it: one caller finds out for all.
    pub(super) fn after(self, failure: Option<&sqlx::Error>) {
        if failure.is_none_or(leaves_whole) {
            self.give_back();
        } else if failure.is_some_and(ended_session) {
            let dead = std::mem::take(&mut *self.home.kept());
            drop(dead);
        }
    }

    /// Gives it back as it was lent: nothing runs on it, and no transaction is open.
    fn give_back(mut self) {
        let whole = |(_, since): &mut Kept<DB>| !self.home.permits.is_closed() && since.elapsed() < LIFE;
        if let Some(kept) = self.kept.take_if(whole) {
            self.home.kept().push(kept);
        }
    }
}

/// Whether a connection is as it was before a statement that failed so.
fn leaves_whole(failure: &sqlx::Error) -> bool {
    // What passes may have ended the session.
    matches!(failure, sqlx::Error::Database(refused) if !is_passing(refused.code().as_deref()))
}

/// Whether the session ended: the connection broke, or the server said that it shuts down (class 57).
fn ended_session(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(told) => {
            told.code().is_some_and(|code| code.len() == 5 && code.starts_with("57"))
        }
        _ => false,
    }
}
