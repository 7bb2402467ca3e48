//! A database that is busy or away is waited for by commands: nobody waits for them who would rather be told.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::OpError;
use crate::store::backend::StoreError;

/// How long it is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// The pause before something is tried again.
pub(super) const AGAIN: Duration = Duration::from_millis(100);

/// An error that may be over soon.
pub trait Passing {
    /// Whether it is the database that is busy or away.
    fn is_passing(&self) -> bool;
}

impl Passing for StoreError {
    fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::NotBegun(_))
    }
}

impl Passing for OpError {
    fn is_passing(&self) -> bool {
        let (Self::Unavailable(why) | Self::Unclear(why)) = self else { return false };
        why.downcast_ref::<StoreError>().is_some()
    }
}

/// Runs something again while the database is busy or away.
pub async fn patiently<T, E, F>(work: impl Fn() -> F) -> Result<T, E>
where
    E: Passing,
    F: Future<Output = Result<T, E>>,
{
    let end = Instant::now() + PATIENCE;
    loop {
        match work().await {
            Err(error) if error.is_passing() && Instant::now() < end => sleep(AGAIN).await,
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also where nothing was begun, as where no connection was to be had.
    #[test]
    fn a_database_that_is_away_is_waited_for_and_nothing_else_is() {
        let away = || sqlx::Error::PoolTimedOut;
        for error in [StoreError::Unavailable(away()), StoreError::NotBegun(away())] {
            assert!(error.is_passing(), "{error:?}");
            assert!(OpError::from(error).is_passing());
        }
        assert!(OpError::of_commit(StoreError::Unavailable(away())).is_passing());
        assert!(!StoreError::Refused(away()).is_passing() && !StoreError::Damaged.is_passing());
        assert!(!OpError::Unavailable(anyhow::anyhow!("the audit trail is not free")).is_passing());
    }
}
