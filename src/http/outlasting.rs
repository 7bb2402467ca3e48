//! Work that outlasts the connection that it was begun for. What a request comes to is dropped with its
//! connection, in the middle of whatever it does: a refusal would lose its row, a caller who guesses would
//! never be held back, and a commit that is dropped leaves a chain of the audit trail for ever.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::ops::Vault;

/// A request's work. As long as its connection is there it runs in the connection's task, and costs nothing
/// more; if it is dropped half-way, it is given a task of its own and brought to its end.
pub struct Outlasting<F: Future<Output: Send> + Send + 'static> {
    work: Option<Pin<Box<F>>>,
    vault: Arc<Vault>,
}

impl<F: Future<Output: Send> + Send + 'static> Outlasting<F> {
    /// Work of this vault, which waits for it before it ends.
    pub fn new(vault: Arc<Vault>, work: F) -> Self {
        Self { work: Some(Box::pin(work)), vault }
    }
}

impl<F: Future<Output: Send> + Send + 'static> Future for Outlasting<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // Not there during its turn: what panics is not begun again.
        let Some(mut work) = self.work.take() else { return Poll::Pending };
        let turn = work.as_mut().poll(context);
        if turn.is_pending() {
            self.work = Some(work);
        }
        turn
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for Outlasting<F> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            self.vault.outlast(work);
        }
    }
}
