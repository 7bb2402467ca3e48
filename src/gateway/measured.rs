//! A gateway whose calls are counted and timed.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use crate::base::secret::SecretBuf;
use crate::metrics::Metrics;

use super::antom::verify::{NotVerified, SignatureHeaders, VerifiedText};
use super::{Call, Exchange, Gateway, Signed};

/// Another gateway, measured.
pub struct Measured {
    inner: Arc<dyn Gateway>,
    metrics: Arc<Metrics>,
}

impl Measured {
    /// Measures the calls to `inner`.
    pub fn new(inner: Arc<dyn Gateway>, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }
}

impl Gateway for Measured {
    fn sign(&self, call: Call, body: SecretBuf) -> Signed {
        self.inner.sign(call, body)
    }

    fn send(&self, signed: Signed) -> Pin<Box<dyn Future<Output = Exchange> + Send + '_>> {
        Box::pin(async move {
            let (started, call) = (Instant::now(), signed.call);
            let exchange = self.inner.send(signed).await;
            let outcome = match &exchange {
                Exchange::Answered(_) => "answered",
                Exchange::NotSent(_) => "not_sent",
                Exchange::NoAnswer(_) => "no_answer",
            };
            self.metrics.gateway_call(call.name(), outcome, started.elapsed());
            exchange
        })
    }

    fn verify_notification(
        &self,
        path: &str,
        headers: &SignatureHeaders<'_>,
        body: &[u8],
    ) -> Result<VerifiedText, NotVerified> {
        self.inner.verify_notification(path, headers, body)
    }
}
