//! Random schedules of everything, crashes included, against a model that is easy to believe.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::Path,
    time::Duration,
};

use proptest::prelude::*;
use tempfile::TempDir;
use tinsmith_types::ids::{ModelId, RequestId};

use super::{Fixture, done, failure, request};
use crate::{Outcome, RequestKind, Retrieved, Target};

const RUNS: u32 = 2;
const SEQS: i64 = 12;

#[derive(Clone, Debug)]
enum Step {
    Submit {
        run: u32,
        seq: i64,
        refused: bool,
    },
    Claim {
        max: usize,
    },
    /// The oldest claims that are still open.
    Complete {
        count: usize,
    },
    Sweep,
    /// Lets the time of every gap pass.
    GiveUp,
    /// Ends the process with nothing written that was not written already.
    Crash,
    Stop,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..RUNS, 1..SEQS, prop::bool::weighted(0.1))
            .prop_map(|(run, seq, refused)| Step::Submit { run, seq, refused }),
        4 => (1..6usize).prop_map(|max| Step::Claim { max }),
        4 => (1..4usize).prop_map(|count| Step::Complete { count }),
        1 => Just(Step::Sweep),
        1 => Just(Step::GiveUp),
        1 => Just(Step::Crash),
        1 => Just(Step::Stop),
    ]
}

/// What a request has come to.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Stage {
    Waiting,
    Claimed,
    Done,
    Failed(String),
}

#[derive(Debug, Default)]
struct Model {
    requests: BTreeMap<(ModelId, i64), (RequestId, Stage)>,
    /// In the order in which they were claimed.
    open: Vec<(ModelId, i64)>,
    /// By run: what is missing below is not waited for.
    given_up: BTreeMap<ModelId, i64>,
}

impl Model {
    /// The run's requests that may be claimed now: nothing before them is missing.
    fn claimable(&self, run: &ModelId) -> Vec<i64> {
        let waits = |seq: &i64| {
            let known = self.requests.get(&(run.clone(), *seq));
            known.is_some_and(|(_, stage)| *stage == Stage::Waiting)
        };
        (0..self.missing(run)).filter(waits).collect()
    }

    /// The first id that has not come and is waited for.
    fn missing(&self, run: &ModelId) -> i64 {
        let from = self.given_up.get(run).copied().unwrap_or(0);
        (from..).find(|&seq| !self.requests.contains_key(&(run.clone(), seq))).unwrap()
    }

    /// Fails what waits for a missing id.
    fn give_up(&mut self, run: &ModelId) {
        let missing = self.missing(run);
        let beyond = (run.clone(), missing)..(run.clone(), SEQS);
        let Some(((_, last), _)) = self.requests.range(beyond.clone()).next_back() else { return };
        self.given_up.insert(run.clone(), last + 1);
        for (_, (_, stage)) in self.requests.range_mut(beyond) {
            if *stage == Stage::Waiting {
                *stage = Stage::Failed(format!("seq {missing} never arrived"));
            }
        }
    }

    fn restarted(&mut self) {
        for (_, stage) in self.requests.values_mut() {
            if *stage == Stage::Claimed {
                *stage = Stage::Waiting;
            }
        }
        self.open.clear();
    }
}

/// Large every other time, so that both ways of storing take part.
fn content(run: &ModelId, seq: i64) -> String {
    format!("{run} {seq} ").repeat(if seq % 2 == 0 { 1 } else { 4 })
}

