//! One answer from another thread, for whoever waits on an RPC thread.
//!
//! As a oneshot channel, but tasks of one RPC thread are woken together. To wake a task from another thread costs a system
//! call; and tasks that are woken one by one each have their answer written to the socket by itself. So answers for an RPC
//! thread gather in its [`Lane`]: the first one wakes the thread, which then wakes the tasks of all that have come, itself.
//! Elsewhere, as in tests, a task is woken at once.
//!
//! Used by `api`, which waits, and by `server`, whose threads have lanes. It makes no thread.

use std::cell::RefCell;
use std::future::Future;
use std::mem::replace;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

thread_local! {
    /// Of this thread, if it has one.
    static LANE: RefCell<Option<Arc<Lane>>> = const { RefCell::new(None) };
}

/// The tasks of one thread that are to be woken. At most one for each answer that is waited for.
#[derive(Default)]
pub(crate) struct Lane(Mutex<Gathered>);

#[derive(Default)]
struct Gathered {
    tasks: Vec<Waker>,
    /// Of [`Lane::wake_gathered`].
    runner: Option<Waker>,
}

impl Lane {
    /// Gives this thread a lane; whatever waits on it from now on is woken by [`Self::wake_gathered`], which must run on it.
    pub(crate) fn begin() -> Arc<Self> {
        let lane = Arc::new(Self::default());
        LANE.set(Some(Arc::clone(&lane)));
        lane
    }

    /// Wakes tasks as their answers come. Never ends.
    pub(crate) async fn wake_gathered(self: Arc<Self>) {
        let mut tasks = Vec::new();
        std::future::poll_fn(|context| {
            let mut gathered = self.gathered();
            if !(gathered.runner.as_ref()).is_some_and(|own| own.will_wake(context.waker())) {
                gathered.runner = Some(context.waker().clone());
            }
            std::mem::swap(&mut gathered.tasks, &mut tasks);
            drop(gathered);
            tasks.drain(..).for_each(Waker::wake);
            Poll::<()>::Pending
        })
        .await;
    }

    fn add(&self, task: Waker) {
        let mut gathered = self.gathered();
        gathered.tasks.push(task);
        let runner = match gathered.tasks.len() {
            1 => gathered.runner.clone(),
            _ => None,
        };
        drop(gathered);
        if let Some(runner) = runner {
            runner.wake();
        }
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is between the two ends.
struct Slot<T> {
    state: Mutex<State<T>>,
    /// Of the thread that waits.
    lane: Option<Arc<Lane>>,
}

enum State<T> {
    /// Nothing has come yet, and perhaps somebody waits.
    Open(Option<Waker>),
    Sent(T),
    /// One end is gone, and there is no answer.
    Closed,
}

impl<T> Slot<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the wait. Gives back what nobody waits for.
    fn end(&self, state: State<T>) -> State<T> {
        let mut current = self.state();
        let State::Open(task) = &mut *current else {
            return state;
        };
        let task = task.take();
        *current = state;
        drop(current);
        match (task, &self.lane) {
            (Some(task), Some(lane)) => lane.add(task),
            (Some(task), None) => task.wake(),
            (None, _) => {}
        }
        State::Closed
    }
}

/// The end that answers.
pub(crate) struct Sender<T>(Arc<Slot<T>>);

/// The end that waits.
pub(crate) struct Receiver<T>(Arc<Slot<T>>);

/// The sender is gone and has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost;

/// Two ends, for one answer that is waited for on this thread.
pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let slot = Arc::new(Slot {
        state: Mutex::new(State::Open(None)),
        lane: LANE.with_borrow(Clone::clone),
    });
    (Sender(Arc::clone(&slot)), Receiver(slot))
}

impl<T> Sender<T> {
    /// Answers. An answer that nobody waits for is dropped.
    pub(crate) fn send(self, answer: T) {
        drop(self.0.end(State::Sent(answer)));
    }

    /// True when nobody waits any more.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(*self.0.state(), State::Closed)
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        drop(self.0.end(State::Closed));
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let former = replace(&mut *self.0.state(), State::Closed);
        drop(former);
    }
}

impl<T> Future for Receiver<T> {
    type Output = Result<T, Lost>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.state();
        if let State::Open(task) = &mut *state {
            match task {
                Some(task) => task.clone_from(context.waker()),
                None => *task = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        match replace(&mut *state, State::Closed) {
            State::Sent(answer) => Poll::Ready(Ok(answer)),
            State::Open(_) | State::Closed => Poll::Ready(Err(Lost)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Count {
        fn get(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    fn poll<F: Future>(future: Pin<&mut F>, count: &Arc<Count>) -> Poll<F::Output> {
        let waker = Waker::from(Arc::clone(count));
        future.poll(&mut Context::from_waker(&waker))
    }

    #[test]
    fn answer_arrives_before_and_after_it_is_waited_for() {
        let count = Arc::new(Count::default());
        let (sender, receiver) = channel();
        sender.send(1);
        assert_eq!(poll(pin!(receiver), &count), Poll::Ready(Ok(1)));
        assert_eq!(count.get(), 0);

        let (sender, receiver) = channel();
        let mut receiver = pin!(receiver);
        assert!(poll(receiver.as_mut(), &count).is_pending());
        assert!(!sender.is_closed());
        sender.send(2);
        assert_eq!(count.get(), 1);
        assert_eq!(poll(receiver, &count), Poll::Ready(Ok(2)));
    }

    #[test]
    fn end_that_goes_away_tells_the_other() {
        let count = Arc::new(Count::default());
        let (sender, receiver) = channel::<u8>();
        let mut receiver = pin!(receiver);
        assert!(poll(receiver.as_mut(), &count).is_pending());
        drop(sender);
        assert_eq!(count.get(), 1);
        assert_eq!(poll(receiver, &count), Poll::Ready(Err(Lost)));

        let (sender, receiver) = channel();
        drop(receiver);
        assert!(sender.is_closed());
        let answer = Arc::new(());
        sender.send(Arc::clone(&answer));
        assert_eq!(Arc::strong_count(&answer), 1);
    }

    #[test]
    fn answers_of_a_lane_wake_its_thread_once_and_then_all_tasks() {
        let lane = Lane::begin();
        let (runner, task) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let mut gathering = pin!(lane.wake_gathered());
        assert!(poll(gathering.as_mut(), &runner).is_pending());
        let (senders, mut receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| channel()).unzip();
        for receiver in &mut receivers {
            assert!(poll(Pin::new(receiver), &task).is_pending());
        }
        for (n, sender) in senders.into_iter().enumerate() {
            sender.send(n);
        }
        assert_eq!((runner.get(), task.get()), (1, 0));
        assert!(poll(gathering.as_mut(), &runner).is_pending());
        assert_eq!((runner.get(), task.get()), (1, 3));
        for (n, receiver) in receivers.iter_mut().enumerate() {
            assert_eq!(poll(Pin::new(receiver), &task), Poll::Ready(Ok(n)));
        }
        LANE.set(None);
    }
}
