//! How long cards are kept, and the signed word about what went (PCI DSS 3.2.1). Pure.

use std::time::Duration;

use crate::base::clock::Millis;
use crate::base::ids::{CardId, ReportId, RunId};
use crate::base::json::{self, Object, ObjectWriter};

/// How a report begins, and nothing else that the same key signs.
const VERSION: &str = "retention/1";

/// How long cards are kept; `None` is for as long as nobody erases them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// A card that no agreement covers, since its number was last typed.
    pub unattached: Option<Duration>,
    /// A card that nothing happens to, since its last payment or update.
    pub inactive: Option<Duration>,
}

/// Why a card's time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No agreement covers it, and it was typed long ago.
    Unattached,
    /// Nothing has happened to it for long.
    Inactive,
}

impl Reason {
    /// As reports and the audit trail spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unattached => "unattached",
            Self::Inactive => "inactive",
        }
    }
}

/// What decides about a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// When its number was last typed.
    pub typed_at: Millis,
    /// When anything last happened to it: typed, updated, paid with, taken by an agreement.
    pub active_at: Millis,
    /// Until when a CVV waits for its next payment.
    pub cvv_until: Option<Millis>,
    /// Whether an agreement covers it, or will when its first payment has succeeded.
    pub has_agreement: bool,
}

impl Limits {
    /// Whether a card's time is over, and why. A card whose CVV waits is about to be paid with.
    pub fn reason(&self, facts: &Facts, now: Millis) -> Option<Reason> {
        if facts.cvv_until.is_some_and(|until| until > now) {
            return None;
        }
        let over =
            |since: Millis, limit: Option<Duration>| limit.is_some_and(|limit| since <= ago(now, limit));
        if !facts.has_agreement && over(facts.typed_at, self.unattached) {
            return Some(Reason::Unattached);
        }
        over(facts.active_at, self.inactive).then_some(Reason::Inactive)
    }

    /// Cards whose number was typed after this are kept whatever else is true of them; none where nothing is
    /// ever erased.
    pub fn newest(&self, now: Millis) -> Option<Millis> {
        let limits = [self.unattached, self.inactive];
        limits.into_iter().flatten().min().map(|limit| ago(now, limit))
    }

    /// The end of a reason's time.
    pub fn end(&self, reason: Reason, now: Millis) -> Option<Millis> {
        let limit = match reason {
            Reason::Unattached => self.unattached,
            Reason::Inactive => self.inactive,
        };
        limit.map(|limit| ago(now, limit))
    }
}

fn ago(now: Millis, limit: Duration) -> Millis {
    Millis(now.0.saturating_sub(i64::try_from(limit.as_millis()).unwrap_or(i64::MAX)))
}

/// A card that went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// Its reference.
    pub card_id: CardId,
    /// Its brand; empty where only Antom held the number.
    pub brand: String,
    /// The last four digits.
    pub last4: String,
    /// Why.
    pub reason: Reason,
    /// When its number was last typed.
    pub typed_at: Millis,
    /// When anything last happened to it.
    pub active_at: Millis,
}

/// What a report says. It holds no card data.
pub struct Report<'a> {
    /// Its own name.
    pub id: &'a ReportId,
    /// The sweep or command that it belongs to.
    pub run: &'a RunId,
    /// When the cards went.
    pub at: Millis,
    /// In whose name.
    pub by: &'a str,
    /// Whose cards.
    pub merchant: &'a str,
    /// How long cards are kept.
    pub limits: Limits,
    /// Which went.
    pub cards: &'a [Gone],
}

impl Report<'_> {
    /// The text that is signed.
    pub fn text(&self) -> String {
        let cards: Vec<String> = self.cards.iter().map(gone_json).collect();
        let hours =
            |limit: Option<Duration>| limit.map_or("null".to_owned(), |it| (it.as_secs() / 3600).to_string());
        let limits = ObjectWriter::default()
            .raw("unattachedHours", &hours(self.limits.unattached))
            .raw("inactiveHours", &hours(self.limits.inactive))
            .finish();
        ObjectWriter::default()
            .string("version", VERSION)
            .string("report", self.id.as_str())
            .string("run", self.run.as_str())
            .string("erasedAt", &self.at.rfc3339())
            .string("by", self.by)
            .string("merchant", self.merchant)
            .raw("limits", &limits)
            .raw("cards", &format!("[{}]", cards.join(",")))
            .finish()
    }
}

