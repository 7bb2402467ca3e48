//! Who may do what. A client is a certificate of the configured CA with a configured name; it maps to
//! one merchant and a set of scopes, and everything else is denied (PCI DSS 7.3.3).

use std::collections::BTreeSet;
use std::marker::PhantomData;

use crate::base::bytes::length_prefixed;
use crate::base::ids::{ClientName, GatewayAccount, Merchant, RequestId};

/// A right that a client can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Read masked cards.
    CardsRead,
    /// Tokenise, update, hold a CVV.
    CardsWrite,
    /// Erase.
    CardsDelete,
    /// Pay.
    PaymentsCreate,
    /// Pay without the buyer.
    PaymentsMit,
    /// Read payments.
    PaymentsRead,
    /// Capture, cancel, refund.
    PaymentsModify,
    /// Read agreements.
    AgreementsRead,
    /// Withdraw consent.
    AgreementsWrite,
    /// Read the event feed.
    EventsRead,
}

impl Scope {
    /// Every scope, in the order of the documentation.
    pub const ALL: [Self; 10] = [
        Self::CardsRead,
        Self::CardsWrite,
        Self::CardsDelete,
        Self::PaymentsCreate,
        Self::PaymentsMit,
        Self::PaymentsRead,
        Self::PaymentsModify,
        Self::AgreementsRead,
        Self::AgreementsWrite,
        Self::EventsRead,
    ];

    /// The scope's name in the configuration and the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::CardsRead => "cards:read",
            Self::CardsWrite => "cards:write",
            Self::CardsDelete => "cards:delete",
            Self::PaymentsCreate => "payments:create",
            Self::PaymentsMit => "payments:mit",
            Self::PaymentsRead => "payments:read",
            Self::PaymentsModify => "payments:modify",
            Self::AgreementsRead => "agreements:read",
            Self::AgreementsWrite => "agreements:write",
            Self::EventsRead => "events:read",
        }
    }

    /// Reads a scope's name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == text)
    }
}

/// A configured client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its name in the configuration.
    pub name: ClientName,
    /// The name that its certificate must carry.
    pub san: SanName,
    /// If set, the SHA-256 of the SubjectPublicKeyInfo that the certificate must have.
    pub spki_sha256: Option<[u8; 32]>,
    /// The merchant whose objects it sees.
    pub merchant: Merchant,
    /// Antom's client id of that merchant.
    pub account: GatewayAccount,
    /// What it may do.
    pub scopes: BTreeSet<Scope>,
    /// How fast.
    pub pace: ClientPace,
}

impl Client {
    /// All that is configured of it, as bytes of which no two clients have the same.
    pub fn canonical(&self) -> Vec<u8> {
        let (kind, san) = match &self.san {
            SanName::Uri(name) => ("uri", name),
            SanName::Dns(name) => ("dns", name),
        };
        let scopes: Vec<&str> = self.scopes.iter().map(|scope| scope.name()).collect();
        let ClientPace { per_second, at_once, unknown_ids_per_minute } = self.pace;
        length_prefixed(&[
            self.name.as_str().as_bytes(),
            kind.as_bytes(),
            san.as_bytes(),
            self.spki_sha256.as_ref().map_or(&[][..], |pin| &pin[..]),
            self.merchant.as_str().as_bytes(),
            self.account.as_str().as_bytes(),
            scopes.join(" ").as_bytes(),
            format!("{per_second} {at_once} {unknown_ids_per_minute}").as_bytes(),
        ])
    }
}

/// How fast a client may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientPace {
    /// Requests in a second.
    pub per_second: u32,
    /// Requests under way at once.
    pub at_once: u32,
    /// Questions after what does not exist, in a minute, before they are taken for guesses.
    pub unknown_ids_per_minute: u32,
}

impl Default for ClientPace {
    /// So high that no client in its right mind comes near.
    fn default() -> Self {
        Self { per_second: 50_000, at_once: 512, unknown_ids_per_minute: 300 }
    }
}

/// A subject alternative name, compared exactly. The common name is never looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SanName {
    /// A URI, such as `spiffe://cardvault/acme/checkout`.
    Uri(String),
    /// A DNS name.
    Dns(String),
}

/// What a verified certificate says of its holder.
pub struct Presented<'a> {
    /// URI names.
    pub uris: &'a [String],
    /// DNS names.
    pub dns: &'a [String],
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub spki_sha256: &'a [u8; 32],
}

