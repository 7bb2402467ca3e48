//! A gateway that is asked less often once it says that it is asked too often (reference, section 11.2):
//! inquiries wait, twice as long each time, a little off so that replicas do not come back together. What moves
//! money, or gives it back, is never held back: its caller has decided.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::base::clock::SharedClock;
use crate::base::entropy;
use crate::base::secret::SecretBuf;

use super::antom::answer::asks_for_fewer;
use super::antom::verify::{NotVerified, SignatureHeaders, VerifiedText};
use super::{Call, Exchange, Gateway, Signed};

/// The first pause, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(120));

/// Another gateway, with patience.
pub struct Patient {
    inner: Arc<dyn Gateway>,
    clock: SharedClock,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    until: Option<Instant>,
    /// How long the newest pause was.
    pause: Duration,
}

impl Patient {
    /// Holds back inquiries to `inner` where it asks for that.
    pub fn new(inner: Arc<dyn Gateway>, clock: SharedClock) -> Self {
        Self { inner, clock, held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waits(&self, call: Call) -> bool {
        matches!(call, Call::InquiryPayment | Call::InquiryRefund)
            && self.held().until.is_some_and(|until| self.clock.instant() < until)
    }

    fn heard(&self, asks_for_fewer: bool) {
        let mut held = self.held();
        if !asks_for_fewer {
            *held = Held::default();
            return;
        }
        // Many answers may say it at once; it is one word.
        if held.until.is_some_and(|until| self.clock.instant() < until) {
            return;
        }
        held.pause = (held.pause * 2).clamp(PAUSE.0, PAUSE.1);
        let [spread] = entropy::array::<1>().unwrap_or_default();
        let spread = held.pause.mul_f64(f64::from(spread) / 512.0);
        held.until = Some(self.clock.instant() + held.pause + spread);
        let seconds = held.pause.as_secs();
        tracing::warn!(
            seconds,
            alarm = held.pause == PAUSE.1,
            "the gateway asks for fewer calls; inquiries wait"
        );
    }
}

impl Gateway for Patient {
    fn sign(&self, call: Call, body: SecretBuf) -> Signed {
        self.inner.sign(call, body)
    }

    fn send(&self, signed: Signed) -> Pin<Box<dyn Future<Output = Exchange> + Send + '_>> {
        Box::pin(async move {
            if self.waits(signed.call) {
                return Exchange::NotSent("the gateway has asked for fewer calls");
            }
            let exchange = self.inner.send(signed).await;
            if let Exchange::Answered(answer) = &exchange {
                self.heard(asks_for_fewer(&answer.verified()));
            }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::antom::verify;
    use super::*;
    use crate::base::clock::{Millis, SetClock};

    /// Says the same to everybody, and counts.
    struct Says(Mutex<&'static str>, AtomicUsize);

    impl Gateway for Says {
        fn sign(&self, call: Call, body: SecretBuf) -> Signed {
            Signed { call, body, time: Millis(0), signature: None }
        }

        fn send(&self, _: Signed) -> Pin<Box<dyn Future<Output = Exchange> + Send + '_>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            let code = *self.0.lock().expect("not poisoned");
            let text = format!(r#"{{"result":{{"resultStatus":"U","resultCode":"{code}"}}}}"#);
            Box::pin(std::future::ready(Exchange::Answered(verify::tests_only(&text).into())))
        }

        fn verify_notification(
            &self,
            _: &str,
            _: &SignatureHeaders<'_>,
            _: &[u8],
        ) -> Result<VerifiedText, NotVerified> {
            Err(NotVerified::MissingHeader)
        }
    }

    #[tokio::test]
    async fn inquiries_wait_where_the_gateway_asks_for_fewer_and_nothing_else_does() {
        let inner = Arc::new(Says(Mutex::new("REQUEST_TRAFFIC_EXCEED_LIMIT"), AtomicUsize::new(0)));
        let clock = SetClock::at(Millis(0));
        let gateway = Patient::new(inner.clone(), clock.clone());
        let call = async |call| {
            gateway.call(call, SecretBuf::with_capacity(0)).await;
            inner.1.swap(0, Ordering::Relaxed) == 1
        };
        let later = |seconds: u64| clock.monotonic.fetch_add(seconds, Ordering::Relaxed);
        assert!(call(Call::InquiryPayment).await);
        // 2 s and up to half as much again, then 4, 8, … 120.
        for (short, long) in [(1, 2), (3, 3), (7, 5), (15, 9), (31, 17), (63, 33), (119, 61), (119, 61)] {
            later(short);
            for inquiry in [Call::InquiryPayment, Call::InquiryRefund] {
                assert!(!call(inquiry).await, "{short}");
            }
            for other in [Call::Pay, Call::Cancel, Call::Capture, Call::Refund] {
                assert!(call(other).await);
            }
            later(long);
            assert!(call(Call::InquiryRefund).await, "{short} + {long}");
        }
        later(181);
        *inner.0.lock().expect("not poisoned") = "UNKNOWN_EXCEPTION";
        for _ in 0..3 {
            assert!(call(Call::InquiryPayment).await, "any other word ends it");
        }
    }
}
