//! What of the recordings is not checked, and why.

/// A body that does not pass, with the reason.
#[derive(Debug)]
pub(super) struct LeftOut {
    pub(super) file: &'static str,
    exchange: usize,
    side: &'static str,
    #[expect(dead_code, reason = "for readers, and for the message of a failing test")]
    why: &'static str,
}

impl LeftOut {
    pub(super) fn place(&self) -> (&str, usize, &str) {
        (self.file, self.exchange, self.side)
    }
}

/// Bodies without a type: endpoint and side, and the reason.
pub(super) const NO_TYPE: &[(&str, &str)] =
    &[("POST cancel_future response", "clients do not look at it")];

pub(super) const LEFT_OUT: &[LeftOut] = &[
    LeftOut {
        file: "0.38.0/behaviour.future.failed_unknown_category",
        exchange: 1,
        side: "response",
        why: "faulty on purpose: its category does not exist and reads as `unknown`",
    },
    LeftOut {
        file: "0.38.0/behaviour.future.schema_mismatch",
        exchange: 1,
        side: "response",
        why: "faulty on purpose: a result without its required field",
    },
    LeftOut {
        file: "0.38.0/behaviour.status.200_schema",
        exchange: 0,
        side: "response",
        why: "faulty on purpose: an answer of another shape",
    },
    LeftOut {
        file: "0.38.0/cli.run_list_all",
        exchange: 2,
        side: "response",
        why: "cut off in the recording; `cli.run_list.json` has the same shape",
    },
    LeftOut {
        file: "0.38.0/cli.run_list_all",
        exchange: 3,
        side: "response",
        why: "cut off in the recording; `cli.run_list.json` has the same shape",
    },
];
