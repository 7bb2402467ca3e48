//! Notifications that are kept aside: those of payments that nobody here knows, and those that are only
//! told on. Each is kept once.

use super::backend::{Arg, Db, StoreError, Tx};
use crate::base::clock::Millis;
use crate::base::ids::{DekId, GatewayAccount, Merchant};
use crate::base::sealed::Sealed;

/// A notification to keep.
pub struct NewNotice<'a> {
    /// Antom's client id.
    pub account: &'a GatewayAccount,
    /// Keyed digest of what makes it this one.
    pub digest: &'a str,
    /// The key of the digest.
    pub digest_key: &'a DekId,
    /// `notifyType`, as far as it is a known word.
    pub kind: &'a str,
    /// Whose payment it is about; `nobody` where that is not known.
    pub merchant: &'a Merchant,
    /// Which payment.
    pub payment_request_id: Option<&'a str>,
    /// Its text, scrubbed and sealed.
    pub body: &'a Sealed,
    /// Now.
    pub now: Millis,
}

/// Keeps a notification; `false` where it was kept before.
pub async fn insert_notice(tx: &mut Tx, notice: &NewNotice<'_>) -> Result<bool, StoreError> {
    const SQL: &str = "INSERT INTO notices \
         (account, digest, kind, merchant, payment_request_id, body, received_at, digest_key) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (account, digest) DO NOTHING";
    let args = [
        Arg::Text(notice.account.as_str()),
        Arg::Text(notice.digest),
        Arg::Text(notice.kind),
        Arg::Text(notice.merchant.as_str()),
        Arg::TextOrNull(notice.payment_request_id),
        Arg::Bytes(notice.body.as_bytes()),
        Arg::Int(notice.now.0),
        Arg::Text(notice.digest_key.as_str()),
    ];
    Ok(tx.execute(SQL, &args).await? == 1)
}

/// Whether an account's notification with this digest is kept.
pub async fn has_notice(tx: &mut Tx, account: &GatewayAccount, digest: &str) -> Result<bool, StoreError> {
    const SQL: &str = "SELECT digest FROM notices WHERE account = $1 AND digest = $2";
    Ok(tx.find(SQL, &[Arg::Text(account.as_str()), Arg::Text(digest)]).await?.is_some())
}

/// Removes what was received before `before`, at most a batch, and tells how many. What was told on stays: a
/// signature does not age, and a dispute that is sent again is not to be told again.
pub async fn delete_old(db: &Db, before: Millis) -> Result<u64, StoreError> {
    const SQL: &str = "DELETE FROM notices WHERE (account, digest) IN \
         (SELECT account, digest FROM notices WHERE received_at < $1 \
             AND (merchant = 'nobody' OR kind = 'other') ORDER BY received_at LIMIT 500)";
    db.execute(SQL, &[Arg::Int(before.0)]).await
}

/// How many notifications of unknown payments are kept.
pub async fn count_unknown(db: &Db) -> Result<i64, StoreError> {
    const SQL: &str = "SELECT COUNT(*) AS kept FROM notices WHERE merchant = 'nobody'";
    db.find(SQL, &[]).await?.ok_or(StoreError::Damaged)?.int("kept")
}
