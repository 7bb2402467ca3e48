//! Amounts that make the sandbox misbehave, so that a client's recovery can be tested.
//!
//! A trigger is two facts: what is done with the payment, and how the answer is spoilt. It decides once
//! for a `paymentRequestId`; a repeat is answered as an ordinary one.
#![doc = concat!("\n```text\n", include_str!("cards.txt"), "```")]

use super::cards::Decline;
use super::ledger::Kind;

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
    /// The truth, after the first notification of it.
    TruthAfterNotice,
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

/// How cancels are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cancel {
    /// Truly.
    Told,
    /// The first one is done and answered like this.
    Done(Says),
    /// The first one is not done and answered like this.
    NotDone(Says),
    /// None is ever done.
    Refused(Code),
}

/// What becomes of the notifications of a payment, a capture or a refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notices {
    /// One, soon after the end.
    Once,
    /// Two that are alike.
    Twice,
    /// One, at once.
    Early,
    /// One of a success with another amount.
    OtherAmount,
    /// One, much later.
    Delayed,
    /// None at all.
    Never,
    /// A failure after the success.
    FailsAfter,
    /// One whose signature is that of another text.
    WronglySigned,
    /// A dispute and its judgement after the success.
    Disputed,
    /// One of an unknown type before the true one.
    UnknownType,
    /// One of `PAYMENT_PENDING` before the true one.
    PendingFirst,
    /// One that spells `cavv` as `caav`.
    Caav,
}

/// What the sandbox makes of a payment that ends well, beyond what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extra {
    /// Nothing.
    None,
    /// Mastercard's Transaction Link ID.
    TransactionLink,
    /// An authorisation that has expired already, under manual capture.
    Expired,
    /// Results of 3DS, without a challenge.
    ThreeDs,
}

/// What is done with a capture or a refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operates {
    /// What was asked for.
    Does,
    /// The ledger stays as it is.
    Nothing,
    /// Fails with this code.
    Fails(Code),
    /// Stays in process until the second inquiry or a repeat; then ends with the code.
    Waits(Code),
    /// Stays in process for the time of a slow answer; then succeeds.
    Later,
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
    /// How cancels are answered.
    pub cancel: Cancel,
    /// What becomes of its notifications.
    pub notices: Notices,
    /// What a success has that others have not.
    pub extra: Extra,
}

/// One amount of a capture or a refund and what it makes the sandbox do.
#[derive(Debug, Clone, Copy)]
pub(super) struct OperationTrigger {
    /// The last two digits of the amount.
    pub suffix: &'static str,
    /// What is done with the money.
    pub acts: Operates,
    /// How the request is answered.
    pub says: Says,
    /// What becomes of its notification.
    pub notices: Notices,
}

/// What the amounts of captures that mean something begin with.
pub(super) const CAPTURE_PREFIX: &str = "6601";
/// What the amounts of refunds that mean something begin with.
pub(super) const REFUND_PREFIX: &str = "6602";

/// The trigger of a capture's or a refund's amount, if it is one.
pub(super) fn find_operation(kind: Kind, amount: &str) -> Option<&'static OperationTrigger> {
    let prefix = match kind {
        Kind::Capture => CAPTURE_PREFIX,
        Kind::Refund => REFUND_PREFIX,
    };
    let suffix = amount.strip_prefix(prefix)?;
    OPERATION_TRIGGERS.iter().find(|trigger| trigger.suffix == suffix)
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
    let (inquiry, cancel) = (Inquiry::Told, Cancel::Told);
    Trigger { amount, acts, says, inquiry, cancel, notices: Notices::Once, extra: Extra::None }
}

const fn lost(amount: &'static str, inquiry: Inquiry, cancel: Cancel) -> Trigger {
    Trigger { inquiry, cancel, ..on(amount, Acts::Pays, Says::Closed) }
}

const fn on_cancel(amount: &'static str, cancel: Cancel) -> Trigger {
    Trigger { cancel, ..on(amount, Acts::Pays, Says::Truth) }
}

const fn notified(amount: &'static str, notices: Notices) -> Trigger {
    Trigger { notices, ..on(amount, Acts::Pays, Says::Truth) }
}

const fn operation(suffix: &'static str, acts: Operates, says: Says) -> OperationTrigger {
    OperationTrigger { suffix, acts, says, notices: Notices::Once }
}

