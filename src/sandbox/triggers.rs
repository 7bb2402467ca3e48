//! Amounts that make the sandbox misbehave, so that a client's recovery can be tested.
//!
//! A trigger is two facts: what is done with the payment, and how the answer is spoilt. It decides once
//! for a `paymentRequestId`; a repeat is answered as an ordinary one.
#![doc = concat!("\n```text\n", include_str!("cards.txt"), "```")]

use super::cards::Decline;

/// What is done with the payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Acts {
    /// What the card and the request ask for.
    Pays,
    /// The ledger stays as it is.
    Nothing,
    /// As `Pays`, but only when the client has given up.
    Late,
    /// Stays in process, without a page, until the second inquiry or a repeat; then ends with the code.
    Waits(Code),
    /// Fails with this code.
    Fails(Code, Option<Decline>),
    /// As `Pays` with 3DS if the request allows it, else fails for the want of it.
    AsksForThreeDs,
    /// The id is cancelled before anything was paid.
    Closes,
}

/// How the answer is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Says {
    /// The truth, at once.
    Truth,
    /// The truth, late.
    TruthLate,
    /// The truth without its `networkTransactionId`.
    TruthWithoutNetworkId,
    /// No more than `result`.
    ResultOnly,
    /// Another result than the true one, signed.
    Instead(Code),
    /// Nothing; the connection stays open for long.
    Silence,
    /// Nothing; the connection is closed at once.
    Closed,
    /// HTTP 500.
    ServerError,
    /// HTTP 302 to another host.
    Redirect,
    /// The truth, not signed.
    Unsigned,
    /// The truth, with the signature of another text.
    WronglySigned,
    /// A failure, not signed.
    UnsignedFailure,
    /// A success of another payment.
    OtherId,
    /// A success with another amount.
    OtherAmount,
    /// Signed bytes that are no JSON.
    Garbage,
    /// The first half of the truth.
    Truncated,
    /// No bytes.
    Empty,
    /// The truth and more than a mebibyte of padding.
    Oversized,
    /// The truth and card data that no gateway should send back.
    Echo,
}

/// How inquiries into a payment are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inquiry {
    /// Truly.
    Told,
    /// The first one not at all.
    FirstSilent,
    /// `U` until the payment is cancelled.
    Unclear,
}

/// A result code with the status that goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code {
    /// `S`, `F` or `U`.
    pub status: &'static str,
    /// Such as `PROCESS_FAIL`.
    pub code: &'static str,
}

/// One amount and what it makes the sandbox do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trigger {
    /// The `paymentAmount.value` that sets it off.
    pub amount: &'static str,
    /// What is done with the payment.
    pub acts: Acts,
    /// How the pay request is answered.
    pub says: Says,
    /// How inquiries are answered.
    pub inquiry: Inquiry,
    /// The cancel that ends the payment is not answered.
    pub silent_cancel: bool,
}

/// The trigger of an amount, if it is one.
pub(super) fn find(amount: &str) -> Option<&'static Trigger> {
    TRIGGERS.iter().find(|trigger| trigger.amount == amount)
}

const fn failure(code: &'static str) -> Code {
    Code { status: "F", code }
}

const fn unclear(code: &'static str) -> Code {
    Code { status: "U", code }
}

const fn on(amount: &'static str, acts: Acts, says: Says) -> Trigger {
    Trigger { amount, acts, says, inquiry: Inquiry::Told, silent_cancel: false }
}

const fn lost(amount: &'static str, inquiry: Inquiry, silent_cancel: bool) -> Trigger {
    Trigger { amount, acts: Acts::Pays, says: Says::Closed, inquiry, silent_cancel }
}

const fn declined(
    amount: &'static str,
    code: &'static str,
    raw: &'static str,
    advice: Option<&'static str>,
) -> Trigger {
    let decline = Decline { refusal_code: raw, merchant_advice: advice };
    on(amount, Acts::Fails(failure(code), Some(decline)), Says::Truth)
}

/// A decline for the want of 3DS.
pub(super) const AUTHENTICATION_REQUIRED: Trigger = declined("660074", "AUTHENTICATION_REQUIRED", "1A", None);

/// Every trigger, in the order of `cards.txt`.
pub(super) const TRIGGERS: &[Trigger] = &[
    on("11", Acts::Fails(failure("RISK_REJECT"), None), Says::Truth),
    on("660001", Acts::Pays, Says::TruthLate),
    on("660002", Acts::Nothing, Says::Silence),
    on("660003", Acts::Pays, Says::Closed),
    on("660004", Acts::Pays, Says::Silence),
    on("660005", Acts::Late, Says::Silence),
    on("660006", Acts::Nothing, Says::Closed),
    on("660011", Acts::Nothing, Says::ServerError),
    on("660012", Acts::Pays, Says::ServerError),
    on("660013", Acts::Nothing, Says::Redirect),
    on("660021", Acts::Pays, Says::Unsigned),
    on("660022", Acts::Pays, Says::WronglySigned),
    on("660023", Acts::Nothing, Says::UnsignedFailure),
    on("660024", Acts::Pays, Says::OtherId),
    on("660025", Acts::Pays, Says::OtherAmount),
    on("660026", Acts::Pays, Says::Garbage),
    on("660027", Acts::Pays, Says::Truncated),
    on("660028", Acts::Pays, Says::Empty),
    on("660029", Acts::Pays, Says::Oversized),
    on("660030", Acts::Pays, Says::Echo),
    on("660031", Acts::Fails(failure("PROCESS_FAIL"), None), Says::ResultOnly),
    on("660032", Acts::Pays, Says::TruthWithoutNetworkId),
    on("660041", Acts::Pays, Says::Instead(unclear("UNKNOWN_EXCEPTION"))),
    on("660042", Acts::Waits(Code { status: "S", code: "SUCCESS" }), Says::Truth),
    on("660043", Acts::Waits(failure("PROCESS_FAIL")), Says::Truth),
    on("660044", Acts::Nothing, Says::Instead(unclear("REQUEST_TRAFFIC_EXCEED_LIMIT"))),
    on("660051", Acts::Nothing, Says::Instead(failure("REPEAT_REQ_INCONSISTENT"))),
    on("660052", Acts::Pays, Says::Instead(failure("REPEAT_REQ_INCONSISTENT"))),
    on("660053", Acts::Closes, Says::Truth),
    lost("660061", Inquiry::FirstSilent, false),
    lost("660062", Inquiry::Unclear, false),
    lost("660063", Inquiry::Unclear, true),
    declined("660071", "USER_BALANCE_NOT_ENOUGH", "51", None),
    declined("660072", "DO_NOT_HONOR", "05", Some("03")),
    declined("660073", "ISSUER_REJECTS_TRANSACTION", "R1", None),
    AUTHENTICATION_REQUIRED,
    on("660075", Acts::AsksForThreeDs, Says::Truth),
];