/// Finds the one client that a certificate stands for; none where no name is configured, or where its
/// names belong to more than one client.
pub fn identify<'c>(clients: &'c [Client], presented: &Presented<'_>) -> Option<&'c Client> {
    let mut matching = clients.iter().filter(|client| {
        let named = match &client.san {
            SanName::Uri(uri) => presented.uris.contains(uri),
            SanName::Dns(name) => presented.dns.contains(name),
        };
        named && client.spki_sha256.is_none_or(|pin| pin == *presented.spki_sha256)
    });
    let client = matching.next()?;
    matching.next().is_none().then_some(client)
}

/// A request's caller, once identified: only [`Caller::identify`] makes one.
#[derive(Debug, Clone)]
pub struct Caller {
    client: Client,
    request_id: RequestId,
}

/// The caller lacks a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client lacks a scope")]
pub struct MissingScope(pub Scope);

/// An action that needs a scope.
pub trait Action {
    /// The scope that it needs.
    const SCOPE: Scope;
}

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident => $scope:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl Action for $name {
            const SCOPE: Scope = Scope::$scope;
        }
    )*};
}

actions! {
    /// Read masked cards.
    ReadCards => CardsRead,
    /// Tokenise, update, hold a CVV.
    WriteCards => CardsWrite,
    /// Erase a card.
    EraseCards => CardsDelete,
    /// Pay.
    Pay => PaymentsCreate,
    /// Pay without the buyer.
    PayWithoutBuyer => PaymentsMit,
    /// Read payments.
    ReadPayments => PaymentsRead,
    /// Capture, cancel, refund, and see what came of it.
    ModifyPayments => PaymentsModify,
    /// Read the event feed.
    ReadEvents => EventsRead,
    /// Read agreements.
    ReadAgreements => AgreementsRead,
    /// Withdraw consent.
    WithdrawAgreements => AgreementsWrite,
}

/// Evidence of a decision: only [`Caller::allow`] makes one, and an operation demands it, so that no
/// operation can be called without the decision.
///
/// ```
/// use cardvault::model::access::{Allowed, Caller, MissingScope, ReadCards};
///
/// fn decide(caller: &Caller) -> Result<Allowed<ReadCards>, MissingScope> {
///     caller.allow::<ReadCards>()
/// }
/// ```
///
/// It cannot be made up,
/// ```compile_fail,E0451
/// use cardvault::model::access::{Allowed, Caller, ReadCards};
///
/// fn make_up(caller: Caller) -> Allowed<ReadCards> {
///     Allowed { caller, action: std::marker::PhantomData }
/// }
/// ```
/// nor can the caller whom it is about,
/// ```compile_fail,E0451
/// use cardvault::base::ids::RequestId;
/// use cardvault::model::access::{Caller, Client};
///
/// fn make_up(client: Client, request_id: RequestId) -> Caller {
///     Caller { client, request_id }
/// }
/// ```
/// and it is of one action: who may read cards may not erase them with it.
/// ```compile_fail,E0308
/// use cardvault::base::ids::CardId;
/// use cardvault::model::access::{Allowed, ReadCards};
/// use cardvault::ops::Vault;
///
/// async fn erase(vault: &Vault, allowed: &Allowed<ReadCards>, id: &CardId) {
///     let _ = vault.erase_card(allowed, id).await;
/// }
/// ```
/// ```
/// use cardvault::base::ids::CardId;
/// use cardvault::model::access::{Allowed, EraseCards};
/// use cardvault::ops::Vault;
///
/// async fn erase(vault: &Vault, allowed: &Allowed<EraseCards>, id: &CardId) {
///     let _ = vault.erase_card(allowed, id).await;
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Allowed<A> {
    caller: Caller,
    action: PhantomData<A>,
}

impl Caller {
    /// The caller that a verified certificate stands for, for one request.
    pub fn identify(clients: &[Client], presented: &Presented<'_>, request_id: &RequestId) -> Option<Self> {
        let client = identify(clients, presented)?.clone();
        Some(Self { client, request_id: request_id.clone() })
    }

    /// Who calls.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// This request's id, for logs and answers.
    pub fn request_id(&self) -> &RequestId {
        &self.request_id
    }

    /// Decides whether the caller may do `A`.
    pub fn allow<A: Action>(&self) -> Result<Allowed<A>, MissingScope> {
        if self.client.scopes.contains(&A::SCOPE) {
            Ok(Allowed { caller: self.clone(), action: PhantomData })
        } else {
            Err(MissingScope(A::SCOPE))
        }
    }
}

