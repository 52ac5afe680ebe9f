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
        1 => Just(Step::Crash),
        1 => Just(Step::Stop),
    ]
}

/// What a request has come to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Waiting,
    Claimed,
    Done,
    Refused,
}

#[derive(Debug, Default)]
struct Model {
    requests: BTreeMap<(ModelId, i64), (RequestId, Stage)>,
    /// In the order in which they were claimed.
    open: Vec<(ModelId, i64)>,
}

impl Model {
    /// The run's requests that may be claimed now: nothing before them is missing.
    fn claimable(&self, run: &ModelId) -> Vec<i64> {
        let stages = (0..).map_while(|seq| Some((seq, self.requests.get(&(run.clone(), seq))?.1)));
        stages.filter(|&(_, stage)| stage == Stage::Waiting).map(|(seq, _)| seq).collect()
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
    let stage = if refused { Stage::Refused } else { Stage::Waiting };
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
            Stage::Refused => finished(Outcome::Failed(failure("refused"))),
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
