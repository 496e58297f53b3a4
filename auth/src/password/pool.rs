//! A fixed number of threads for work that takes a core for a while, behind a bounded queue.
//!
//! At most `threads` pieces of work run and at most `queue` wait, in [turns](Fair); what comes beyond
//! that is refused at once. Work whose caller has gone is dropped unstarted. Work that has begun
//! can't be stopped.
//!
//! Each thread lends its work a `K` that it keeps from one piece to the next, such as memory that
//! takes a while to get.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::fair::{Fair, Party};

/// The threads, which end when it is dropped: idle ones at once, busy ones after the work at hand.
pub(super) struct Pool<T, K> {
    shared: Arc<Shared<T, K>>,
}

/// Why a piece of work gave no result.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Undone {
    /// Every thread is busy and the queue is full, perhaps by now of others who had less waiting.
    Full,
    /// It panicked.
    Panicked,
}

struct Shared<T, K> {
    queue: Mutex<Queue<T, K>>,
    changed: Condvar,
    threads: usize,
    bound: usize,
    keep: Duration,
}

struct Queue<T, K> {
    waiting: Fair<Job<T, K>>,
    busy: usize,
    closed: bool,
}

struct Job<T, K> {
    work: Box<dyn FnOnce(&mut K) -> T + Send>,
    reply: oneshot::Sender<Result<T, Undone>>,
}

impl<T: Send + 'static, K: Default + 'static> Pool<T, K> {
    /// Starts `threads` threads, before which up to `queue` pieces of work may wait; 0 lets none
    /// wait. A thread without work for as long as `keep` drops its `K`, and so does one whose work
    /// panicked; the next piece of work is lent a new one.
    ///
    /// # Errors
    /// When the system gives no more threads; those already started end.
    pub(super) fn new(threads: usize, queue: usize, keep: Duration) -> io::Result<Self> {
        let pool = Self {
            shared: Arc::new(Shared {
                queue: Mutex::new(Queue {
                    waiting: Fair::default(),
                    busy: 0,
                    closed: false,
                }),
                changed: Condvar::new(),
                threads,
                bound: queue,
                keep,
            }),
        };
        for number in 0..threads {
            let shared = Arc::clone(&pool.shared);
            thread::Builder::new()
                .name(format!("chinwag-hash-{number}"))
                .spawn(move || shared.serve())?;
        }
        Ok(pool)
    }

    /// Runs `work` on one of the threads, when it is `party`'s turn. Dropping the future before that
    /// has begun takes it back.
    pub(super) async fn run(
        &self,
        party: Party,
        work: impl FnOnce(&mut K) -> T + Send + 'static,
    ) -> Result<T, Undone> {
        let (reply, answer) = oneshot::channel();
        let job = Job {
            work: Box::new(work),
            reply,
        };
        self.shared.push(party, job)?;
        // While a caller borrows the pool it is not dropped, so only a panic loses the reply.
        answer.await.unwrap_or(Err(Undone::Panicked))
    }
}

impl<T, K> Drop for Pool<T, K> {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

impl<T, K: Default> Shared<T, K> {
    fn push(&self, party: Party, job: Job<T, K>) -> Result<(), Undone> {
        let mut queue = self.queue.lock();
        // A job for which a thread is free does not count as waiting, even before that thread has
        // woken up.
        let bound = self.bound + (self.threads - queue.busy);
        let waiting = &mut queue.waiting;
        let pushed = waiting.push(party, job, bound, |job| job.reply.is_closed());
        drop(queue);
        if let Some(displaced) = pushed.map_err(|_full| Undone::Full)? {
            // Its caller may have gone in the meantime.
            drop(displaced.reply.send(Err(Undone::Full)));
        }
        self.changed.notify_one();
        Ok(())
    }

