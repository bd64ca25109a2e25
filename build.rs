//! Compiles the contract with protox, so that no `protoc` is needed, and writes the descriptor set for reflection.

use std::env;
use std::error::Error;
use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=migrations");
    let files = ["hooklane/v1/webhook_service.proto", "google/rpc/error_details.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    let descriptor_file = PathBuf::from(env::var("OUT_DIR")?).join("hooklane.bin");
    std::fs::write(descriptor_file, descriptors.encode_to_vec())?;
    let mut own = descriptors;
    own.file.retain(|file| !file.package().starts_with("google.rpc"));
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        .compile_fds(own)?;
    Ok(())
}
