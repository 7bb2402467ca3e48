//! Connections that are kept at hand. A pool of `sqlx` makes them, which knows how to wait for a database that
//! is away; it does not keep them, for it tests each one as it comes back, which is a round trip for every
//! statement, and goes round all of them. Here the one that was used last is used next. What did not come back
//! whole (a future that was dropped, a statement that broke it, a transaction that is open) is closed.

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{Connection, Database, Pool};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::backend::is_passing;

/// How long a connection is used: what a session gathers in the database's server goes with it.
const LIFE: Duration = Duration::from_secs(1800);

/// Connections to lend.
pub(super) struct Lender<DB: Database> {
    home: Arc<Home<DB>>,
    limit: Limit,
}

impl<DB: Database> Clone for Lender<DB> {
    fn clone(&self) -> Self {
        Self { home: Arc::clone(&self.home), limit: self.limit }
    }
}

/// How long a statement may take. Nothing else tells of a server whose host has gone: TCP would send again for a
/// quarter of an hour.
#[derive(Clone, Copy)]
pub(super) struct Limit(Option<Duration>);

impl Limit {
    /// Waits for a statement.
    pub(super) async fn of<T>(
        self,
        statement: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let Some(limit) = self.0 else { return statement.await };
        let late = || sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "the database says nothing"));
        tokio::time::timeout(limit, statement).await.unwrap_or_else(|_| Err(late()))
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
        let home = Home { pool, permits: Arc::new(Semaphore::new(most)), kept: Mutex::default() };
        Self { home: Arc::new(home), limit: Limit(None) }
    }

    /// The same connections, on which no statement takes longer.
    pub(super) fn answering_within(self, limit: Duration) -> Self {
        Self { limit: Limit(Some(limit)), ..self }
    }

    /// A connection.
    pub(super) async fn lend(&self) -> Result<Lent<DB>, sqlx::Error> {
        let permit = Arc::clone(&self.home.permits).acquire_owned();
        let permit = tokio::time::timeout(self.home.pool.options().get_acquire_timeout(), permit).await;
        let permit = match permit {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(sqlx::Error::PoolClosed),
            Err(_) => return Err(sqlx::Error::PoolTimedOut),
        };
        let kept = self.home.kept().pop();
        let kept = match kept {
            Some(kept) => kept,
            // Seldom, and some kilobytes, which every future that runs a statement would carry.
            None => (Box::pin(self.home.pool.acquire()).await?.detach(), Instant::now()),
        };
        Ok(Lent { kept: Some(kept), home: Arc::clone(&self.home), limit: self.limit, _permit: permit })
    }

    /// How many connections there may be, are lent, and are at hand.
    pub(super) fn facts(&self) -> (u32, u32, u32) {
        let count = |places: usize| u32::try_from(places).unwrap_or(u32::MAX);
        let most = self.home.pool.options().get_max_connections();
        let lent = most.saturating_sub(count(self.home.permits.available_permits()));
        (most, lent, count(self.home.kept().len()))
    }

    /// Ends all connections; those that are lent end as they come back.
    pub(super) async fn close(&self) {
        self.home.permits.close();
        let kept = std::mem::take(&mut *self.home.kept());
        for (connection, _) in kept {
            // It is gone, whatever it says.
            let _ = connection.close().await;
        }
        self.home.pool.close().await;
    }
}

/// A connection in somebody's hands. Unless it is given back, it is closed, and what it was at is rolled back.
pub(super) struct Lent<DB: Database> {
    /// There until it is given back.
    kept: Option<Kept<DB>>,
    home: Arc<Home<DB>>,
    limit: Limit,
    _permit: OwnedSemaphorePermit,
}

impl<DB: Database> Lent<DB> {
    /// The connection itself.
    pub(super) fn connection(&mut self) -> Result<&mut DB::Connection, sqlx::Error> {
        self.kept.as_mut().map(|(connection, _)| connection).ok_or(sqlx::Error::PoolClosed)
    }

    /// How long a statement on it may take.
    pub(super) fn limit(&self) -> Limit {
        self.limit
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
