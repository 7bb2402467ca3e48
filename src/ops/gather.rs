//! Does together what many ask for at once. What is asked for while a group is under way goes into the next one.
//! Nothing waits for company: what comes when nothing runs is done at once, alone.
//!
//! Groups are run by tasks of their own: a caller that goes away leaves nothing half done. A group that takes too
//! long is given up, so that a connection on which nothing comes any more does not hold up everybody.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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

/// Something that is committed for a group, all of it or nothing.
pub(super) trait Commits: Sync {
    /// What one caller asks for.
    type Asked: Send + Sync;
    /// What he is told.
    type Told: Send;

    /// Commits a group; what each is told, in their order.
    fn commit(&self, group: &[Self::Asked]) -> impl Future<Output = Result<Vec<Self::Told>, Failed>> + Send;
}

/// Why a group was not committed.
pub(super) struct Failed {
    error: OpError,
    /// Whether one of it may be to blame, so that each is committed alone.
    retry: bool,
}

impl Failed {
    /// Nothing can be committed now, or nobody can know whether it is.
    pub(super) fn for_all(error: impl Into<OpError>) -> Self {
        Self { error: error.into(), retry: false }
    }

    /// Nothing was committed, and one of the group may be to blame.
    pub(super) fn for_one(error: impl Into<OpError>) -> Self {
        Self { error: error.into(), retry: true }
    }
}

/// Commits a group, and where one of it may be to blame that it cannot be, each of it alone.
pub(super) async fn commit_or_each<C: Commits>(
    commits: &C,
    group: &[C::Asked],
) -> Vec<Result<C::Told, OpError>> {
    match commits.commit(group).await {
        Ok(told) => told.into_iter().map(Ok).collect(),
        Err(Failed { error, retry }) if group.len() > 1 => {
            if retry {
                tracing::warn!(
                    changes = group.len(),
                    error = &error as &dyn std::error::Error,
                    "a group could not be written; each is written alone"
                );
            }
            Box::pin(commit_each(commits, group, (!retry).then_some(error))).await
        }
        Err(Failed { error, .. }) => vec![Err(error)],
    }
}

/// Commits each of a group alone, until it is known that nothing can be committed.
async fn commit_each<C: Commits>(
    commits: &C,
    group: &[C::Asked],
    mut away: Option<OpError>,
) -> Vec<Result<C::Told, OpError>> {
    let mut told = Vec::with_capacity(group.len());
    for one in group {
        told.push(match &away {
            // Nothing can be reached: the others need not find out one by one.
            Some(error) => Err(as_for_another(error)),
            None => match commits.commit(std::slice::from_ref(one)).await {
                Ok(mut one) => one.pop().ok_or_else(|| {
                    OpError::Internal(anyhow::anyhow!("a commit tells nothing of its change"))
                }),
                Err(Failed { error, retry: true }) => Err(error),
                Err(Failed { error, retry: false }) => {
                    let told = as_for_another(&error);
                    away = Some(error);
                    Err(told)
                }
            },
        });
    }
    told
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
    /// How long a group may take.
    longest: Duration,
    queue: Mutex<Queue<G>>,
}

struct Queue<G: Grouped> {
    waiting: VecDeque<(G::Asked, Answer<G>)>,
    /// Whether a lane runs.
    running: bool,
}

impl<G: Grouped> Gather<G> {
    /// For groups of at most `most`, one after the other, each at most for `longest`.
    pub(super) fn new(work: G, most: usize, longest: Duration) -> Self {
        let queue = Mutex::new(Queue { waiting: VecDeque::new(), running: false });
        Self(Arc::new(Inner { work, most, longest, queue }))
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
        if !std::mem::replace(&mut queue.running, true) {
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
            queue.running = false;
            return None;
        }
        let size = queue.waiting.len().min(self.most);
        Some(queue.waiting.drain(..size).unzip())
    }
}

/// Runs groups until nothing waits. Where it is cut off, all callers are told, and the next one gets another lane.
struct Lane<G: Grouped>(Option<Arc<Inner<G>>>);

