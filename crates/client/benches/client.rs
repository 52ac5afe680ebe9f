//! CPU time of one `optim_step`, submitted and polled for, in this client and in the official Python SDK, against
//! the same mock server: `cargo bench -p tinsmith --bench client -- [--python PYTHON]`. `--test` is a quick run.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
    time::Instant,
};

use tinsmith::{AdamParams, ServiceClient, testing::MockServer};

/// Steps before the clock starts, and by it.
const WARM_UP: usize = 200;
const STEPS: usize = 4000;
/// Steps on their way at once, where they are.
const IN_FLIGHT: usize = 32;
/// Kernel ticks a second, in which Linux counts processor time.
const TICKS: f64 = 100.0;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    if has("--serve") {
        serve();
    } else if has("--test") {
        let server = Server::start();
        rust(&server.url, 8);
    } else {
        let server = Server::start();
        let python = arguments.iter().position(|argument| argument == "--python");
        let python = python.and_then(|at| arguments.get(at + 1));
        let rows = [("tinsmith", Some(rust(&server.url, STEPS)))];
        let python = python.map(|python| ("tinker 0.38.0 (Python)", measured(python, &server.url)));
        report(rows.into_iter().chain(python));
    }
}

/// Microseconds for each step: of processor time, and of the clock on the wall; one after another, then with
/// several on their way.
#[derive(Clone, Copy)]
struct Figures {
    one_cpu: f64,
    one_wall: f64,
    many_cpu: f64,
    many_wall: f64,
}

#[expect(clippy::print_stdout, reason = "a benchmark talks on the terminal")]
fn report<'a>(rows: impl Iterator<Item = (&'a str, Option<Figures>)>) {
    println!("| client | CPU, one by one | wall | CPU, {IN_FLIGHT} in flight | wall |");
    println!("|---|---|---|---|---|");
    for (name, figures) in rows {
        match figures {
            Some(Figures { one_cpu, one_wall, many_cpu, many_wall }) => println!(
                "| {name} | {one_cpu:.0} µs | {one_wall:.0} µs | {many_cpu:.0} µs | {many_wall:.0} µs |"
            ),
            None => println!("| {name} | failed | | | |"),
        }
    }
}

/// The mock server in a process of its own, so that its time does not count.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start() -> Self {
        let program = std::env::current_exe().expect("a running program has a file");
        let mut process = Command::new(program)
            .arg("--serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program can be started again");
        let output = process.stdout.take().expect("it was asked for");
        let mut url = String::new();
        BufReader::new(output).read_line(&mut url).expect("the server prints its address");
        Self { process, url: url.trim().to_owned() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        self.process.wait().expect("the server ends with its input");
    }
}

/// Serves until the input ends.
#[expect(clippy::print_stdout, reason = "the other process reads it")]
fn serve() {
    let server = MockServer::start().expect("a local port is free");
    println!("{}", server.url());
    std::io::stdin().read_to_end(&mut Vec::new()).expect("the input can be read");
}

fn rust(url: &str, steps: usize) -> Figures {
    let config = tinsmith::Config::builder().base_url(url).api_key("tml-bench").build();
    let service = ServiceClient::connect_blocking(config.expect("the settings are good"));
    let service = service.expect("the server is there");
    let training = service.create_lora_training_client("test-model").wait();
    let training = training.expect("the mock server trains every model");
    let step = || training.optim_step(AdamParams::default());
    let one = |steps: usize| {
        for _ in 0..steps {
            step().wait().expect("the mock server takes every step");
        }
    };
    let many = |steps: usize| {
        for _ in 0..steps / IN_FLIGHT {
            let futures: Vec<_> = (0..IN_FLIGHT).map(|_| step()).collect();
            for future in futures {
                future.wait().expect("the mock server takes every step");
            }
        }
    };
    one(WARM_UP.min(steps));
    let (one_cpu, one_wall) = timed(steps, one);
    let (many_cpu, many_wall) = timed(steps, many);
    Figures { one_cpu, one_wall, many_cpu, many_wall }
}

/// Microseconds of processor and wall time for each of so many steps.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn timed(steps: usize, run: impl Fn(usize)) -> (f64, f64) {
    let (cpu, wall) = (cpu_seconds(), Instant::now());
    run(steps);
    let each = |seconds: f64| seconds * 1e6 / f64::from(u32::try_from(steps).unwrap_or(u32::MAX));
    (each(cpu_seconds() - cpu), each(wall.elapsed().as_secs_f64()))
}

/// User and system time of this process, all its threads together; 0 where the kernel does not tell.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which is in parentheses: the state is field 3, the times are fields 14 and 15.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// The same steps in Python.
fn measured(python: &str, url: &str) -> Option<Figures> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/client.py");
    let steps = (STEPS / 4).to_string();
    let output = Command::new(python)
        .args([script, url, &steps, &IN_FLIGHT.to_string()])
        .env("TINKER_TELEMETRY", "0")
        .stderr(Stdio::inherit())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let figures: Vec<f64> =
        text.split_whitespace().filter_map(|figure| figure.parse().ok()).collect();
    let [one_cpu, one_wall, many_cpu, many_wall] = figures[..] else { return None };
    Some(Figures { one_cpu, one_wall, many_cpu, many_wall })
}
