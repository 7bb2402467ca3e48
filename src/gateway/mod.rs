//! The way out to the payment gateway: one call at a time, signed out and verified in. What an exchange
//! means for a payment is decided above; here it is only told apart whether a verified answer came,
//! whether nothing was sent, or whether nobody can know.

use std::future::Future;
use std::pin::Pin;

use crate::base::clock::Millis;
use crate::base::secret::SecretBuf;

pub mod antom;
pub mod measured;
pub mod patient;
pub mod reach;

use antom::verify::{NotVerified, SignatureHeaders, VerifiedText};

/// Which of the gateway's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Authorise a payment.
    Pay,
    /// Ask what became of one.
    InquiryPayment,
    /// End one, whatever became of it.
    Cancel,
    /// Take authorised money.
    Capture,
    /// Give money back.
    Refund,
    /// Ask what became of a refund.
    InquiryRefund,
}

impl Call {
    /// The call's name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pay => "pay",
            Self::InquiryPayment => "inquiry_payment",
            Self::Cancel => "cancel",
            Self::Capture => "capture",
            Self::Refund => "refund",
            Self::InquiryRefund => "inquiry_refund",
        }
    }
}

/// A call that is signed, and not sent yet.
pub struct Signed {
    /// Which call.
    pub call: Call,
    /// The bytes that are sent.
    pub body: SecretBuf,
    /// The time that the signature names.
    pub time: Millis,
    /// The signature's header; none where it could not be made.
    pub signature: Option<String>,
}

/// How a call ended.
pub enum Exchange {
    /// An answer whose signature is right.
    Answered(VerifiedText),
    /// Provably not one byte of the request left this process.
    NotSent(&'static str),
    /// The request may have arrived; there is no answer to trust.
    NoAnswer(&'static str),
}

/// A gateway account that can be called.
pub trait Gateway: Send + Sync {
    /// Signs a call, which is long work for the processor. Nothing is sent.
    fn sign(&self, call: Call, body: SecretBuf) -> Signed;

    /// Sends what was signed just now as it is and waits for the answer, within the account's time limits.
    fn send(&self, signed: Signed) -> Pin<Box<dyn Future<Output = Exchange> + Send + '_>>;

    /// Signs and sends.
    fn call(&self, call: Call, body: SecretBuf) -> Pin<Box<dyn Future<Output = Exchange> + Send + '_>> {
        self.send(self.sign(call, body))
    }

    /// Checks a notification over the path that the gateway called. Nothing of it is read before.
    fn verify_notification(
        &self,
        path: &str,
        headers: &SignatureHeaders<'_>,
        body: &[u8],
    ) -> Result<VerifiedText, NotVerified>;
}
