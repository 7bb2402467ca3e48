//! Leases: which process does a job that one is enough for. A lease spares work and is no lock: clocks
//! differ and a process can stall past its end, so what it covers must be safe to do twice at once.

use super::backend::{Arg, Db, StoreError};
use crate::base::clock::Millis;
use crate::base::ids::InstanceId;

/// Takes a lease that is free, over, or one's own; `false` where another process has it.
pub async fn acquire(
    db: &Db,
    name: &str,
    owner: &InstanceId,
    now: Millis,
    until: Millis,
) -> Result<bool, StoreError> {
    const SQL: &str = "INSERT INTO leases (name, owner, until) VALUES ($1, $2, $4) \
         ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until \
         WHERE leases.until <= $3 OR leases.owner = excluded.owner";
    let args = [Arg::Text(name), Arg::Text(owner.as_str()), Arg::Int(now.0), Arg::Int(until.0)];
    Ok(db.execute(SQL, &args).await? == 1)
}

/// Keeps a lease for longer; `false` where another process has taken it.
pub async fn renew(db: &Db, name: &str, owner: &InstanceId, until: Millis) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE leases SET until = $3 WHERE name = $1 AND owner = $2";
    let args = [Arg::Text(name), Arg::Text(owner.as_str()), Arg::Int(until.0)];
    Ok(db.execute(SQL, &args).await? == 1)
}

/// Gives a lease back before its end, so that another process need not wait for it.
pub async fn release(db: &Db, name: &str, owner: &InstanceId) -> Result<bool, StoreError> {
    const SQL: &str = "DELETE FROM leases WHERE name = $1 AND owner = $2";
    Ok(db.execute(SQL, &[Arg::Text(name), Arg::Text(owner.as_str())]).await? == 1)
}

/// Writes a row and takes it back: whether the database takes a write.
pub async fn try_write(db: &Db, owner: &InstanceId) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO leases (name, owner, until) VALUES ($1, $2, 0)";
    let name = format!("check {owner}");
    let mut tx = db.begin_write().await?;
    tx.execute(SQL, &[Arg::Text(&name), Arg::Text(owner.as_str())]).await?;
    tx.rollback().await
}
