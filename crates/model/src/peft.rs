//! Adapters and their training state as files. The adapter's are PEFT's, exactly.
pub(crate) fn tensor_name(module: &str, which: &str) -> String {
    format!("base_model.model.{module}.lora_{which}.weight")
}