fn gone_json(gone: &Gone) -> String {
    ObjectWriter::default()
        .string("cardId", gone.card_id.as_str())
        .string("brand", &gone.brand)
        .string("last4", &gone.last4)
        .string("reason", gone.reason.name())
        .string("typedAt", &gone.typed_at.rfc3339())
        .string("lastActiveAt", &gone.active_at.rfc3339())
        .finish()
}

/// What is read back of a report's text: its name, whose cards, and which.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    /// The report's name.
    pub id: ReportId,
    /// Whose cards.
    pub merchant: String,
    /// Which.
    pub cards: Vec<CardId>,
}

/// Reads a report's text; `None` where it is none.
pub fn read(text: &str) -> Option<Told> {
    let object = Object::parse(text)?;
    let string = |name: &str| object.get(name).and_then(json::string);
    if string("version")? != VERSION {
        return None;
    }
    let cards = json::items(object.get("cards")?)?;
    let id = |raw: &str| CardId::parse(&json::string(Object::parse(raw)?.get("cardId")?)?);
    Some(Told {
        id: ReportId::parse(&string("report")?)?,
        merchant: string("merchant")?.into_owned(),
        cards: cards.into_iter().map(id).collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;
    const LIMITS: Limits = Limits {
        unattached: Some(Duration::from_secs(10 * 3600)),
        inactive: Some(Duration::from_secs(100 * 3600)),
    };
    const NOW: Millis = Millis(1_000 * HOUR);

    fn facts(typed: i64, active: i64, has_agreement: bool) -> Facts {
        let ago = |hours: i64| Millis(NOW.0 - hours * HOUR);
        Facts { typed_at: ago(typed), active_at: ago(active), cvv_until: None, has_agreement }
    }

    /// Every side of every limit.
    #[test]
    fn a_card_goes_when_its_time_is_over() {
        use Reason::{Inactive, Unattached};
        for (typed, active, agreed, reason) in [
            (9, 9, false, None),
            (10, 0, false, Some(Unattached)),
            (100, 100, false, Some(Unattached)),
            (10, 10, true, None),
            (99, 99, true, None),
            (100, 99, true, None),
            (100, 100, true, Some(Inactive)),
        ] {
            assert_eq!(
                LIMITS.reason(&facts(typed, active, agreed), NOW),
                reason,
                "{typed} {active} {agreed}"
            );
        }
        let just = Millis(NOW.0 - 10 * HOUR + 1);
        assert_eq!(LIMITS.reason(&Facts { typed_at: just, ..facts(0, 0, false) }, NOW), None);
        let waits = |until: i64| Facts { cvv_until: Some(Millis(until)), ..facts(200, 200, false) };
        assert_eq!(LIMITS.reason(&waits(NOW.0 + 1), NOW), None);
        assert_eq!(LIMITS.reason(&waits(NOW.0), NOW), Some(Unattached));
    }

    #[test]
    fn a_limit_that_is_not_set_erases_nothing() {
        let old = facts(900, 900, false);
        assert_eq!(Limits::default().reason(&old, NOW), None);
        assert_eq!(Limits::default().newest(NOW), None);
        let inactive = Limits { unattached: None, ..LIMITS };
        assert_eq!(inactive.reason(&old, NOW), Some(Reason::Inactive));
        assert_eq!(inactive.newest(NOW), Some(Millis(NOW.0 - 100 * HOUR)));
        assert_eq!(LIMITS.newest(NOW), Some(Millis(NOW.0 - 10 * HOUR)));
    }

    #[test]
    fn a_report_is_read_back() {
        let (id, run) = (ReportId::make().expect("entropy"), RunId::make().expect("entropy"));
        let gone = Gone {
            card_id: CardId::make().expect("entropy"),
            brand: "VISA".into(),
            last4: "1111".into(),
            reason: Reason::Inactive,
            typed_at: Millis(0),
            active_at: Millis(1),
        };
        let cards = [gone.clone(), Gone { card_id: CardId::make().expect("entropy"), ..gone }];
        let report = Report {
            id: &id,
            run: &run,
            at: NOW,
            by: "vault",
            merchant: "acme",
            limits: LIMITS,
            cards: &cards,
        };
        let text = report.text();
        let told = read(&text).expect("a report");
        assert_eq!((told.id, told.merchant.as_str()), (id, "acme"));
        assert_eq!(told.cards, cards.map(|gone| gone.card_id));
        let shown: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(shown["limits"]["unattachedHours"], 10);
        for other in ["", "{}", &text.replace("retention/1", "checkpoint/1"), &text.replace("card_", "kard_")]
        {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
