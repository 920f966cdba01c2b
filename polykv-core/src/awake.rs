//! Keeps the threads of the CPU kernels awake between kernels.

use std::cell::Cell;
use std::hint::spin_loop;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long an idle thread spins: longer than the time between two kernels of a decode step.
const IDLE: Duration = Duration::from_micros(200);

/// How often a thread that has been idle for longer looks for work.
const PAUSE: Duration = Duration::from_micros(50);

/// After so long without work a thread stops looking, until [`again`]. It may have begun to look while it waited for a part of
/// other work, which the holder may wait for in turn.
const GIVE_UP: Duration = Duration::from_millis(2);

/// The number of [`Awake`] values that exist.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// Whether a thread has given up while there was a holder.
static GAVE_UP: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this thread holds an [`Awake`], or spins because of one. It must not begin to spin within that.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// While a value of this type exists, the threads of rayon's pool spin for a moment when they run out of work. Waking a
/// sleeping thread takes longer than all that a decode step does between two kernels.
pub struct Awake {
    before: bool,
    /// It belongs to its thread.
    _thread: PhantomData<*const ()>,
}

impl Awake {
    pub fn hold() -> Self {
        let before = BUSY.replace(true);
        if HELD.fetch_add(1, Ordering::Relaxed) == 0 {
            // Nobody waits for these: what they find to do may be somebody else's long work.
            rayon::spawn_broadcast(|_| look_for_work());
        }
        Self {
            before,
            _thread: PhantomData,
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        HELD.fetch_sub(1, Ordering::Relaxed);
        BUSY.set(self.before);
    }
}

/// What begins a piece of work calls this: threads that gave up look for work again if there is a holder.
pub fn again() {
    let wanted = || HELD.load(Ordering::Relaxed) > 0 && GAVE_UP.swap(false, Ordering::Relaxed);
    if GAVE_UP.load(Ordering::Relaxed) && wanted() {
        rayon::spawn_broadcast(|_| look_for_work());
    }
}

fn look_for_work() {
    if BUSY.replace(true) {
        return;
    }
    let mut since = Instant::now();
    while HELD.load(Ordering::Relaxed) > 0 {
        if rayon::yield_now() == Some(rayon::Yield::Executed) {
            since = Instant::now();
            continue;
        }
        match since.elapsed() {
            idle if idle < IDLE => (0..20).for_each(|_| spin_loop()),
            idle if idle < GIVE_UP => thread::sleep(PAUSE),
            _ => {
                GAVE_UP.store(true, Ordering::Relaxed);
                break;
            }
        }
    }
    BUSY.set(false);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    /// Holders in several threads, below each other, and one after the other without a pause.
    #[test]
    fn work_is_done_whoever_holds() {
        let numbers: Vec<u64> = (0..10_000).collect();
        let sum = || numbers.par_iter().with_max_len(100).sum::<u64>();
        let hold = |depth: usize| {
            rayon::scope(|_| {
                let _awake = Awake::hold();
                let inner = rayon::scope(|_| {
                    let _awake = (depth > 0).then(Awake::hold);
                    sum()
                });
                assert_eq!((inner, sum()), (49_995_000, 49_995_000));
            });
        };
        let hold = &hold;
        thread::scope(|scope| {
            for depth in [0, 1, 0, 1] {
                scope.spawn(move || (0..500).for_each(|_| hold(depth)));
            }
        });
        assert_eq!(HELD.load(Ordering::Relaxed), 0);
    }

    /// A thread that waits for a part of its own work must not wait for the holder, which waits for that work.
    #[test]
    fn a_holder_waits_for_work_that_is_interrupted() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build();
        pool.unwrap().install(|| {
            let [begun, go, taken] = [const { AtomicBool::new(false) }; 3];
            let wait = |flag: &AtomicBool| {
                while !flag.load(Ordering::SeqCst) {
                    spin_loop();
                }
            };
            let mut awake = None;
            rayon::in_place_scope(|scope| {
                // The other thread does this, and gets to know of the holder in the middle of it.
                scope.spawn(|_| {
                    begun.store(true, Ordering::SeqCst);
                    wait(&go);
                    rayon::join(
                        || wait(&taken),
                        || {
                            taken.store(true, Ordering::SeqCst);
                            thread::sleep(Duration::from_millis(20));
                        },
                    );
                });
                wait(&begun);
                awake = Some(Awake::hold());
                go.store(true, Ordering::SeqCst);
                while !taken.load(Ordering::SeqCst) {
                    rayon::yield_now();
                }
            });
            drop(awake);
        });
    }
}
