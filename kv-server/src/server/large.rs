//! A bound on the bytes of answers that clients have not taken yet.
//!
//! An answer to a range is made as a whole, and lies in memory until the client has read it: a client that asks and does not
//! read could fill it. So answers above a size are counted until their last piece is handed to the connection, piece by piece
//! as it makes room. While too many bytes wait, ranges wait too, and then whoever has taken nothing for a while loses its
//! answer. Used by the KV service; watches and backups have bounds of their own.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use prost::Message;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};
use tonic::body::Body;
use tonic::{Response, Status};

use crate::ApiError;

/// Answers up to this size are not counted.
const FREE_BYTES: usize = 16 << 10;
/// Bytes that may wait; past it nothing is begun that could be large.
const BYTES_MAX: usize = 64 << 20;
/// Ranges whose size is not known yet, at a time, as many as there are threads for them: each may go past the bound.
const TURNS: usize = 2;
/// Ranges that wait for their turn at most.
const WAITING_MAX: usize = 4_096;
/// How long a range waits for room.
const PATIENCE: Duration = Duration::from_secs(15);
/// Who has taken nothing for so long makes room when somebody waits for it.
const STALLED: Duration = Duration::from_secs(2);
/// How often who waits looks for those.
const LOOK: Duration = Duration::from_millis(500);
const PIECE_BYTES: usize = 64 << 10;

/// The answers that wait.
pub(super) struct LargeAnswers {
    bytes: AtomicUsize,
    bytes_max: usize,
    patience: Duration,
    stalled: Duration,
    freed: Notify,
    turns: Semaphore,
    waiting: AtomicUsize,
    next: AtomicU64,
    all: Mutex<BTreeMap<u64, Weak<Mutex<Pieces>>>>,
}

/// Counts who waits for a turn.
struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The share of one answer.
pub(super) struct Held {
    answers: Arc<LargeAnswers>,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.answers.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.answers.freed.notify_waiters();
    }
}

impl Default for LargeAnswers {
    fn default() -> Self {
        Self {
            bytes: AtomicUsize::new(0),
            bytes_max: BYTES_MAX,
            patience: PATIENCE,
            stalled: STALLED,
            freed: Notify::new(),
            turns: Semaphore::new(TURNS),
            waiting: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            all: Mutex::new(BTreeMap::new()),
        }
    }
}

impl LargeAnswers {
    fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Acquire) >= self.bytes_max
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Weak<Mutex<Pieces>>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn to make an answer of any size, to be kept until its size is counted.
    pub(super) async fn turn(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(ApiError::TooManyRequests);
        }
        let _waits = Waits(&self.waiting);
        let turn = async {
            let turn = self.turns.acquire().await.expect("it is never closed");
            loop {
                let freed = self.freed.notified();
                if !self.is_full() {
                    return turn;
                }
                self.cut_stalled();
                // A share that is freed between the two looks is seen at the next one.
                let _ = timeout(LOOK, freed).await;
            }
        };
        let turn = timeout(self.patience, turn).await;
        turn.map_err(|_| ApiError::TooManyRequests)
    }

    /// Counts an answer, and as many bytes more as are written out beside it; it goes with its share on its way through the
    /// server. While there is no room it is refused, unless it is to be given in any case: it had its turn, or something was written.
    pub(super) fn count<T: Message>(
        self: &Arc<Self>,
        answer: &mut Response<T>,
        written: usize,
        in_any_case: bool,
    ) -> Result<(), ApiError> {
        let bytes = answer.get_ref().encoded_len() + written;
        if bytes <= FREE_BYTES {
            return Ok(());
        }
        if !in_any_case && self.is_full() {
            self.cut_stalled();
            if self.is_full() {
                return Err(ApiError::TooManyRequests);
            }
        }
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        let answers = Arc::clone(self);
        answer
            .extensions_mut()
            .insert(Arc::new(Held { answers, bytes }));
        Ok(())
    }

    /// Takes the answers of those who have taken nothing of them for a while.
    fn cut_stalled(&self) {
        let mut all = self.all();
        all.retain(|_, pieces| pieces.strong_count() > 0);
        let living: Vec<_> = all.values().filter_map(Weak::upgrade).collect();
        drop(all);
        for pieces in living {
            let mut pieces = lock(&pieces);
            if pieces.moved.elapsed() >= self.stalled && pieces.held.is_some() {
                pieces.cut();
            }
        }
    }
}

fn lock(pieces: &Mutex<Pieces>) -> MutexGuard<'_, Pieces> {
    pieces.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is left of an answer.
struct Pieces {
    /// Whatever comes after `bytes`: none once it was cut.
    rest: Option<Body>,
    bytes: Bytes,
    held: Option<Arc<Held>>,
    moved: Instant,
}

impl Pieces {
    fn cut(&mut self) {
        tracing::info!("an answer that its client does not read was dropped to make room");
        self.rest = None;
        self.bytes = Bytes::new();
        self.held = None;
    }
}

