//! The loss of a batch that names one its client sent.

use bytes::Bytes;
use tinsmith_graph::Input;
use tinsmith_store::RunRecord;
use tinsmith_types::{
    custom_losses::CreateCustomLossRequest,
    ids::{LossId, TenantId},
    proto::{
        Datum, Dtype, ForwardBackwardRequest, LossConfigValue, Tensor,
        loss_config_value::Value,
        pack::{unpack_f32, unpack_i64},
    },
    queued::QueuedRequest,
};

use crate::{
    check::{Fault, ensure},
    error::{Error, Result},
    routes::custom_losses,
    state::Shared,
};

/// The `loss_fn` that asks for one.
pub(crate) const NAME: &str = "custom";
/// The setting that names it.
pub(crate) const LOSS_ID: &str = "loss_id";

/// A loss that a batch names.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) inputs: Vec<Input>,
    /// What its client sent.
    body: Bytes,
}

impl Found {
    /// Puts a copy of the loss into a batch that is about to be written down: whoever runs it needs nothing else, and
    /// a replay sees the same.
    pub(crate) fn put_into(&self, mut request: QueuedRequest) -> QueuedRequest {
        if let QueuedRequest::Forward(batch) | QueuedRequest::ForwardBackward(batch) = &mut request
        {
            let text = String::from_utf8_lossy(&self.body).into_owned();
            let value = LossConfigValue { value: Some(Value::Text(text)) };
            batch.loss_fn_config_v2.insert("loss".to_owned(), value);
        }
        request
    }
}

/// The loss of a batch, `None` where it asks for another kind.
///
/// # Errors
/// What is wrong with the batch, inside; that the store failed, outside.
pub(crate) async fn find(
    app: &Shared,
    tenant: &TenantId,
    run: &RunRecord,
    request: &ForwardBackwardRequest,
) -> Result<Result<Option<Found>, Fault>> {
    if request.loss_fn != NAME {
        return Ok(Ok(None));
    }
    let id = match loss_id(request) {
        Ok(id) => id,
        Err(fault) => return Ok(Err(fault)),
    };
    let unknown = || {
        Fault(format!(
            "loss_fn_config.{LOSS_ID}: there is no custom loss {:?} in the run's session {}; make it with \
             create_custom_loss",
            id.0, run.session_id
        ))
    };
    let record = match app.store.custom_loss(tenant, &id).await {
        Ok(record) if record.session_id == run.session_id => record,
        Ok(_) | Err(tinsmith_store::Error::NotFound { .. }) => return Ok(Err(unknown())),
        Err(error) => return Err(error.into()),
    };
    let request: CreateCustomLossRequest = serde_json::from_slice(&record.body)
        .map_err(|error| Error::Internal { detail: format!("custom loss {id}: {error}") })?;
    Ok(Ok(Some(Found { inputs: custom_losses::inputs(&request), body: record.body })))
}

/// Checks what the loss reads of a datum, and counts its values beside the targets.
pub(crate) fn datum(inputs: &[Input], place: &str, datum: &Datum) -> Result<usize, Fault> {
    let mut cells = 0_usize;
    for (index, input) in inputs.iter().enumerate() {
        let name = if index == 0 { "target_tokens" } else { input.name.as_str() };
        let place = format!("{place}.loss_fn_inputs.{name}");
        let tensor = datum.loss_fn_inputs.get(name);
        let tensor =
            tensor.ok_or_else(|| Fault(format!("{place} is missing; the custom loss takes it")))?;
        ensure(tensor.shape.len() == usize::from(input.rank), || {
            format!(
                "{place} has the shape {:?}, but the custom loss declared {} with rank {}",
                tensor.shape, input.name, input.rank
            )
        })?;
        if index > 0 {
            cells = cells.saturating_add(values(&place, tensor)?);
        }
    }
    Ok(cells)
}

/// Counts the values of a tensor of any shape, those that a sparse one does not list included.
fn values(place: &str, tensor: &Tensor) -> Result<usize, Fault> {
    let at = |error: tinsmith_types::Error| Fault(format!("{place}: failed to {error}"));
    ensure(tensor.encoding.is_some(), || format!("{place} has no data"))?;
    let layout = tensor.layout().map_err(at)?;
    let found = match tensor.dtype() {
        Dtype::Float32 => unpack_f32(tensor.stored()).map_err(at)?.len(),
        Dtype::Int64 => {
            let values = unpack_i64(tensor.stored()).map_err(at)?;
            let wrong = values.iter().find(|value| value.unsigned_abs() > WHOLE_MAX);
            if let Some(wrong) = wrong {
                return Err(Fault(format!("{place} has the value {wrong}; 2^53 is the largest")));
            }
            values.len()
        }
        Dtype::Unspecified | Dtype::Int32 | Dtype::Bfloat16 => {
            return Err(Fault(format!("{place} has another dtype than float32 or int64")));
        }
    };
    ensure(found == layout.stored(), || {
        format!("{place} has {found} values in place of {}", layout.stored())
    })?;
    Ok(layout.cells())
}

/// All whole numbers up to this are exact in the interpreter.
const WHOLE_MAX: u64 = 1 << f64::MANTISSA_DIGITS;

fn loss_id(request: &ForwardBackwardRequest) -> Result<LossId, Fault> {
    let settings = request.loss_fn_config.keys().chain(request.loss_fn_config_v2.keys());
    if let Some(other) = settings.into_iter().find(|name| *name != LOSS_ID) {
        return Err(Fault(format!(
            "loss_fn_config.{other} is no setting of {NAME}; known: {LOSS_ID}"
        )));
    }
    match request.loss_fn_config_v2.get(LOSS_ID).and_then(|value| value.value.as_ref()) {
        Some(Value::Text(id)) => Ok(LossId(id.clone())),
        Some(Value::Number(number)) => {
            Err(Fault(format!("loss_fn_config.{LOSS_ID} is {number}, not a text")))
        }
        None => Err(Fault(format!(
            "loss_fn_config.{LOSS_ID} is missing; {NAME} needs the id that create_custom_loss gave"
        ))),
    }
}
