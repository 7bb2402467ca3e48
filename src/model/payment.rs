//! A payment's states and the only ways between them.

/// Where a payment stands. Ordered by rank: a change goes up, with the two exceptions of [`next`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// No verified answer yet. A charge may or may not exist.
    Unknown,
    /// The gateway has it; the buyer or an issuer must still act.
    Processing,
    /// Authorised (and captured, under automatic capture).
    Authorized,
    /// Failed for good under this id.
    Failed,
    /// Cancelled.
    Cancelled,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 5] =
        [Self::Unknown, Self::Processing, Self::Authorized, Self::Failed, Self::Cancelled];

    /// The status as the API and the database spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Processing => "PROCESSING",
            Self::Authorized => "AUTHORIZED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }

    /// Reads a status.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == text)
    }

    /// Whether nothing but the two exceptions of [`next`] can follow.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Authorized | Self::Failed | Self::Cancelled)
    }
}

/// What a verified answer says of the payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is paid.
    Paid,
    /// It failed for good.
    Failed,
    /// It is under way; never repeat it.
    InProcess,
    /// It was cancelled.
    Cancelled,
    /// The gateway has not seen it so far.
    NotExist,
    /// The answer settles nothing.
    Unclear,
}

/// Which call the answer was to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The pay call itself.
    Pay,
    /// An inquiry.
    Inquiry,
}

impl Source {
    /// The source as the API and the database spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pay => "pay",
            Self::Inquiry => "inquiry",
        }
    }
}

/// The status that follows, or `None` where the verdict changes nothing.
///
/// After a final state only a verified inquiry changes anything: AUTHORIZED to CANCELLED, and FAILED to
/// AUTHORIZED (the gateway has a charge that it had denied; the caller raises an alarm).
pub fn next(now: Status, verdict: Verdict, source: Source) -> Option<Status> {
    match (now, verdict, source) {
        (Status::Unknown | Status::Processing, Verdict::Paid, _) => Some(Status::Authorized),
        (Status::Unknown | Status::Processing, Verdict::Failed, _) => Some(Status::Failed),
        (Status::Unknown | Status::Processing, Verdict::Cancelled, _) => Some(Status::Cancelled),
        (Status::Unknown, Verdict::InProcess, _) => Some(Status::Processing),
        (Status::Authorized, Verdict::Cancelled, Source::Inquiry) => Some(Status::Cancelled),
        (Status::Failed, Verdict::Paid, Source::Inquiry) => Some(Status::Authorized),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All 60 cells, so that a change of the machine is a change of this table.
    #[test]
    fn every_pair_is_decided() {
        use Status::{Authorized as A, Cancelled as C, Failed as F, Processing as P, Unknown as U};
        let verdicts = [
            Verdict::Paid,
            Verdict::Failed,
            Verdict::InProcess,
            Verdict::Cancelled,
            Verdict::NotExist,
            Verdict::Unclear,
        ];
        let table = [
            (U, Source::Pay, [Some(A), Some(F), Some(P), Some(C), None, None]),
            (U, Source::Inquiry, [Some(A), Some(F), Some(P), Some(C), None, None]),
            (P, Source::Pay, [Some(A), Some(F), None, Some(C), None, None]),
            (P, Source::Inquiry, [Some(A), Some(F), None, Some(C), None, None]),
            (A, Source::Pay, [None; 6]),
            (A, Source::Inquiry, [None, None, None, Some(C), None, None]),
            (F, Source::Pay, [None; 6]),
            (F, Source::Inquiry, [Some(A), None, None, None, None, None]),
            (C, Source::Pay, [None; 6]),
            (C, Source::Inquiry, [None; 6]),
        ];
        for (status, source, row) in table {
            for (verdict, expected) in verdicts.into_iter().zip(row) {
                assert_eq!(next(status, verdict, source), expected, "{status:?} {source:?} {verdict:?}");
            }
        }
    }

    #[test]
    fn a_status_has_one_spelling() {
        assert_eq!(Status::ALL.map(|status| Status::parse(status.name())), Status::ALL.map(Some));
        assert_eq!(Status::parse("unknown"), None);
    }
}
