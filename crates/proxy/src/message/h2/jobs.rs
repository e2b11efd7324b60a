//! What a connection's task does for its streams, each woken by itself.
//!
//! Invariant: a job that nobody has woken is not looked at. A waker serves one job after the other; one that is kept too long wakes a job
//! for nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

/// Which jobs were woken.
#[derive(Default)]
struct Ready {
    woken: Mutex<Woken>,
}

#[derive(Default)]
struct Woken {
    places: Vec<usize>,
    task: Option<Waker>,
    /// The task is at work, and looks here before it rests.
    busy: bool,
}

struct Slot {
    place: usize,
    woken: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for Slot {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.woken.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut woken = self.ready.woken.lock().unwrap_or_else(PoisonError::into_inner);
        woken.places.push(self.place);
        if !woken.busy
            && let Some(task) = &woken.task
        {
            task.wake_by_ref();
        }
    }
}

struct Place<J> {
    job: Option<J>,
    /// The stream that it is for.
    stream: u32,
    slot: Arc<Slot>,
    waker: Waker,
}

/// See the module.
pub struct Jobs<J> {
    places: Vec<Place<J>>,
    free: Vec<usize>,
    ready: Arc<Ready>,
}

impl<J> Jobs<J> {
    /// None.
    pub fn new() -> Self {
        Jobs { places: Vec::new(), free: Vec::new(), ready: Arc::default() }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    /// One more, to be looked at at once.
    pub fn insert(&mut self, stream: u32, job: J) -> usize {
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                let place = self.places.len();
                let slot = Arc::new(Slot { place, woken: AtomicBool::new(false), ready: Arc::clone(&self.ready) });
                let waker = Waker::from(Arc::clone(&slot));
                self.places.push(Place { job: None, stream, slot, waker });
                place
            }
        };
        if let Some(place) = self.places.get_mut(at) {
            (place.job, place.stream) = (Some(job), stream);
        }
        self.stir(at);
        at
    }

    /// Has a job looked at.
    pub fn stir(&self, at: usize) {
        if let Some(place) = self.places.get(at) {
            place.slot.wake_by_ref();
        }
    }

    /// Takes a job out, to work on it; with its stream and its waker.
    pub fn take(&mut self, at: usize) -> Option<(J, u32, Waker)> {
        let place = self.places.get_mut(at)?;
        place.slot.woken.store(false, Ordering::Release);
        Some((place.job.take()?, place.stream, place.waker.clone()))
    }

    /// Puts it back.
    pub fn put_back(&mut self, at: usize, job: J) {
        if let Some(place) = self.places.get_mut(at) {
            place.job = Some(job);
        }
    }

    /// Its place is free: the job is over.
    pub fn over(&mut self, at: usize) {
        self.free.push(at);
    }

    /// Gives up the job of a stream, if it is there.
    pub fn remove(&mut self, at: usize, stream: u32) -> Option<J> {
        let job = self.places.get_mut(at).filter(|place| place.stream == stream)?.job.take()?;
        self.free.push(at);
        Some(job)
    }

    /// The task begins to work.
    pub fn begin(&self, cx: &Context<'_>) {
        let mut woken = self.ready.woken.lock().unwrap_or_else(PoisonError::into_inner);
        woken.busy = true;
        match &mut woken.task {
            Some(task) => task.clone_from(cx.waker()),
            None => woken.task = Some(cx.waker().clone()),
        }
    }

    /// Moves those that were woken behind `run`. `rests`: if there was none, the task ends its turn.
    pub fn woken(&self, run: &mut Vec<usize>, rests: bool) {
        let mut woken = self.ready.woken.lock().unwrap_or_else(PoisonError::into_inner);
        if rests && woken.places.is_empty() {
            woken.busy = false;
        }
        run.append(&mut woken.places);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_woken_are_looked_at() {
        let mut jobs = Jobs::new();
        let (a, b) = (jobs.insert(1, "a"), jobs.insert(3, "b"));
        let mut run = Vec::new();
        jobs.woken(&mut run, false);
        assert_eq!(run, [a, b]);
        let (job, stream, waker) = jobs.take(b).unwrap();
        assert_eq!((job, stream), ("b", 3));
        jobs.put_back(b, job);
        waker.wake_by_ref();
        waker.wake_by_ref();
        run.clear();
        jobs.woken(&mut run, true);
        assert_eq!(run, [b]);
        assert_eq!(jobs.remove(b, 1), None);
        assert_eq!(jobs.remove(b, 3), Some("b"));
        assert!(jobs.take(b).is_none() && !jobs.is_empty());
        assert_eq!(jobs.insert(5, "c"), b);
        jobs.take(a).unwrap();
        jobs.over(a);
        jobs.remove(b, 5);
        assert!(jobs.is_empty());
    }
}
