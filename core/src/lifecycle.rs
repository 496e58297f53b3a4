//! Shutting down asks, then drops: tasks hear that the server drains, and those that outlive the grace are cancelled.

use std::{future::Future, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The life of a server and of every task on it. Clones share one life.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    drain: CancellationToken,
    kill: CancellationToken,
    tasks: TaskTracker,
}

impl Lifecycle {
    /// A life that has just begun.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `task` until it ends or the server is killed.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let kill = self.kill.clone();
        // Boxed, since the futures around it would each hold it once more.
        let task = Box::pin(task);
        self.tasks.spawn(async move {
            kill.run_until_cancelled(task).await;
        });
    }

    /// Waits until the server begins to drain. Cancel safe.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    /// Whether the server has begun to drain.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Begins to drain. Idempotent.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Drops every task at its next await. Idempotent.
    pub fn kill(&self) {
        self.drain.cancel();
        self.kill.cancel();
    }

    /// Drains, waits for every task for at most `grace`, then drops the rest.
    ///
    /// Returns how many tasks were dropped; 0 is a clean shutdown.
    pub async fn shut_down(&self, grace: Duration) -> usize {
        self.drain.cancel();
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_ok() {
            return 0;
        }
        let stuck = self.tasks.len();
        self.kill.cancel();
        self.tasks.wait().await;
        stuck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_hears_the_drain_ends_in_peace() {
        let lifecycle = Lifecycle::new();
        let ears = lifecycle.clone();
        lifecycle.spawn(async move { ears.draining().await });
        assert_eq!(lifecycle.shut_down(Duration::from_secs(10)).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deaf_task_is_dropped_at_the_end_of_the_grace() {
        let lifecycle = Lifecycle::new();
        lifecycle.spawn(std::future::pending());
        let before = tokio::time::Instant::now();
        assert_eq!(lifecycle.shut_down(Duration::from_secs(10)).await, 1);
        assert_eq!(before.elapsed(), Duration::from_secs(10));
    }
}
