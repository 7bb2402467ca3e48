//! What runs on after its caller has gone, and must have come to its end before the process may.

use std::sync::Arc;

use tokio::sync::watch;

/// Counts what runs, and tells it when to end.
pub(super) struct Running {
    count: watch::Sender<usize>,
    closing: watch::Sender<bool>,
}

impl Default for Running {
    fn default() -> Self {
        Self { count: watch::Sender::new(0), closing: watch::Sender::new(false) }
    }
}

/// Something that runs, until this is dropped.
pub(super) struct Guard<'a>(&'a Running);

/// The same, which borrows nothing.
pub(super) struct Apart(Arc<Running>);

impl Running {
    /// Something has begun.
    pub fn begin(&self) -> Guard<'_> {
        self.count.send_modify(|count| *count = count.saturating_add(1));
        Guard(self)
    }

    /// As [`Self::begin`], for what goes its own way.
    pub fn begin_apart(self: &Arc<Self>) -> Apart {
        self.count.send_modify(|count| *count = count.saturating_add(1));
        Apart(Arc::clone(self))
    }

    fn end(&self) {
        self.count.send_modify(|count| *count = count.saturating_sub(1));
    }

    /// Tells everything to end, and waits until nothing runs.
    pub async fn finish(&self) {
        self.closing.send_replace(true);
        // The sender lives in `self`, so the wait ends only by what it waits for.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Returns when everything shall end.
    pub async fn closing(&self) {
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.0.end();
    }
}