fn test_dir() -> TempDir {
    // Flushing to memory is quick, and as good for this purpose.
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// What a killed process leaves, and a torn record in the newest spool segment.
fn crashed(from: &Path) -> TempDir {
    let to = test_dir();
    copy(from, to.path());
    let spool = to.path().join("spool");
    let newest = fs::read_dir(spool).unwrap().map(|entry| entry.unwrap().path()).max();
    if let Some(newest) = newest {
        File::options().append(true).open(newest).unwrap().write_all(b"TSP1 torn").unwrap();
    }
    to
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let (entry, to) = (entry.as_ref().unwrap(), to.join(entry.as_ref().unwrap().file_name()));
        if entry.path().is_dir() {
            fs::create_dir(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

async fn submit(fixture: &Fixture, model: &mut Model, run: &ModelId, seq: i64, refused: bool) {
    let mut new = request(run, seq, content(run, seq).as_bytes());
    new.refused = refused.then(|| failure("refused"));
    let submitted = fixture.store.submit(&fixture.tenant, new).await.unwrap();
    let given_up = model.given_up.get(run).is_some_and(|&next| seq < next);
    let stage = match (refused, given_up) {
        (true, _) => Stage::Failed("refused".to_owned()),
        (false, true) => Stage::Failed(format!("seq {seq} arrived after its turn had passed")),
        (false, false) => Stage::Waiting,
    };
    let known = model.requests.get(&(run.clone(), seq));
    assert_eq!(submitted.fresh, known.is_none());
    let entry = model.requests.entry((run.clone(), seq));
    let (id, _) = entry.or_insert_with(|| (submitted.request_id.clone(), stage));
    assert_eq!(*id, submitted.request_id);
}

async fn claim(fixture: &Fixture, model: &mut Model, max: usize) {
    let runs: Vec<_> = (0..RUNS).map(|number| fixture.model(number)).collect();
    let mut expected: BTreeMap<_, _> =
        runs.iter().map(|run| (run.clone(), model.claimable(run).into_iter())).collect();
    let all: usize = expected.values().map(ExactSizeIterator::len).sum();
    let claimed = fixture.store.claim(max, Duration::ZERO).await.unwrap();
    assert_eq!(claimed.len(), max.min(all));
    for claimed in claimed {
        let Target::Run(run, seq) = claimed.target else { panic!("a sample") };
        assert_eq!(expected.get_mut(&run).unwrap().next(), Some(seq.0));
        assert_eq!(claimed.body, content(&run, seq.0));
        let (id, stage) = model.requests.get_mut(&(run.clone(), seq.0)).unwrap();
        assert_eq!(*id, claimed.request_id);
        *stage = Stage::Claimed;
        model.open.push((run, seq.0));
    }
}

async fn complete(fixture: &Fixture, model: &mut Model, count: usize) {
    let ended: Vec<_> = model.open.drain(..count.min(model.open.len())).collect();
    let mut completions = Vec::new();
    for (run, seq) in ended {
        let (id, stage) = model.requests.get_mut(&(run.clone(), seq)).unwrap();
        *stage = Stage::Done;
        completions.push(done(id, &content(&run, seq)));
    }
    for completed in fixture.store.complete(completions).await {
        completed.unwrap();
    }
}

async fn check_results(fixture: &Fixture, model: &Model) {
    for ((run, seq), (id, stage)) in &model.requests {
        let finished =
            |outcome| Retrieved::Finished { kind: RequestKind::ForwardBackward, outcome };
        let expected = match stage {
            Stage::Waiting | Stage::Claimed => Retrieved::Pending(crate::QueueState::Active),
            Stage::Done => finished(Outcome::Done(content(run, *seq).into())),
            Stage::Failed(message) => finished(Outcome::Failed(failure(message))),
        };
        assert_eq!(fixture.retrieve(id).await.unwrap(), expected, "{run} {seq}");
    }
}

async fn check(steps: Vec<Step>) {
    let mut dir = test_dir();
    let mut fixture = Fixture::new(Some(dir.path())).await;
    let mut model = Model::default();
    for number in 0..RUNS {
        let run = fixture.model(number);
        let mut new = request(&run, 0, content(&run, 0).as_bytes());
        new.creates = Some(super::new_run(&fixture.session));
        let id = fixture.store.submit(&fixture.tenant, new).await.unwrap().request_id;
        model.requests.insert((run, 0), (id, Stage::Waiting));
    }
    for step in steps {
        match step {
            Step::Submit { run, seq, refused } => {
                let run = fixture.model(run);
                submit(&fixture, &mut model, &run, seq, refused).await;
            }
            Step::Claim { max } => claim(&fixture, &mut model, max).await,
            Step::Complete { count } => complete(&fixture, &mut model, count).await,
            Step::Sweep => fixture.store.sweep().await.unwrap(),
            Step::GiveUp => {
                fixture.clock.advance(Duration::from_secs(600));
                fixture.store.claim(0, Duration::ZERO).await.unwrap();
                (0..RUNS).for_each(|number| model.give_up(&fixture.model(number)));
            }
            Step::Crash => {
                let copy = crashed(dir.path());
                fixture = fixture.reopen(copy.path());
                dir = copy;
                model.restarted();
            }
            Step::Stop => {
                fixture.store.close();
                fixture = fixture.reopen(dir.path());
                model.restarted();
            }
        }
    }
    check_results(&fixture, &model).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Each acknowledged request is handed out in order, again after a crash until it has completed,
    /// never afterwards, and its result is the one of its completion.
    #[test]
    fn every_schedule_keeps_the_promise(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(check(steps));
    }
}

/// Every request from several clients at once, in any order, while a worker runs them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_in_parallel_have_one_effect() {
    const COUNT: i64 = 20;
    let dir = test_dir();
    let fixture = Fixture::new(Some(dir.path())).await;
    let runs = [fixture.create_run(0).await, fixture.create_run(1).await];
    let mut submissions = tokio::task::JoinSet::new();
    // Each client has an order of its own.
    let orders = [1, 7, 13].map(|stride| (1..COUNT).map(move |step| step * stride % COUNT));
    for (seq, run) in
        orders.into_iter().flatten().flat_map(|seq| runs.iter().map(move |run| (seq, run)))
    {
        let new = request(run, seq, content(run, seq).as_bytes());
        let (store, tenant, run) = (fixture.store.clone(), fixture.tenant.clone(), run.clone());
        submissions.spawn(async move {
            ((run, seq), store.submit(&tenant, new).await.unwrap().request_id)
        });
    }
    let mut effects: BTreeMap<ModelId, Vec<i64>> = BTreeMap::new();
    for _ in 0..2 * COUNT {
        let claimed = fixture.store.claim(1, Duration::from_secs(60)).await.unwrap().remove(0);
        let Target::Run(run, seq) = claimed.target else { panic!("a sample") };
        effects.entry(run.clone()).or_default().push(seq.0);
        let completion = done(&claimed.request_id, &content(&run, seq.0));
        fixture.store.complete(vec![completion]).await.remove(0).unwrap();
    }
    let expected: Vec<_> = (0..COUNT).collect();
    assert_eq!(effects.into_values().collect::<Vec<_>>(), [expected.clone(), expected]);
    let mut ids = BTreeMap::new();
    for (key, id) in submissions.join_all().await {
        assert_eq!(*ids.entry(key).or_insert_with(|| id.clone()), id);
    }
    assert_eq!(fixture.claim_seqs().await, [0; 0]);
}
