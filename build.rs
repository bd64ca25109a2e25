//! Compiles the contract with protox, so that no `protoc` is needed, and writes the descriptor set for reflection and
//! the enum of the service's calls, by which each must have a rule of who may make it.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;

use prost::Message;
use prost_types::{FileDescriptorSet, MethodDescriptorProto};

/// Messages that print themselves without the secrets that they hold: `api/shown.rs`.
const HOLDING_SECRETS: [&str; 6] = [
    ".hooklane.v1.Endpoint",
    ".hooklane.v1.InlineEndpoint",
    ".hooklane.v1.RegisterEndpointRequest",
    ".hooklane.v1.RegisterEndpointResponse",
    ".hooklane.v1.RotateSecretRequest",
    ".hooklane.v1.RotateSecretResponse",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=migrations");
    let files = ["hooklane/v1/webhook_service.proto", "google/rpc/error_details.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(out.join("hooklane.bin"), descriptors.encode_to_vec())?;
    std::fs::write(out.join("methods.rs"), methods(&descriptors)?)?;
    let mut own = descriptors;
    own.file.retain(|file| !file.package().starts_with("google.rpc"));
    // Each message knows its name, by which the command line finds its descriptor and writes it as JSON.
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    config.skip_debug(HOLDING_SECRETS);
    tonic_prost_build::configure()
        .bytes(".")
        // Three quarters of the request's size, and hardly any has one: each would be moved with room for it.
        .boxed(".hooklane.v1.PublishRequest.inline_endpoint")
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        .codec_path("crate::api::codec::Protobuf")
        .compile_fds_with_config(own, config)?;
    Ok(())
}

/// The calls of the service as an enum. Whoever matches it without a wildcard does not compile beside a new call.
fn methods(descriptors: &FileDescriptorSet) -> Result<String, Box<dyn Error>> {
    let services =
        descriptors.file.iter().filter(|file| file.package() == "hooklane.v1").flat_map(|file| &file.service);
    let methods: Vec<&MethodDescriptorProto> = services.flat_map(|service| &service.method).collect();
    let mut code = String::from(
        "/// The calls of `WebhookService`.\n#[derive(Debug, Clone, Copy, PartialEq, Eq)]\npub(in crate::api) enum Method {\n",
    );
    for method in &methods {
        writeln!(code, "    /// `{0}`.\n    {0},", method.name())?;
    }
    code.push_str("}\n\nimpl Method {\n    /// By the last part of its path.\n");
    code.push_str("    pub(in crate::api) fn named(name: &str) -> Option<Self> {\n        match name {\n");
    for method in &methods {
        writeln!(code, "            \"{0}\" => Some(Self::{0}),", method.name())?;
    }
    code.push_str("            _ => None,\n        }\n    }\n\n    /// Its name in the contract.\n");
    code.push_str("    pub(in crate::api) const fn name(self) -> &'static str {\n        match self {\n");
    for method in &methods {
        writeln!(code, "            Self::{0} => \"{0}\",", method.name())?;
    }
    code.push_str("        }\n    }\n\n    /// Whether it answers with a stream.\n");
    code.push_str("    pub(in crate::api) const fn is_streaming(self) -> bool {\n        match self {\n");
    for method in &methods {
        writeln!(code, "            Self::{} => {},", method.name(), method.server_streaming())?;
    }
    code.push_str("        }\n    }\n}\n");
    Ok(code)
}
