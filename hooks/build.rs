//! Compiles the eBPF programs with clang into OUT_DIR; no bytecode is kept in the repository.
//!
//! Needs clang (14 or newer), the kernel's uapi headers and libbpf's helper headers, and says which package is missing. `CLANG`
//! and `LLVM_STRIP` name other programs. The object is the same bytes wherever the sources lie; without `llvm-strip` it keeps
//! its debug information and is larger, that is all.
#![expect(clippy::print_stderr, reason = "the message of a failed build")]

use std::{
    env,
    io::{Error, ErrorKind},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

fn main() -> ExitCode {
    for path in ["bpf", "build.rs"] {
        println!("cargo:rerun-if-changed={path}");
    }
    for name in ["CLANG", "LLVM_STRIP"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<(), String> {
    let object = PathBuf::from(variable("OUT_DIR")?).join("fastpath.bpf.o");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let output = clang_command(&clang, &object)?.output().map_err(|e| missing_clang(&clang, &e))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("compile bpf/fastpath.bpf.c: {}\n{messages}{}", output.status, hint(&messages)));
    }
    for line in messages.lines() {
        println!("cargo:warning={line}");
    }
    strip(&object)
}

fn clang_command(clang: &str, object: &Path) -> Result<Command, String> {
    let source = variable("CARGO_MANIFEST_DIR")?;
    let target = if variable("CARGO_CFG_TARGET_ENDIAN")? == "big" { "bpfeb" } else { "bpfel" };
    // Debian keeps asm/ apart for each architecture, and clang does not look there for a target that is not the host.
    let multiarch = format!("/usr/include/{}-linux-gnu", variable("CARGO_CFG_TARGET_ARCH")?);
    let mut command = Command::new(clang);
    command
        .current_dir(&source)
        .args(["-O2", "-g", "-Wall", "-Wextra", "-target", target, "-mcpu=v3", "-idirafter", &multiarch])
        .arg(format!("-ffile-prefix-map={source}=."))
        .arg("-fdebug-compilation-dir=.")
        .args(["-c", "bpf/fastpath.bpf.c", "-o"])
        .arg(object);
    Ok(command)
}

/// Debug information goes, the type information that loaders and bpftool read (.BTF) stays.
fn strip(object: &Path) -> Result<(), String> {
    let strip = env::var("LLVM_STRIP").unwrap_or_else(|_| "llvm-strip".into());
    match Command::new(&strip).arg("-g").arg(object).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{strip} -g {}: {status}", object.display())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(format!("run {strip}: {e}")),
    }
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|e| format!("{name}: {e}"))
}

fn missing_clang(clang: &str, error: &Error) -> String {
    format!(
        "run {clang}: {error}; it compiles the eBPF programs: install clang (Debian: apt install clang llvm)"
    )
}

fn hint(messages: &str) -> &'static str {
    if messages.contains("'bpf/") {
        "libbpf's headers are missing: install them (Debian: apt install libbpf-dev)"
    } else if messages.contains("'linux/") || messages.contains("'asm/") {
        "the kernel's uapi headers are missing: install them (Debian: apt install linux-libc-dev)"
    } else {
        ""
    }
}
