//! What the audit trail records: who did what to which object, when, from where, and with what result (PCI
//! DSS 10.2.2). No field can hold card data: each is an id that the vault or the configuration made, or a
//! constant word.

use std::net::IpAddr;

use crate::base::bytes::length_prefixed;
use crate::base::clock::Millis;
use crate::base::ids::{GatewayAccount, Merchant};
use crate::base::json::ObjectWriter;

/// The action of a chain's first row.
pub const OPEN: &str = "chain.open";
/// The action of a chain's last row, if its process ended as it should.
pub const CLOSE: &str = "chain.close";

/// Who acts, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// `client:NAME`, `cli:USER`, `gateway:ACCOUNT`, `peer:unknown`, or `vault`.
    pub name: String,
    /// The merchant for whom, if it is one.
    pub merchant: Option<Merchant>,
    /// Address and certificate of a client, address of the gateway or of an unknown peer; else none, and the
    /// row has the host and process of the vault.
    pub origin: Option<String>,
    /// The request, if there is one.
    pub request_id: Option<String>,
}

impl Actor {
    /// The vault itself: its jobs.
    pub fn vault() -> Self {
        Self { name: "vault".to_owned(), merchant: None, origin: None, request_id: None }
    }

    /// Antom, by a signed notification that came from this address.
    pub fn gateway(account: &GatewayAccount, from: Option<IpAddr>) -> Self {
        let origin = from.map(|from| from.to_string());
        Self { name: format!("gateway:{account}"), origin, ..Self::vault() }
    }

    /// Somebody at this address of whom nothing else is known.
    pub fn unknown(from: Option<IpAddr>) -> Self {
        let origin = from.map(|from| from.to_string());
        Self { name: "peer:unknown".to_owned(), origin, ..Self::vault() }
    }

    /// Somebody at the command line of a host.
    pub fn at_console(user: &str, origin: String) -> Self {
        Self { name: format!("cli:{user}"), origin: Some(origin), ..Self::vault() }
    }
}

/// How something ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was refused, or failed.
    Refused,
}

impl Outcome {
    /// The outcome as the trail spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `card.store`, `payment.create` and the like.
    pub action: &'static str,
    /// Which object.
    pub object: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it was refused; or what exactly was done.
    pub detail: Option<String>,
}

impl Entry {
    /// Something that was done to an object.
    pub fn done(action: &'static str, object: impl Into<String>) -> Self {
        Self { action, object: Some(object.into()), outcome: Outcome::Done, detail: None }
    }

    /// Says more about it.
    pub fn with(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }

    /// Says what it was about.
    pub fn about(self, object: impl Into<String>) -> Self {
        Self { object: Some(object.into()), ..self }
    }

    /// A refusal, with its code.
    pub fn refused(action: &'static str, code: impl Into<String>) -> Self {
        Self { action, object: None, outcome: Outcome::Refused, detail: Some(code.into()) }
    }
}

/// A row of the trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// The chain that it belongs to.
    pub chain: String,
    /// Its place in the chain, from 0.
    pub seq: i64,
    /// When.
    pub at: Millis,
    /// Who.
    pub actor: String,
    /// For which merchant.
    pub merchant: Option<String>,
    /// What.
    pub action: String,
    /// To which object.
    pub object: Option<String>,
    /// With what result.
    pub outcome: String,
    /// Why, or what exactly.
    pub detail: Option<String>,
    /// From where.
    pub origin: Option<String>,
    /// In which request.
    pub request_id: Option<String>,
    /// The key of its MAC.
    pub key_id: String,
}

impl AuditRow {
    /// What its MAC covers: LP of every member, those that are absent told from those that are empty.
    pub fn canonical(&self) -> Vec<u8> {
        let seq = self.seq.to_be_bytes();
        let at = self.at.0.to_be_bytes();
        let maybe = |text: &Option<String>| match text {
            None => vec![0],
            Some(text) => [&[1], text.as_bytes()].concat(),
        };
        length_prefixed(&[
            self.chain.as_bytes(),
            &seq,
            &at,
            self.actor.as_bytes(),
            &maybe(&self.merchant),
            self.action.as_bytes(),
            &maybe(&self.object),
            self.outcome.as_bytes(),
            &maybe(&self.detail),
            &maybe(&self.origin),
            &maybe(&self.request_id),
            self.key_id.as_bytes(),
        ])
    }

    /// As `audit export` writes it.
    pub fn json(&self, mac: &str) -> String {
        let mut out = ObjectWriter::default();
        out.string("chain", &self.chain)
            .raw("seq", &self.seq.to_string())
            .string("at", &self.at.rfc3339())
            .string("actor", &self.actor)
            .string_or_null("merchant", self.merchant.as_deref())
            .string("action", &self.action)
            .string_or_null("object", self.object.as_deref())
            .string("outcome", &self.outcome)
            .string_or_null("detail", self.detail.as_deref())
            .string_or_null("origin", self.origin.as_deref())
            .string_or_null("requestId", self.request_id.as_deref())
            .string("keyId", &self.key_id)
            .string("mac", mac);
        out.finish()
    }
}

