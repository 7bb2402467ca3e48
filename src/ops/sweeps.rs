//! What time brings about by itself: agreements end, cards are about to expire, notifications that were
//! kept aside have been kept long enough. Each sweep does a bounded piece and is safe to do twice.

use std::time::Duration;

use time::{Date, Month};

use crate::base::clock::Millis;
use crate::base::limits::PAGE;
use crate::model::agreement::AgreementEvent;
use crate::model::audit::Entry;
use crate::model::card::Details;
use crate::model::event::EventKind;
use crate::store::agreements::{end_agreement, list_expired};
use crate::store::cards::{list_agreed, note_expiry_told};
use crate::store::notices;

use super::Vault;
use super::agreements::agreement_event;
use super::error::OpError;
use super::events::ReadyEvent;

/// How long notifications of unknown payments are kept.
const KEEP_NOTICES: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long before its end a card's expiry is told.
const EXPIRY_NOTICE: Duration = Duration::from_secs(30 * 24 * 3600);

impl Vault {
    /// Ends agreements whose time is over, and tells so; tells how many.
    pub async fn end_expired_agreements(&self) -> Result<usize, OpError> {
        let (now, why) = (self.now(), AgreementEvent::Expired);
        let expired = list_expired(&self.db, now, PAGE).await?;
        for row in &expired {
            let (merchant, id) = (&row.merchant, &row.agreement_id);
            let mut tx = self.begin().await?;
            if let Some(at) = end_agreement(&mut tx, merchant, id, why.reason(), now).await? {
                let kind = EventKind::AgreementEnded;
                let event = agreement_event(merchant, id, row.card_id.as_ref(), kind, Some(why), at)?;
                event.insert(&mut tx).await?;
                tx.note(&Entry::done("agreement.end", id.as_str()).with(why.reason())).await?;
            }
            tx.commit().await?;
        }
        if !expired.is_empty() {
            self.bell.ring_written();
        }
        Ok(expired.len())
    }

    /// Tells of cards that an agreement uses and that expire within 30 days, each once for its month. Looks
    /// at a page of cards after `after`; gives the last one's id where there may be more.
    pub async fn tell_expiring_cards(&self, after: &str) -> Result<Option<String>, OpError> {
        let now = self.now();
        let page = list_agreed(&self.db, after, PAGE).await?;
        let mut last = None;
        let full = i64::try_from(page.len()).unwrap_or(i64::MAX) >= PAGE;
        for (merchant, row, told) in page {
            last = Some(row.card_id.to_string());
            let details = match self.open_details(&merchant, &row).await {
                Ok(Some(details)) => details,
                // Erased meanwhile.
                Ok(None) | Err(OpError::NotFound(_)) => continue,
                // One card that is broken must not keep all those after it from being told of.
                Err(OpError::Internal(error)) => {
                    tracing::error!(
                        card = row.card_id.as_str(),
                        error = format!("{error:#}"),
                        alarm = true,
                        "a card does not open: whether it is about to expire cannot be told"
                    );
                    continue;
                }
                Err(error) => return Err(error),
            };
            let month = format!("20{}-{}", details.expiry.year_text(), details.expiry.month_text());
            if told.as_deref() == Some(month.as_str()) || !expires_soon(&details, now) {
                continue;
            }
            let mut tx = self.begin().await?;
            if note_expiry_told(&mut tx, &merchant, &row.card_id, &month).await? {
                let kind = EventKind::CardExpiring;
                let event = ReadyEvent::of_card(&merchant, &row.card_id, "PAN", kind, Some(&month), now)?;
                event.insert(&mut tx).await?;
                tx.note(&Entry::done("card.expiring", row.card_id.as_str())).await?;
            }
            tx.commit().await?;
            self.bell.ring_written();
        }
        Ok(last.filter(|_| full))
    }

    /// Removes notifications that were kept aside for 30 days; tells how many.
    pub async fn drop_old_notices(&self) -> Result<u64, OpError> {
        let before =
            Millis(self.now().0.saturating_sub(i64::try_from(KEEP_NOTICES.as_millis()).unwrap_or(0)));
        Ok(notices::delete_old(&self.db, before).await?)
    }
}

/// Whether a card's last month ends within the notice.
fn expires_soon(details: &Details, now: Millis) -> bool {
    let end = || {
        let year: i32 = details.expiry.year_text().parse().ok()?;
        let month = Month::try_from(details.expiry.month_text().parse::<u8>().ok()?).ok()?;
        let (year, next) = if month == Month::December {
            (2000 + year + 1, Month::January)
        } else {
            (2000 + year, month.next())
        };
        let first = Date::from_calendar_date(year, next, 1).ok()?.midnight().assume_utc();
        Some(Millis(first.unix_timestamp().saturating_mul(1000)))
    };
    end().is_some_and(|end| end <= now.plus(EXPIRY_NOTICE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_expires_with_its_month() {
        let soon = |month: &str, year: &str, now: i64| {
            let details =
                Details::from_json(&format!(r#"{{"expiryMonth":"{month}","expiryYear":"{year}"}}"#));
            expires_soon(&details.expect("details"), Millis(now))
        };
        let first_of_march = 1_772_323_200_000; // 2026-03-01T00:00:00Z
        assert!(soon("03", "26", first_of_march + 24 * 3_600_000));
        assert!(!soon("03", "26", first_of_march - 1));
        assert!(soon("02", "26", first_of_march));
        assert!(!soon("12", "26", first_of_march));
        assert!(soon("12", "25", first_of_march));
    }
}
