//! `src/proto/generated.rs` is what prost makes of `proto/tinker_public.proto`. It is checked in, so
//! that building needs no protobuf compiler; `UPDATE_GENERATED=1` writes it anew.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

#[test]
fn generated_code_is_current() -> Result<(), Box<dyn Error>> {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let checked_in = crate_dir.join("src/proto/generated.rs");
    let fresh = generate(&crate_dir.join("proto"))?;
    if env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(&checked_in, &fresh)?;
    }
    let current = fs::read_to_string(&checked_in)?;
    assert!(
        current == fresh,
        "src/proto/generated.rs is not what proto/tinker_public.proto says: \
         UPDATE_GENERATED=1 cargo test -p tinsmith-types generated"
    );
    Ok(())
}

/// Ordered maps, so that encoding what was decoded is canonical; `Bytes`, so that decoding copies no
/// array.
fn generate(proto_dir: &Path) -> Result<String, Box<dyn Error>> {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("generated");
    fs::create_dir_all(&out)?;
    let files = protox::compile(["tinker_public.proto"], [proto_dir])?;
    prost_build::Config::new().btree_map(["."]).bytes(["."]).out_dir(&out).compile_fds(files)?;
    Ok(fs::read_to_string(out.join("tinker_public.rs"))?)
}