const fn operation_notified(suffix: &'static str, notices: Notices) -> OperationTrigger {
    OperationTrigger { suffix, acts: Operates::Does, says: Says::Truth, notices }
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
    Trigger { extra: Extra::TransactionLink, ..on("660033", Acts::Pays, Says::Truth) },
    Trigger { extra: Extra::Expired, ..on("660034", Acts::Pays, Says::Truth) },
    on("660041", Acts::Pays, Says::Instead(unclear("UNKNOWN_EXCEPTION"))),
    on("660042", Acts::Waits(Code { status: "S", code: "SUCCESS" }), Says::Truth),
    on("660043", Acts::Waits(failure("PROCESS_FAIL")), Says::Truth),
    on("660044", Acts::Nothing, Says::Instead(unclear("REQUEST_TRAFFIC_EXCEED_LIMIT"))),
    on("660051", Acts::Nothing, Says::Instead(failure("REPEAT_REQ_INCONSISTENT"))),
    on("660052", Acts::Pays, Says::Instead(failure("REPEAT_REQ_INCONSISTENT"))),
    on("660053", Acts::Closes, Says::Truth),
    lost("660061", Inquiry::FirstSilent, Cancel::Told),
    lost("660062", Inquiry::Unclear, Cancel::Told),
    lost("660063", Inquiry::Unclear, Cancel::Done(Says::Silence)),
    on_cancel("660064", Cancel::Refused(failure("CANCEL_WINDOW_EXCEED"))),
    on_cancel("660065", Cancel::Done(Says::Instead(unclear("UNKNOWN_EXCEPTION")))),
    on_cancel("660066", Cancel::NotDone(Says::Instead(unclear("UNKNOWN_EXCEPTION")))),
    on_cancel("660067", Cancel::NotDone(Says::Silence)),
    on_cancel("660068", Cancel::Done(Says::Unsigned)),
    on_cancel("660069", Cancel::Done(Says::OtherId)),
    declined("660071", "USER_BALANCE_NOT_ENOUGH", "51", None),
    declined("660072", "DO_NOT_HONOR", "05", Some("03")),
    declined("660073", "ISSUER_REJECTS_TRANSACTION", "R1", None),
    AUTHENTICATION_REQUIRED,
    on("660075", Acts::AsksForThreeDs, Says::Truth),
    notified("660081", Notices::Twice),
    Trigger { notices: Notices::Early, ..on("660082", Acts::Pays, Says::TruthAfterNotice) },
    notified("660083", Notices::OtherAmount),
    notified("660084", Notices::Delayed),
    notified("660085", Notices::Never),
    notified("660086", Notices::FailsAfter),
    notified("660087", Notices::WronglySigned),
    notified("660088", Notices::Disputed),
    notified("660089", Notices::UnknownType),
    notified("660090", Notices::PendingFirst),
    Trigger { extra: Extra::ThreeDs, ..notified("660091", Notices::Caav) },
];

/// Every trigger of captures and refunds, in the order of `cards.txt`.
pub(super) const OPERATION_TRIGGERS: &[OperationTrigger] = &[
    operation("01", Operates::Does, Says::TruthLate),
    operation("02", Operates::Nothing, Says::Silence),
    operation("03", Operates::Does, Says::Closed),
    operation("04", Operates::Does, Says::Silence),
    operation("06", Operates::Nothing, Says::Closed),
    operation("11", Operates::Nothing, Says::ServerError),
    operation("12", Operates::Does, Says::ServerError),
    operation("21", Operates::Does, Says::Unsigned),
    operation("22", Operates::Does, Says::WronglySigned),
    operation("23", Operates::Nothing, Says::UnsignedFailure),
    operation("24", Operates::Does, Says::OtherId),
    operation("25", Operates::Does, Says::OtherAmount),
    operation("31", Operates::Fails(failure("PROCESS_FAIL")), Says::ResultOnly),
    operation("41", Operates::Does, Says::Instead(unclear("UNKNOWN_EXCEPTION"))),
    operation("42", Operates::Waits(Code { status: "S", code: "SUCCESS" }), Says::Truth),
    operation("43", Operates::Waits(failure("PROCESS_FAIL")), Says::Truth),
    operation("44", Operates::Nothing, Says::Instead(unclear("REQUEST_TRAFFIC_EXCEED_LIMIT"))),
    operation("45", Operates::Later, Says::Truth),
    operation("51", Operates::Nothing, Says::Instead(failure("REPEAT_REQ_INCONSISTENT"))),
    operation("52", Operates::Does, Says::Instead(failure("REPEAT_REQ_INCONSISTENT"))),
    operation_notified("81", Notices::Twice),
    OperationTrigger { notices: Notices::Early, ..operation("82", Operates::Does, Says::TruthAfterNotice) },
    operation_notified("83", Notices::OtherAmount),
    operation_notified("84", Notices::Delayed),
    operation_notified("85", Notices::Never),
    operation_notified("86", Notices::FailsAfter),
    operation_notified("87", Notices::WronglySigned),
    operation_notified("89", Notices::UnknownType),
];