impl<A> Allowed<A> {
    /// Whose objects the action is limited to.
    pub fn merchant(&self) -> &Merchant {
        &self.caller.client.merchant
    }

    /// The account within which request ids are unique.
    pub fn account(&self) -> &GatewayAccount {
        &self.caller.client.account
    }

    /// Who acts.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str, uri: &str, scopes: &[Scope]) -> Client {
        Client {
            name: ClientName::parse(name).expect("a name"),
            san: SanName::Uri(uri.to_owned()),
            spki_sha256: None,
            merchant: Merchant::parse("acme").expect("a merchant"),
            account: GatewayAccount::parse("SANDBOX_1").expect("an account"),
            scopes: scopes.iter().copied().collect(),
            pace: ClientPace::default(),
        }
    }

    fn found<'c>(clients: &'c [Client], uris: &[&str], dns: &[&str], spki: [u8; 32]) -> Option<&'c str> {
        let (uris, dns): (Vec<String>, Vec<String>) =
            (uris.iter().map(|s| (*s).to_owned()).collect(), dns.iter().map(|s| (*s).to_owned()).collect());
        identify(clients, &Presented { uris: &uris, dns: &dns, spki_sha256: &spki }).map(|c| c.name.as_str())
    }

    /// Whatever is configured of a client differs, its bytes differ.
    #[test]
    fn every_member_of_a_client_counts() {
        let one = client("one", "spiffe://a/one", &[Scope::ALL[0]]);
        let pace = |change: fn(&mut ClientPace)| {
            let mut pace = one.pace;
            change(&mut pace);
            Client { pace, ..one.clone() }
        };
        let others = [
            client("two", "spiffe://a/one", &[Scope::ALL[0]]),
            client("one", "spiffe://a/two", &[Scope::ALL[0]]),
            client("one", "spiffe://a/one", &[Scope::ALL[1]]),
            client("one", "spiffe://a/one", &[]),
            Client { san: SanName::Dns("spiffe://a/one".to_owned()), ..one.clone() },
            Client { spki_sha256: Some([0; 32]), ..one.clone() },
            Client { merchant: Merchant::parse("globex").expect("a merchant"), ..one.clone() },
            Client { account: GatewayAccount::parse("SANDBOX_2").expect("an account"), ..one.clone() },
            pace(|pace| pace.per_second += 1),
            pace(|pace| pace.at_once += 1),
            pace(|pace| pace.unknown_ids_per_minute += 1),
        ];
        for other in others {
            assert_ne!(other.canonical(), one.canonical(), "{other:?}");
        }
        assert_eq!(one.clone().canonical(), one.canonical());
    }

    #[test]
    fn a_name_is_compared_exactly_and_by_kind() {
        let clients = [client("one", "spiffe://a/one", &[]), client("two", "spiffe://a/two", &[])];
        assert_eq!(found(&clients, &["spiffe://a/one"], &[], [0; 32]), Some("one"));
        assert_eq!(found(&clients, &["spiffe://a/ONE"], &[], [0; 32]), None);
        assert_eq!(found(&clients, &["spiffe://a/one/"], &[], [0; 32]), None);
        assert_eq!(found(&clients, &[], &["spiffe://a/one"], [0; 32]), None);
        assert_eq!(found(&clients, &["spiffe://a/one", "spiffe://a/two"], &[], [0; 32]), None);
    }

    #[test]
    fn a_pinned_client_needs_its_key() {
        let mut pinned = client("one", "spiffe://a/one", &[]);
        pinned.spki_sha256 = Some([7; 32]);
        let clients = [pinned];
        assert_eq!(found(&clients, &["spiffe://a/one"], &[], [7; 32]), Some("one"));
        assert_eq!(found(&clients, &["spiffe://a/one"], &[], [8; 32]), None);
    }

    #[test]
    fn only_a_scope_that_is_held_is_allowed() {
        let clients = [client("one", "x:y", &[Scope::CardsRead])];
        let request_id = RequestId::make().expect("entropy");
        let uris = ["x:y".to_owned()];
        let presented = Presented { uris: &uris, dns: &[], spki_sha256: &[0; 32] };
        let caller = Caller::identify(&clients, &presented, &request_id).expect("a caller");
        assert!(caller.allow::<ReadCards>().is_ok());
        assert_eq!(caller.allow::<WriteCards>().err(), Some(MissingScope(Scope::CardsWrite)));
        assert_eq!(Scope::ALL.map(|scope| Scope::parse(scope.name())), Scope::ALL.map(Some));
    }
}