/// A chain's newest row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The chain.
    pub chain: String,
    /// The row's place.
    pub seq: i64,
    /// Its MAC.
    pub mac: Vec<u8>,
}

/// What a checkpoint says of the whole trail: every chain's newest row. Chains that were closed a while ago
/// are told by their number and one digest: they do not grow any more.
pub fn checkpoint_text(at: Millis, live: &[Head], rest: &Rest) -> String {
    let heads: Vec<String> = live
        .iter()
        .map(|head| {
            ObjectWriter::default()
                .string("chain", &head.chain)
                .raw("seq", &head.seq.to_string())
                .string("mac", &data_encoding::HEXLOWER.encode(&head.mac))
                .finish()
        })
        .collect();
    let rest = ObjectWriter::default()
        .raw("chains", &rest.chains.to_string())
        .raw("rows", &rest.rows.to_string())
        .string("mac", &data_encoding::HEXLOWER.encode(&rest.mac))
        .finish();
    ObjectWriter::default()
        .string("version", "checkpoint/1")
        .string("at", &at.rfc3339())
        .raw("heads", &format!("[{}]", heads.join(",")))
        .raw("rest", &rest)
        .finish()
}

/// What a checkpoint says of the chains that do not grow any more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rest {
    /// How many chains.
    pub chains: u64,
    /// How many rows they have together.
    pub rows: u64,
    /// A digest of all their heads, in the order of their names' bytes.
    pub mac: Vec<u8>,
}

/// What the digest of [`Rest`] is made of. The order is that of the names' bytes, not that of a database, which
/// may sort by the rules of a language.
pub fn rest_input<'a>(heads: impl Iterator<Item = &'a Head>) -> Vec<u8> {
    let mut heads: Vec<&Head> = heads.collect();
    heads.sort_unstable_by(|one, other| one.chain.as_bytes().cmp(other.chain.as_bytes()));
    let mut input = Vec::new();
    for head in heads {
        input.extend(length_prefixed(&[head.chain.as_bytes(), &head.seq.to_be_bytes(), &head.mac]));
    }
    input
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> AuditRow {
        AuditRow {
            chain: "boot_A/1".into(),
            seq: 7,
            at: Millis(1_772_366_400_000),
            actor: "client:checkout".into(),
            merchant: Some("acme".into()),
            action: "card.store".into(),
            object: Some("card_1".into()),
            outcome: "done".into(),
            detail: None,
            origin: Some("127.0.0.1".into()),
            request_id: Some("req_1".into()),
            key_id: "dek_1".into(),
        }
    }

    /// No two different rows have one text: each member's change shows, and none runs into the next.
    #[test]
    fn every_member_counts() {
        let base = row().canonical();
        let changed = [
            AuditRow { chain: "boot_A/2".into(), ..row() },
            AuditRow { seq: 8, ..row() },
            AuditRow { at: Millis(1), ..row() },
            AuditRow { actor: "client:checkou".into(), merchant: Some("tacme".into()), ..row() },
            AuditRow { merchant: None, ..row() },
            AuditRow { action: "card.erase".into(), ..row() },
            AuditRow { object: None, ..row() },
            AuditRow { outcome: "refused".into(), ..row() },
            AuditRow { detail: Some(String::new()), ..row() },
            AuditRow { origin: None, ..row() },
            AuditRow { request_id: None, ..row() },
            AuditRow { key_id: "dek_2".into(), ..row() },
        ];
        for other in changed {
            assert_ne!(other.canonical(), base, "{other:?}");
        }
        assert_eq!(row().canonical(), base);
    }

    #[test]
    fn a_row_and_a_checkpoint_are_shown() {
        let shown: serde_json::Value = serde_json::from_str(&row().json("00")).expect("JSON");
        assert_eq!((&shown["action"], &shown["detail"]), (&"card.store".into(), &serde_json::Value::Null));
        let head = Head { chain: "c".into(), seq: 3, mac: vec![1, 2] };
        let text = checkpoint_text(
            Millis(0),
            std::slice::from_ref(&head),
            &Rest { chains: 2, rows: 9, mac: vec![3] },
        );
        let shown: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&shown["heads"][0]["mac"], &shown["rest"]["rows"]), (&"0102".into(), &9.into()));
        let other = Head { seq: 4, ..head.clone() };
        assert_ne!(rest_input([&head].into_iter()), rest_input([&other].into_iter()));
        // A database may sort `boot_a/2` before `boot_B/1`.
        let [big, small] = ["boot_B/1", "boot_a/2"].map(|chain| Head { chain: chain.into(), ..head.clone() });
        assert_eq!(rest_input([&small, &big].into_iter()), rest_input([&big, &small].into_iter()));
        assert!(rest_input([&small, &big].into_iter()).starts_with(&rest_input([&big].into_iter())));
    }
}
