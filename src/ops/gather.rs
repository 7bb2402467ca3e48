//! Does together what many ask for at once. What is asked for while a group is under way goes into the next one.
//! Nothing waits for company: what comes when nothing runs is done at once, alone.
//!
//! Groups are run by tasks of their own: a caller that goes away leaves nothing half done.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::error::OpError;

/// What may wait. There are no more callers than connections, so that this is never reached.
const QUEUE: usize = 4096;

/// Something that costs little more for many than for one.
pub(super) trait Grouped: Send + Sync + 'static {
    /// What one caller asks for.
    type Asked: Send + 'static;
    /// What he is told.
    type Told: Send + 'static;

    /// Does it for a group, and gives what each is told, in their order.
    fn run(&self, group: Vec<Self::Asked>) -> impl Future<Output = Vec<Result<Self::Told, OpError>>> + Send;
}

/// Where a caller waits for what he is told.
type Answer<G> = oneshot::Sender<Result<<G as Grouped>::Told, OpError>>;

/// What a group asks for, and where it waits.
type Group<G> = (Vec<<G as Grouped>::Asked>, Vec<Answer<G>>);

/// Gathers groups.
pub(super) struct Gather<G: Grouped>(Arc<Inner<G>>);

struct Inner<G: Grouped> {
    work: G,
    /// Most of a group: more make it no cheaper, and their callers wait for all of it.
    most: usize,
    /// Groups that may be under way at once.
    lanes: usize,
    queue: Mutex<Queue<G>>,
}

struct Queue<G: Grouped> {
    waiting: VecDeque<(G::Asked, Answer<G>)>,
    lanes: usize,
}

impl<G: Grouped> Gather<G> {
    /// For groups of at most `most`, of which `lanes` may be under way at once.
    pub(super) fn new(work: G, most: usize, lanes: usize) -> Self {
        let queue = Mutex::new(Queue { waiting: VecDeque::new(), lanes: 0 });
        Self(Arc::new(Inner { work, most, lanes, queue }))
    }

    /// What is done.
    pub(super) fn work(&self) -> &G {
        &self.0.work
    }

    /// Has it done with what others ask for at the same time.
    pub(super) async fn ask(&self, asked: G::Asked) -> Result<G::Told, OpError> {
        let (answer, answered) = oneshot::channel();
        self.0.enqueue(asked, answer)?;
        answered.await.unwrap_or_else(|_| Err(OpError::Internal(anyhow::anyhow!("a group was cut off"))))
    }
}

impl<G: Grouped> Inner<G> {
    fn enqueue(self: &Arc<Self>, asked: G::Asked, answer: Answer<G>) -> Result<(), OpError> {
        let mut queue = self.queue();
        if queue.waiting.len() >= QUEUE {
            return Err(OpError::Unavailable(anyhow::anyhow!("too many callers wait for the same")));
        }
        queue.waiting.push_back((asked, answer));
        if queue.lanes < self.lanes {
            queue.lanes += 1;
            drop(queue);
            tokio::spawn(Lane(Some(Arc::clone(self))).run());
        }
        Ok(())
    }

    // A panic while the lock was held leaves the queue whole: each change is one call.
    fn queue(&self) -> MutexGuard<'_, Queue<G>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits, for one group; none where the lane that asks is over.
    fn next_group(&self) -> Option<Group<G>> {
        let mut queue = self.queue();
        if queue.waiting.is_empty() {
            queue.lanes -= 1;
            return None;
        }
        let size = queue.waiting.len().min(self.most);
        Some(queue.waiting.drain(..size).unzip())
    }
}

/// Runs groups until nothing waits. Where it is cut off, the callers of its group are told, and those that still
/// wait get another lane.
struct Lane<G: Grouped>(Option<Arc<Inner<G>>>);

impl<G: Grouped> Lane<G> {
    async fn run(mut self) {
        while let Some(inner) = &self.0 {
            match inner.next_group() {
                Some((asked, answers)) => {
                    let told = inner.work.run(asked).await;
                    for (answer, told) in answers.into_iter().zip(told) {
                        // A caller that is gone asks again.
                        let _ = answer.send(told);
                    }
                }
                None => self.0 = None,
            }
        }
    }
}

impl<G: Grouped> Drop for Lane<G> {
    fn drop(&mut self) {
        let Some(inner) = self.0.take() else { return };
        let mut queue = inner.queue();
        queue.lanes -= 1;
        // They are told that they were cut off, or the next caller's lane takes them.
        if queue.lanes == 0 {
            queue.waiting.clear();
        }
    }
}

/// The same trouble, for another caller; the log has the whole of it once.
pub(super) fn as_for_another(error: &OpError) -> OpError {
    match error {
        OpError::Sealed => OpError::Sealed,
        OpError::Unavailable(why) => OpError::Unavailable(anyhow::anyhow!("{why}")),
        other => OpError::Internal(anyhow::anyhow!("{other}")),
    }
}