    fn serve(&self) {
        let mut kept: Option<K> = None;
        let mut queue = self.queue.lock();
        while !queue.closed {
            let Some(job) = queue.waiting.pop() else {
                if kept.is_none() {
                    self.changed.wait(&mut queue);
                } else if self.changed.wait_for(&mut queue, self.keep).timed_out() {
                    MutexGuard::unlocked(&mut queue, || kept = None);
                }
                continue;
            };
            if job.reply.is_closed() {
                continue;
            }
            queue.busy += 1;
            // A thread lost to a panic would never come back; the panic costs its own caller only.
            let done = MutexGuard::unlocked(&mut queue, || {
                let work = || (job.work)(kept.get_or_insert_default());
                let done = catch_unwind(AssertUnwindSafe(work));
                if done.is_err() {
                    kept = None;
                }
                done
            });
            // Before the caller hears, who may come again at once and find the thread free.
            queue.busy -= 1;
            MutexGuard::unlocked(&mut queue, || match done {
                // The caller may have gone in the meantime, and then nobody wants to know.
                Ok(result) => drop(job.reply.send(Ok(result))),
                Err(_panic) => drop(job.reply),
            });
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        cell::RefCell,
        future::poll_fn,
        pin::{Pin, pin},
        sync::{
            Barrier,
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        task::Poll,
        time::Duration,
    };

    use tokio::task::JoinSet;

    use super::*;

    const ONE: Party = Party::SOMEBODY;

    /// Longer than any test.
    const FOR_EVER: Duration = Duration::from_secs(3600);

    /// A pool whose threads keep nothing.
    fn pool<T: Send + 'static>(threads: usize, queue: usize) -> Pool<T, ()> {
        Pool::new(threads, queue, FOR_EVER).unwrap()
    }

    /// Keeps a thread busy until the returned sender is dropped or sends; it is busy when this
    /// returns.
    fn occupy(pool: &Arc<Pool<usize, ()>>, tasks: &mut JoinSet<Result<usize, Undone>>) -> Gate {
        let (opened, gate) = mpsc::channel::<()>();
        let (begun, started) = oneshot::channel();
        let pool = Arc::clone(pool);
        tasks.spawn(async move {
            pool.run(ONE, move |()| {
                begun.send(()).unwrap();
                gate.recv().ok();
                0
            })
            .await
        });
        Gate {
            _opened: opened,
            started: Some(started),
        }
    }

    struct Gate {
        _opened: mpsc::Sender<()>,
        started: Option<oneshot::Receiver<()>>,
    }

    impl Gate {
        async fn started(&mut self) {
            self.started.take().unwrap().await.unwrap();
        }
    }

    #[tokio::test]
    async fn never_more_run_at_once_than_there_are_threads() {
        let pool = Arc::new(pool(3, 200));
        let running = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..200 {
            let (pool, running) = (Arc::clone(&pool), Arc::clone(&running));
            tasks.spawn(async move {
                pool.run(ONE, move |()| {
                    let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                    thread::yield_now();
                    running.fetch_sub(1, Ordering::SeqCst);
                    now
                })
                .await
            });
        }
        let most = tasks.join_all().await.into_iter().map(Result::unwrap).max();
        assert!(most.is_some_and(|most| (1..=3).contains(&most)), "{most:?}");
    }

    #[tokio::test]
    async fn beyond_threads_and_queue_is_full() {
        let pool = Arc::new(pool(2, 3));
        let mut busy = JoinSet::new();
        let mut gates = [occupy(&pool, &mut busy), occupy(&pool, &mut busy)];
        for gate in &mut gates {
            gate.started().await;
        }
        let mut waiting = Vec::new();
        for number in 0..10 {
            let mut run = Box::pin(pool.run(ONE, move |()| number));
            match poll_once(run.as_mut()).await {
                None => waiting.push(run),
                Some(refused) => assert_eq!(refused, Err(Undone::Full)),
            }
        }
        assert_eq!(waiting.len(), 3);
        drop(gates);
        for (number, run) in waiting.into_iter().enumerate() {
            assert_eq!(run.await, Ok(number));
        }
    }

    #[tokio::test]
    async fn who_has_much_waiting_keeps_nobody_else_out() {
        let pool = Arc::new(pool(1, 3));
        let mut busy = JoinSet::new();
        let mut gate = occupy(&pool, &mut busy);
        gate.started().await;
        let mut waiting = Vec::new();
        for number in 0..3 {
            let mut run = Box::pin(pool.run(ONE, move |()| number));
            assert!(poll_once(run.as_mut()).await.is_none());
            waiting.push(run);
        }
        let other = Party::from(std::net::IpAddr::from([192, 0, 2, 1]));
        let mut run = Box::pin(pool.run(other, |()| 7));
        assert!(poll_once(run.as_mut()).await.is_none(), "it waits");
        let newest = waiting.pop().unwrap();
        assert_eq!(at_once(newest).await, Err(Undone::Full), "it made room");
        drop(gate);
        assert_eq!(run.await, Ok(7));
        for (number, run) in waiting.into_iter().enumerate() {
            assert_eq!(run.await, Ok(number));
        }
    }

    #[tokio::test]
    async fn a_free_thread_needs_no_queue() {
        let pool = pool(1, 0);
        for number in 0..10_000 {
            assert_eq!(pool.run(ONE, move |()| number).await, Ok(number));
        }
    }

    #[tokio::test]
    async fn work_whose_caller_has_gone_is_not_begun() {
        let pool = Arc::new(pool(1, 1));
        let mut busy = JoinSet::new();
        let mut gate = occupy(&pool, &mut busy);
        gate.started().await;

        let begun = Arc::new(AtomicUsize::new(0));
        let mut given_up = {
            let begun = Arc::clone(&begun);
            Box::pin(pool.run(ONE, move |()| begun.fetch_add(1, Ordering::SeqCst)))
        };
        assert!(poll_once(given_up.as_mut()).await.is_none(), "it waits");
        assert_eq!(at_once(pool.run(ONE, |()| 0)).await, Err(Undone::Full));
        drop(given_up);

        // The place of the one that gave up is free at once, and the queue goes on behind it.
        let mut next = Box::pin(pool.run(ONE, |()| 8));
        assert!(poll_once(next.as_mut()).await.is_none(), "it waits");
        drop(gate);
        assert_eq!(next.await, Ok(8));
        assert_eq!(begun.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_waiting_job_is_skipped_when_its_turn_comes_after_its_caller_left() {
        let pool = Arc::new(pool(1, 2));
        let mut busy = JoinSet::new();
        let mut gate = occupy(&pool, &mut busy);
        gate.started().await;
        let begun = Arc::new(AtomicUsize::new(0));
        let mut given_up = {
            let begun = Arc::clone(&begun);
            Box::pin(pool.run(ONE, move |()| begun.fetch_add(1, Ordering::SeqCst)))
        };
        assert!(poll_once(given_up.as_mut()).await.is_none());
        let mut next = Box::pin(pool.run(ONE, |()| 8));
        assert!(poll_once(next.as_mut()).await.is_none());
        drop(given_up);
        drop(gate);
        assert_eq!(
            next.await,
            Ok(8),
            "of one party the first is first, so the other one's turn is over"
        );
        assert_eq!(begun.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_panic_costs_one_caller_and_no_thread() {
        let pool = pool(1, 1);
        assert_eq!(
            pool.run(ONE, |()| panic!("as the test wants")).await,
            Err(Undone::Panicked)
        );
        assert_eq!(pool.run(ONE, |()| 7).await, Ok(7));
    }

    /// Counts the work it was lent to, and says so when it is dropped.
    #[derive(Default)]
    struct Kept {
        lent: usize,
        dropped: Option<mpsc::Sender<usize>>,
    }

    impl Kept {
        fn lend(&mut self, dropped: &mpsc::Sender<usize>) -> usize {
            self.dropped.get_or_insert_with(|| dropped.clone());
            self.lent += 1;
            self.lent
        }
    }

    impl Drop for Kept {
        fn drop(&mut self) {
            if let Some(dropped) = &self.dropped {
                dropped.send(self.lent).ok();
            }
        }
    }

    #[tokio::test]
    async fn what_is_kept_is_lent_again_until_work_panics_or_the_pool_ends() {
        let pool = Pool::new(1, 0, FOR_EVER).unwrap();
        let (sender, dropped) = mpsc::channel();
        for lent in 1..=3 {
            let sender = sender.clone();
            let run = pool.run(ONE, move |kept: &mut Kept| kept.lend(&sender));
            assert_eq!(run.await, Ok(lent));
        }
        let run = pool.run(ONE, |_| panic!("as the test wants"));
        assert_eq!(run.await, Err(Undone::Panicked));
        assert_eq!(dropped.try_recv(), Ok(3));
        let run = pool.run(ONE, move |kept: &mut Kept| kept.lend(&sender));
        assert_eq!(run.await, Ok(1));
        assert_eq!(dropped.try_recv(), Err(mpsc::TryRecvError::Empty));
        drop(pool);
        assert_eq!(dropped.recv_timeout(Duration::from_secs(30)), Ok(1));
    }

    #[tokio::test]
    async fn a_thread_without_work_keeps_nothing() {
        let pool = Pool::new(1, 0, Duration::from_millis(1)).unwrap();
        let (sender, dropped) = mpsc::channel();
        for _ in 0..3 {
            let sender = sender.clone();
            let run = pool.run(ONE, move |kept: &mut Kept| kept.lend(&sender));
            assert_eq!(run.await, Ok(1));
            assert_eq!(dropped.recv_timeout(Duration::from_secs(30)), Ok(1));
        }
    }

    #[tokio::test]
    async fn the_threads_end_with_the_pool() {
        thread_local! {
            /// Dropped when its thread ends.
            static ALIVE: RefCell<Option<mpsc::Sender<()>>> = const { RefCell::new(None) };
        }
        let pool = Arc::new(pool::<()>(4, 0));
        let (alive, ended) = mpsc::channel();
        let each_has_one = Arc::new(Barrier::new(4));
        let mut tasks = JoinSet::new();
        for _ in 0..4 {
            let (pool, alive) = (Arc::clone(&pool), alive.clone());
            let each_has_one = Arc::clone(&each_has_one);
            tasks.spawn(async move {
                pool.run(ONE, move |()| {
                    ALIVE.set(Some(alive));
                    each_has_one.wait();
                })
                .await
            });
        }
        for done in tasks.join_all().await {
            assert_eq!(done, Ok(()));
        }
        drop(alive);
        assert_eq!(
            ended.try_recv(),
            Err(mpsc::TryRecvError::Empty),
            "they live"
        );
        drop(pool);
        let at_last = ended.recv_timeout(Duration::from_secs(30));
        assert_eq!(at_last, Err(mpsc::RecvTimeoutError::Disconnected));
    }

    /// What `future` gives without waiting for anything.
    pub(in crate::password) async fn at_once<F: Future>(future: F) -> F::Output {
        poll_once(pin!(future)).await.expect("an answer at once")
    }

    /// What `future` gives at its first poll, if anything.
    pub(in crate::password) async fn poll_once<F: Future>(
        mut future: Pin<&mut F>,
    ) -> Option<F::Output> {
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }
}
