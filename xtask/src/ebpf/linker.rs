//! bpf-linker, which makes one eBPF object of what the compiler emits. It is a tool of the build alone: it is kept in a cache folder,
//! out of the user's path, and its version is pinned.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::command::{self, cargo, target_dir};
use crate::machine::{self, Prerequisite, Probe};

const VERSION: &str = "0.13.0";
/// The versions of LLVM that it can be built with.
const LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

/// The linker for a compiler with this LLVM; builds it if it is not in the cache.
pub fn ensure(llvm: u32) -> Result<PathBuf> {
    ensure!(
        LLVMS.contains(&llvm),
        "the compiler has LLVM {llvm}, but bpf-linker {VERSION} knows {} to {}; take another nightly, or a newer bpf-linker",
        LLVMS.start(),
        LLVMS.end()
    );
    let prefix = format!("/usr/lib/llvm-{llvm}");
    let folder = cache_folder()?.join(format!("bpf-linker-{VERSION}-llvm-{llvm}"));
    let program = folder.join("bin/bpf-linker");
    // It is linked with LLVM's shared library, which may have gone since.
    if program.is_file() && Probe::Succeeds(&[&program.to_string_lossy(), "--version"]).holds() {
        return Ok(program);
    }
    let prefix = env::var("LLVM_PREFIX").unwrap_or(prefix);
    ensure_llvm(llvm, &prefix)?;
    println!("Building bpf-linker {VERSION}, once, for {}", folder.display());
    let features = format!("llvm-{llvm}");
    let mut install = cargo();
    install
        .args(["install", "bpf-linker", "--version", &format!("={VERSION}"), "--locked", "--force"])
        .args(["--no-default-features", "--features", &features])
        .arg("--root")
        .arg(&folder)
        .arg("--target-dir")
        .arg(target_dir().join("bpf-linker"))
        .env("LLVM_PREFIX", &prefix)
        .env("RUSTFLAGS", format!("-L native={prefix}/lib"));
    command::run(&mut install)?;
    Ok(program)
}

fn ensure_llvm(llvm: u32, prefix: &str) -> Result<()> {
    let (config, polly) = (format!("{prefix}/bin/llvm-config"), format!("{prefix}/lib/libPolly.a"));
    let (llvm_package, polly_package) = (format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev"));
    let of_llvm = |name, probe, package, why| Prerequisite { name, probe, package, why };
    machine::ensure(
        "To link eBPF programs, bpf-linker is built, which needs",
        &[
            of_llvm("LLVM", Probe::File(&config), &llvm_package, "it generates the code (elsewhere: LLVM_PREFIX=its folder)"),
            of_llvm("Polly", Probe::File(&polly), &polly_package, "LLVM is linked with it"),
            of_llvm("zlib", Probe::File("/usr/include/zlib.h"), "zlib1g-dev", "the same"),
            of_llvm("zstd", Probe::File("/usr/include/zstd.h"), "libzstd-dev", "the same"),
        ],
    )
}

/// Where built tools outlive a clone of the repository.
fn cache_folder() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|path| Path::new(path).is_absolute()) {
        Some(path) => PathBuf::from(path),
        None => Path::new(&env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache"),
    };
    Ok(base.join("ckpt-xtask"))
}