impl<G: Grouped> Lane<G> {
    async fn run(mut self) {
        while let Some(inner) = &self.0 {
            match inner.next_group() {
                Some((asked, answers)) => {
                    // In its place: it is large, and would be moved into its time limit.
                    let work = pin!(inner.work.run(asked));
                    let told = tokio::time::timeout(inner.longest, work).await;
                    let told = told.unwrap_or_else(|_| {
                        tracing::error!(callers = answers.len(), "a group took too long and was given up");
                        let late = || anyhow::anyhow!("the database did not answer in time");
                        answers.iter().map(|_| Err(OpError::Unclear(late()))).collect()
                    });
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
        queue.running = false;
        // They are told that they were cut off.
        queue.waiting.clear();
    }
}

/// The same trouble, for another caller; the log has the whole of it once.
pub(super) fn as_for_another(error: &OpError) -> OpError {
    match error {
        OpError::Sealed => OpError::Sealed,
        OpError::Unavailable(why) => OpError::Unavailable(anyhow::anyhow!("{why}")),
        OpError::Unclear(why) => OpError::Unclear(anyhow::anyhow!("{why}")),
        other => OpError::Internal(anyhow::anyhow!("{other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Doubles numbers; `0` never comes back, `1` panics.
    struct Doubles;

    impl Grouped for Doubles {
        type Asked = usize;
        type Told = (usize, usize);

        async fn run(&self, group: Vec<usize>) -> Vec<Result<(usize, usize), OpError>> {
            if group.contains(&0) {
                std::future::pending::<()>().await;
            }
            assert!(!group.contains(&1), "one");
            // Long enough for others to gather.
            tokio::time::sleep(Duration::from_millis(10)).await;
            group.iter().map(|number| Ok((2 * number, group.len()))).collect()
        }
    }

    fn gather() -> Arc<Gather<Doubles>> {
        Arc::new(Gather::new(Doubles, 8, Duration::from_millis(500)))
    }

    fn ask(
        gather: &Arc<Gather<Doubles>>,
        number: usize,
    ) -> tokio::task::JoinHandle<Result<(usize, usize), OpError>> {
        let gather = Arc::clone(gather);
        tokio::spawn(async move { gather.ask(number).await })
    }

    #[tokio::test]
    async fn the_first_goes_alone_and_the_others_together() {
        let gather = gather();
        let asked: Vec<_> = (2..20).map(|number| ask(&gather, number)).collect();
        let mut sizes = Vec::new();
        for (number, told) in (2..20).zip(asked) {
            let (double, size) = told.await.expect("no panic").expect("told");
            assert_eq!(double, 2 * number);
            sizes.push(size);
        }
        // Whoever came before the first lane began went with it.
        let mut left = sizes.as_slice();
        while let Some(size) = left.first() {
            assert!((1..=8).contains(size) && left[..*size].iter().all(|one| one == size), "{sizes:?}");
            left = &left[*size..];
        }
    }

    #[tokio::test]
    async fn what_never_comes_back_is_given_up_and_the_next_goes_on() {
        let gather = gather();
        let stuck = ask(&gather, 0);
        tokio::time::sleep(Duration::from_millis(1)).await;
        let next = ask(&gather, 2);
        assert!(matches!(stuck.await.expect("no panic"), Err(OpError::Unclear(_))));
        assert_eq!(next.await.expect("no panic").expect("told"), (4, 1));
    }

    #[tokio::test]
    async fn a_panic_is_its_groups_alone() {
        let gather = gather();
        let broken = ask(&gather, 1);
        assert!(matches!(broken.await.expect("no panic"), Err(OpError::Internal(_))));
        assert_eq!(ask(&gather, 2).await.expect("no panic").expect("told"), (4, 1));
    }

    #[tokio::test]
    async fn who_goes_away_harms_nobody() {
        let gather = gather();
        let gone = ask(&gather, 2);
        tokio::time::sleep(Duration::from_millis(1)).await;
        gone.abort();
        assert_eq!(ask(&gather, 3).await.expect("no panic").expect("told"), (6, 1));
    }
}
