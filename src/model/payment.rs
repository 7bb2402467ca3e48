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
    /// A notification.
    Notification,
    /// A cancel.
    Cancel,
}

impl Source {
    /// Every source.
    pub const ALL: [Self; 4] = [Self::Pay, Self::Inquiry, Self::Notification, Self::Cancel];

    /// The source as the API and the database spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pay => "pay",
            Self::Inquiry => "inquiry",
            Self::Notification => "notification",
            Self::Cancel => "cancel",
        }
    }
}

/// The status that follows, or `None` where the verdict changes nothing.
///
/// After a final state only a verified inquiry or cancel changes anything: AUTHORIZED to CANCELLED, and, by
/// an inquiry, FAILED to AUTHORIZED (the gateway has a charge that it had denied; the caller raises an
/// alarm). A notification that disagrees with a final state changes nothing: see [`contradicts`].
pub fn next(now: Status, verdict: Verdict, source: Source) -> Option<Status> {
    match (now, verdict, source) {
        (Status::Unknown | Status::Processing, Verdict::Paid, _) => Some(Status::Authorized),
        (Status::Unknown | Status::Processing, Verdict::Failed, _) => Some(Status::Failed),
        (Status::Unknown | Status::Processing, Verdict::Cancelled, _) => Some(Status::Cancelled),
        (Status::Unknown, Verdict::InProcess, _) => Some(Status::Processing),
        (Status::Authorized, Verdict::Cancelled, Source::Inquiry | Source::Cancel) => Some(Status::Cancelled),
        (Status::Failed, Verdict::Paid, Source::Inquiry) => Some(Status::Authorized),
        _ => None,
    }
}

/// Whether a word of the gateway contradicts what is settled, so that an inquiry must tell. A success that
/// comes after a cancel is late and no contradiction (reference, section 5).
pub fn contradicts(now: Status, verdict: Verdict) -> bool {
    matches!(
        (now, verdict),
        (Status::Failed, Verdict::Paid)
            | (Status::Authorized, Verdict::Failed | Verdict::Cancelled)
            | (Status::Cancelled, Verdict::Failed)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All 120 cells, so that a change of the machine is a change of this table.
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
        let open = [Some(A), Some(F), Some(P), Some(C), None, None];
        let waits = [Some(A), Some(F), None, Some(C), None, None];
        let voids = [None, None, None, Some(C), None, None];
        let denies = [Some(A), None, None, None, None, None];
        let mut table = Vec::new();
        for source in Source::ALL {
            let inquired = source == Source::Inquiry;
            let ends = inquired || source == Source::Cancel;
            table.push((U, source, open));
            table.push((P, source, waits));
            table.push((A, source, if ends { voids } else { [None; 6] }));
            table.push((F, source, if inquired { denies } else { [None; 6] }));
            table.push((C, source, [None; 6]));
        }
        assert_eq!(table.len() * verdicts.len(), 120);
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