/// The body of a counted answer.
struct LargeBody(Arc<Mutex<Pieces>>);

/// Gives an answer that was counted a body that holds its share for as long as it has bytes.
pub(super) fn bound(mut answer: http::Response<Body>) -> http::Response<Body> {
    let Some(held) = answer.extensions_mut().remove::<Arc<Held>>() else {
        return answer;
    };
    let answers = Arc::clone(&held.answers);
    answer.map(|body| {
        let pieces = Arc::new(Mutex::new(Pieces {
            rest: Some(body),
            bytes: Bytes::new(),
            held: Some(held),
            moved: Instant::now(),
        }));
        let number = answers.next.fetch_add(1, Ordering::Relaxed);
        let mut all = answers.all();
        // Those that are over leave here; the bound on bytes is one on their number, too.
        while let Some(oldest) = all
            .first_entry()
            .filter(|one| one.get().strong_count() == 0)
        {
            oldest.remove();
        }
        all.insert(number, Arc::downgrade(&pieces));
        Body::new(LargeBody(pieces))
    })
}

impl HttpBody for LargeBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut pieces = lock(&self.0);
        let pieces = &mut *pieces;
        loop {
            if !pieces.bytes.is_empty() {
                pieces.moved = Instant::now();
                let length = pieces.bytes.len().min(PIECE_BYTES);
                // A copy: a slice would keep the whole for as long as it waits in the connection.
                let piece = Bytes::copy_from_slice(&pieces.bytes.split_to(length));
                if pieces.bytes.is_empty() {
                    pieces.bytes = Bytes::new();
                }
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            let Some(rest) = &mut pieces.rest else {
                let text = "flotilla: the answer was not read, and others waited for room";
                return Poll::Ready(Some(Err(Status::resource_exhausted(text))));
            };
            match ready!(Pin::new(rest).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => pieces.bytes = bytes,
                    Err(trailers) => {
                        pieces.held = None;
                        return Poll::Ready(Some(Ok(trailers)));
                    }
                },
                other => return Poll::Ready(other),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;
    use crate::pb::etcdserverpb::RangeResponse;
    use crate::pb::mvccpb::KeyValue;

    const LARGE: usize = 1 << 20;

    fn with_bound(bytes_max: usize, patience: Duration, stalled: Duration) -> Arc<LargeAnswers> {
        Arc::new(LargeAnswers {
            bytes_max,
            patience,
            stalled,
            ..LargeAnswers::default()
        })
    }

    fn answer(bytes: usize) -> Response<RangeResponse> {
        let kv = KeyValue {
            value: vec![b'x'; bytes].into(),
            ..KeyValue::default()
        };
        Response::new(RangeResponse {
            kvs: vec![kv],
            ..RangeResponse::default()
        })
    }

    /// The body of an answer as the server sends it.
    fn sent(answers: &Arc<LargeAnswers>) -> http::Response<Body> {
        let mut answer = answer(LARGE);
        answers.count(&mut answer, 0, true).unwrap();
        let bytes = Bytes::from(answer.get_ref().encode_to_vec());
        let extensions = std::mem::take(answer.extensions_mut());
        let mut response = http::Response::new(Body::new(Full::new(bytes)));
        *response.extensions_mut() = extensions;
        bound(response)
    }

    #[tokio::test]
    async fn answer_counts_until_its_last_piece_is_taken() {
        let answers = with_bound(LARGE, PATIENCE, Duration::MAX);
        answers.count(&mut answer(10), 0, false).unwrap();
        assert!(!answers.is_full());
        let body = sent(&answers).into_body();
        assert!(answers.is_full());
        let refused = answers.count(&mut answer(LARGE), 0, false);
        assert_eq!(refused, Err(ApiError::TooManyRequests));
        answers.count(&mut answer(10), 0, false).unwrap();
        let taken = body.collect().await.unwrap().to_bytes();
        assert_eq!(taken, answer(LARGE).get_ref().encode_to_vec());
        assert!(!answers.is_full());
        assert_eq!(answers.bytes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn range_that_waits_for_room_takes_it_from_who_reads_nothing() {
        let answers = with_bound(LARGE, PATIENCE, Duration::ZERO);
        let mut body = sent(&answers).into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first.len(), PIECE_BYTES);
        let turn = answers.turn().await.unwrap();
        assert!(!answers.is_full());
        drop(turn);
        let cut = body.frame().await.unwrap().unwrap_err();
        assert_eq!(cut.code(), tonic::Code::ResourceExhausted);
    }

    #[tokio::test]
    async fn range_waits_no_longer_than_that_for_who_reads_slowly() {
        let answers = with_bound(1, Duration::from_millis(1), Duration::MAX);
        let _body = sent(&answers);
        let refused = answers.turn().await.map(drop);
        assert_eq!(refused, Err(ApiError::TooManyRequests));
        assert!(answers.is_full());
    }
}
