//! Captures and refunds of a payment: their states and the only ways between them.

/// Which operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OperationKind {
    /// Takes authorised money.
    Capture,
    /// Gives money back.
    Refund,
}

impl OperationKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Capture, Self::Refund];

    /// The kind as the database spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Refund => "refund",
        }
    }

    /// Reads a kind.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == text)
    }

    /// Antom's name of its idempotency key.
    pub fn id_member(self) -> &'static str {
        match self {
            Self::Capture => "captureRequestId",
            Self::Refund => "refundRequestId",
        }
    }

    /// Antom's name of its sum.
    pub fn amount_member(self) -> &'static str {
        match self {
            Self::Capture => "captureAmount",
            Self::Refund => "refundAmount",
        }
    }

    /// Antom's name of its own id of it.
    pub fn gateway_id_member(self) -> &'static str {
        match self {
            Self::Capture => "captureId",
            Self::Refund => "refundId",
        }
    }
}

/// Where a capture or a refund stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationStatus {
    /// No verified answer yet: it may or may not have happened.
    Unknown,
    /// The gateway works on it.
    Processing,
    /// Done.
    Succeeded,
    /// Failed for good under this id.
    Failed,
}

impl OperationStatus {
    /// Every status.
    pub const ALL: [Self; 4] = [Self::Unknown, Self::Processing, Self::Succeeded, Self::Failed];

    /// The status as the API and the database spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Processing => "PROCESSING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
        }
    }

    /// Reads a status.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == text)
    }

    /// Whether nothing but the exception of [`next`] can follow.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// What a verified answer says of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationVerdict {
    /// Done.
    Done,
    /// Failed for good.
    Failed,
    /// Under way.
    InProcess,
    /// The gateway has not seen it so far.
    NotExist,
    /// The answer settles nothing.
    Unclear,
}

impl OperationVerdict {
    /// Every verdict.
    pub const ALL: [Self; 5] = [Self::Done, Self::Failed, Self::InProcess, Self::NotExist, Self::Unclear];
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationSource {
    /// The capture or refund call itself.
    Call,
    /// An inquiry.
    Inquiry,
    /// A notification.
    Notification,
}

impl OperationSource {
    /// Every source.
    pub const ALL: [Self; 3] = [Self::Call, Self::Inquiry, Self::Notification];

    /// The source as the API and the database spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Inquiry => "inquiry",
            Self::Notification => "notification",
        }
    }
}

/// The status that follows, or `None` where the verdict changes nothing. After a final status only a
/// verified inquiry changes anything, and only from FAILED to SUCCEEDED: money has moved that was thought
/// not to (the caller raises an alarm).
pub fn next(
    now: OperationStatus,
    verdict: OperationVerdict,
    source: OperationSource,
) -> Option<OperationStatus> {
    use OperationStatus::{Failed, Processing, Succeeded, Unknown};
    match (now, verdict, source) {
        (Unknown | Processing, OperationVerdict::Done, _) => Some(Succeeded),
        (Unknown | Processing, OperationVerdict::Failed, _) => Some(Failed),
        (Unknown, OperationVerdict::InProcess, _) => Some(Processing),
        (Failed, OperationVerdict::Done, OperationSource::Inquiry) => Some(Succeeded),
        _ => None,
    }
}

/// Whether a word of the gateway contradicts what is settled, so that an inquiry must tell.
pub fn contradicts(now: OperationStatus, verdict: OperationVerdict) -> bool {
    matches!(
        (now, verdict),
        (OperationStatus::Failed, OperationVerdict::Done)
            | (OperationStatus::Succeeded, OperationVerdict::Failed)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All 60 cells.
    #[test]
    fn every_pair_is_decided() {
        use OperationStatus::{Failed as F, Processing as P, Succeeded as S, Unknown as U};
        for source in OperationSource::ALL {
            let late = (source == OperationSource::Inquiry).then_some(S);
            for (now, row) in [
                (U, [Some(S), Some(F), Some(P), None, None]),
                (P, [Some(S), Some(F), None, None, None]),
                (S, [None; 5]),
                (F, [late, None, None, None, None]),
            ] {
                for (verdict, expected) in OperationVerdict::ALL.into_iter().zip(row) {
                    assert_eq!(next(now, verdict, source), expected, "{now:?} {verdict:?} {source:?}");
                }
            }
        }
    }

    #[test]
    fn a_status_and_a_kind_have_one_spelling() {
        let again = OperationStatus::ALL.map(|status| OperationStatus::parse(status.name()));
        assert_eq!(again, OperationStatus::ALL.map(Some));
        let again = OperationKind::ALL.map(|kind| OperationKind::parse(kind.name()));
        assert_eq!(again, OperationKind::ALL.map(Some));
        assert!(OperationStatus::parse("succeeded").is_none() && OperationKind::parse("Capture").is_none());
    }
}
