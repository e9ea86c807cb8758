//! Generates the messages and services of `proto/` into `OUT_DIR`, and a file that names their modules: the generator's
//! own `mod.rs` begins with an inner attribute, which `include!` does not take.

use std::error::Error;

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

const INPUTS: &[&str] = &["proto/cri.proto", "proto/network.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("messages");
    std::fs::create_dir_all(&out)?;
    Codegen::new()
        .out_dir(&out)
        .inputs(INPUTS)
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .customize(Customize { async_all: true, gen_mod: false, ..Default::default() })
        .run()?;
    let mut modules = String::new();
    for file in std::fs::read_dir(&out)? {
        let path = file?.path();
        if let Some(name) = path.file_stem().and_then(|name| name.to_str()).filter(|name| *name != "modules")
        {
            modules.push_str(&format!("pub mod {name};\n"));
        }
    }
    std::fs::write(out.join("modules.rs"), modules)?;
    Ok(())
}
