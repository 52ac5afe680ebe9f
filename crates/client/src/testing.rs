//! For tests: a server in this process, and a clock on which nobody waits.
//!
//! [`MockServer`] answers every endpoint unless a script says otherwise, and keeps what it was asked. [`Recorder`]
//! keeps a conversation with a real server, and [`MockServer::replay`] repeats it.
//! A new endpoint is an arm in `testing/world.rs`.

mod body;
mod clock;
mod recorder;
mod recording;
mod replay;
mod script;
mod seen;
mod server;
mod transport;
mod world;

pub use clock::TestClock;
pub use recorder::Recorder;
pub use recording::{Exchange, RecordedBody, RecordedRequest, RecordedResponse, Recording};
pub use script::{Answer, When};
pub use seen::Seen;
pub use server::MockServer;
