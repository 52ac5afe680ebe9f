//! Threads that live as long as the backend, each on a core of its own.
//!
//! Tasks are claimed from a shared counter, so a core that is taken away for a while costs one task.
//! The caller works too and never waits for a thread that has not begun. What a task computes must
//! not depend on who runs it, nor on what its thread ran before: between two tasks the caller may
//! run other ops (`between.rs`), so a task is a few milliseconds of work at most.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use tinsmith_backend::Between;

use crate::between::Slot;

/// Rounds of looking before a thread offers its core to others: about 50 µs, longer than what one thread
/// does alone between two ops of a step.
const SPINS: usize = 800;

/// Rounds of looking, each after an offer, before it sleeps: a few hundred µs, for waking a thread takes
/// as long on some machines.
const OFFERS: usize = 300;

/// A fixed set of threads, the caller's among them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    /// What runs between tasks.
    pub(crate) between: Slot,
}

impl Pool {
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let cores = allowed_cores();
        let mut workers = Workers { shared: Arc::clone(&shared), threads: Vec::new() };
        for i in 1..threads.max(1) {
            let shared = Arc::clone(&shared);
            let core = cores.get(i).copied();
            let worker = thread::Builder::new().name(format!("compute-{i}")).spawn(move || {
                if let Some(core) = core {
                    pin(core);
                }
                shared.work();
            })?;
            workers.threads.push(worker);
        }
        Ok(Self { shared, workers: Arc::new(workers), between: Slot::default() })
    }

    /// The same threads for another backend.
    pub(crate) fn sibling(&self) -> Self {
        let (shared, workers) = (Arc::clone(&self.shared), Arc::clone(&self.workers));
        Self { shared, workers, between: Slot::default() }
    }

    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0..tasks)`, in any order, on any threads, and returns when all are done.
    ///
    /// What is due meanwhile runs on this thread, while no task does.
    pub(crate) fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.between.with(|between| {
            let mut first = 0;
            while first < tasks {
                first = self.part(first..tasks, task, between);
                if between.is_due() {
                    between.run();
                }
            }
        });
    }

    /// Runs the first of these tasks, all of them or until something is due; the first that is left.
    fn part(
        &self,
        tasks: Range<usize>,
        task: &(dyn Fn(usize) + Sync),
        between: &mut dyn Between,
    ) -> usize {
        // Another thread may be at work with a sibling: then this one works alone.
        let calls = self.workers.len() > 0 && tasks.len() > 1;
        let Some(_entered) = calls.then(|| self.shared.enter()).flatten() else {
            return here(tasks, task, between);
        };
        // SAFETY: `Running` waits, on return and on panic, until no worker holds the job.
        let task: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(task) };
        let (first, tasks) = (tasks.start, tasks.end);
        self.shared.next.store(first, Ordering::Relaxed);
        {
            let mut state = self.shared.lock();
            state.job = Some(Job { task, tasks });
            self.shared.epoch.fetch_add(1, Ordering::Release);
        }
        if self.shared.sleeping.load(Ordering::Relaxed) > 0 {
            if tasks > 2 {
                self.shared.start.notify_all();
            } else {
                self.shared.start.notify_one();
            }
        }
        let running = Running(&self.shared);
        let left = self.shared.claim_until(Job { task, tasks }, between);
        drop(running);
        if self.shared.panicked.swap(false, Ordering::Relaxed) {
            panic!("a compute thread panicked");
        }
        left
    }

    /// Runs the tasks here if they are little work, else on all threads.
    pub(crate) fn run_sized(&self, tasks: usize, work: usize, task: &(dyn Fn(usize) + Sync)) {
        if self.is_worth(work) {
            self.run(tasks, task);
        } else {
            (0..tasks).for_each(task);
            self.give_way();
        }
    }

    /// Runs `task` on parts of `0..rows`, each row in one of them: here, as one part, if all rows together
    /// are little work.
    pub(crate) fn run_rows(&self, rows: usize, work: usize, task: &(dyn Fn(Range<usize>) + Sync)) {
        /// Parts for each thread: few, for each is a claim, but enough for threads that come late.
        const PARTS: usize = 4;
        /// Rows of a part at most, so that no task is long.
        const PART_ROWS_MAX: usize = 1024;
        if rows == 0 {
        } else if self.is_worth(work) {
            let step = rows.div_ceil(PARTS * self.threads()).min(PART_ROWS_MAX);
            self.run(rows.div_ceil(step), &|part| task(part * step..rows.min((part + 1) * step)));
        } else {
            task(0..rows);
            self.give_way();
        }
    }

    /// Whether so many multiply-adds take longer than it takes to call another thread.
    fn is_worth(&self, work: usize) -> bool {
        /// If one is looking for work.
        const WORTH_CALLING: usize = 50_000;
        /// If all sleep.
        const WORTH_WAKING: usize = 200_000;
        let awake = self.shared.sleeping.load(Ordering::Relaxed) < self.workers.len();
        work >= if awake { WORTH_CALLING } else { WORTH_WAKING }
    }

    /// Runs what is due.
    fn give_way(&self) {
        self.between.with(|between| {
            if between.is_due() {
                between.run();
            }
        });
    }
}

/// Runs the first of these tasks on this thread, all of them or until something is due.
fn here(
    mut tasks: Range<usize>,
    task: &(dyn Fn(usize) + Sync),
    between: &mut dyn Between,
) -> usize {
    for i in tasks.by_ref() {
        task(i);
        if between.is_due() {
            break;
        }
    }
    tasks.start
}

/// The threads of a pool and its siblings; they end when the last of these is dropped.
struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    fn len(&self) -> usize {
        self.threads.len()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.epoch.fetch_add(1, Ordering::Release);
        self.shared.start.notify_all();
        for worker in self.threads.drain(..) {
            // Its panics were the caller's when they happened.
            drop(worker.join());
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

#[derive(Clone, Copy)]
struct Job {
    task: &'static (dyn Fn(usize) + Sync),
    tasks: usize,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    stop: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    start: Condvar,
    done: Condvar,
    /// Counts jobs, so that a thread can look for one without the lock.
    epoch: AtomicU64,
    /// Workers that hold the job; changed under the lock upwards, without it downwards.
    active: AtomicUsize,
    /// Workers that sleep, or are about to; changed under the lock.
    sleeping: AtomicUsize,
    next: AtomicUsize,
    panicked: AtomicBool,
    /// Whether a job is out.
    taken: AtomicBool,
}

impl Shared {
    /// Nothing in the state can be left half changed, so a poisoned lock is as good as another.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(&self, job: Job) {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= job.tasks {
                return;
            }
            (job.task)(i);
        }
    }

    /// As [`Self::claim`], until something is due. Nobody claims anything then; the first task that is left.
    fn claim_until(&self, job: Job, between: &mut dyn Between) -> usize {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= job.tasks {
                return job.tasks;
            }
            (job.task)(i);
            if between.is_due() {
                return self.next.swap(usize::MAX / 2, Ordering::Relaxed).min(job.tasks);
            }
        }
    }

    /// Takes leave to give a job out, if nobody else has it.
    fn enter(&self) -> Option<Entered<'_>> {
        (!self.taken.swap(true, Ordering::Acquire)).then(|| Entered(self))
    }

    fn work(&self) {
        let mut seen = 0;
        while let Some(job) = self.wait_for_job(&mut seen) {
            if catch_unwind(AssertUnwindSafe(|| self.claim(job))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            if self.active.fetch_sub(1, Ordering::Release) == 1 {
                // The lock makes sure that the caller is not between its look and its sleep.
                drop(self.lock());
                self.done.notify_one();
            }
        }
    }

    /// `None`: the pool ends.
    fn wait_for_job(&self, seen: &mut u64) -> Option<Job> {
        loop {
            let called = |seen: u64| self.epoch.load(Ordering::Acquire) != seen;
            look(|| called(*seen));
            let mut state = self.lock();
            while !called(*seen) {
                self.sleeping.fetch_add(1, Ordering::Relaxed);
                state = self.start.wait(state).unwrap_or_else(PoisonError::into_inner);
                self.sleeping.fetch_sub(1, Ordering::Relaxed);
            }
            if state.stop {
                return None;
            }
            *seen = self.epoch.load(Ordering::Acquire);
            // None where the others were done before: the next one is likely to come soon.
            if let Some(job) = state.job {
                self.active.fetch_add(1, Ordering::Relaxed);
                return Some(job);
            }
        }
    }
}

/// Looks for something for a while; whether it came.
fn look(came: impl Fn() -> bool) -> bool {
    for _ in 0..SPINS {
        if came() {
            return true;
        }
        std::hint::spin_loop();
    }
    for _ in 0..OFFERS {
        if came() {
            return true;
        }
        thread::yield_now();
    }
    false
}

/// Leave to give a job out.
struct Entered<'a>(&'a Shared);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::Release);
    }
}

/// Takes the job away when dropped, and waits for those who have it.
struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // The tasks that nobody has begun are not worth doing if the caller's panicked.
        self.0.next.store(usize::MAX / 2, Ordering::Relaxed);
        self.0.lock().job = None;
        if look(|| self.0.active.load(Ordering::Acquire) == 0) {
            return;
        }
        let mut state = self.0.lock();
        while self.0.active.load(Ordering::Acquire) > 0 {
            state = self.0.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Physical cores that this process may use, at least 1; a quota of its control group counts.
pub fn physical_cores() -> usize {
    let allowed = allowed_cores();
    let distinct = allowed.iter().map(|&core| siblings(core)).collect::<BTreeSet<_>>();
    let quota = thread::available_parallelism().map_or(1, usize::from);
    distinct.len().clamp(1, quota)
}

/// Logical CPUs that this process may use, one of each physical core before the second of any.
fn allowed_cores() -> Vec<usize> {
    // SAFETY: a CPU set is a bit array, for which zero is a value; the call fills at most its size.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set);
        set
    };
    let mut taken = BTreeMap::<String, usize>::new();
    let mut cores = Vec::new();
    for core in 0..8 * size_of::<libc::cpu_set_t>() {
        // SAFETY: `core` is less than the bits of the set.
        if unsafe { libc::CPU_ISSET(core, &set) } {
            let count = taken.entry(siblings(core)).or_default();
            cores.push((*count, core));
            *count += 1;
        }
    }
    cores.sort_unstable();
    cores.into_iter().map(|(_, core)| core).collect()
}

/// The logical CPUs of one physical core, as the kernel lists them; the number alone if it does not.
fn siblings(core: usize) -> String {
    let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
    fs::read_to_string(path).unwrap_or_else(|_| core.to_string())
}

/// Keeps this thread on one logical CPU; where that is forbidden it runs anywhere.
fn pin(core: usize) {
    // SAFETY: as in `allowed_cores`; `core` came from a set of the same size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tinsmith_backend::Between;

    use super::Pool;

    #[test]
    fn every_task_runs_once() {
        let pool = Pool::new(3).unwrap();
        for tasks in [0, 1, 2, 3, 100] {
            let counts = (0..tasks).map(|_| AtomicUsize::new(0)).collect::<Vec<_>>();
            for _ in 0..200 {
                pool.run(tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 200));
        }
    }

    /// Something is due after every task, and uses the threads itself.
    #[test]
    fn what_is_due_runs_between_tasks() {
        struct Due<'a>(Pool, &'a AtomicUsize, usize);
        impl Between for Due<'_> {
            fn is_due(&mut self) -> bool {
                true
            }

            fn run(&mut self) {
                assert_eq!(self.1.load(Ordering::Relaxed), 0, "no task runs meanwhile");
                let count = AtomicUsize::new(0);
                self.0.run(10, &|_| {
                    count.fetch_add(1, Ordering::Relaxed);
                });
                assert_eq!(count.into_inner(), 10);
                self.2 += 1;
            }
        }

        for threads in [1, 3] {
            let pool = Pool::new(threads).unwrap();
            let running = AtomicUsize::new(0);
            let mut due = Due(pool.sibling(), &running, 0);
            for tasks in [1, 2, 3, 100] {
                let counts = (0..tasks).map(|_| AtomicUsize::new(0)).collect::<Vec<_>>();
                let task = |i: usize| {
                    running.fetch_add(1, Ordering::Relaxed);
                    counts[i].fetch_add(1, Ordering::Relaxed);
                    running.fetch_sub(1, Ordering::Relaxed);
                };
                pool.between.lend(&mut due, || pool.run(tasks, &task));
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
            let seen = due.2;
            assert!(seen > 0);
            pool.run(10, &|_| {});
            assert_eq!(due.2, seen, "it is lent no more");
        }
    }

    #[test]
    fn siblings_at_once_work_alone() {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for pool in [pool.sibling(), pool.sibling()] {
                let sum = &sum;
                let task = move |i: usize| {
                    sum.fetch_add(i, Ordering::Relaxed);
                };
                scope.spawn(move || (0..500).for_each(|_| pool.run(20, &task)));
            }
        });
        assert_eq!(sum.into_inner(), 2 * 500 * 190);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(50, &|i| assert!(i != 20, "task 20"));
        }));
        assert!(result.is_err());
        let count = AtomicUsize::new(0);
        pool.run(50, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 50);
    }
}
