//! The kernel of the virtual machine: that of Debian's cloud images, unpacked from its package beside everything else that is built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{self, target_dir};

/// Depends on the package of the newest one.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Fetches it, if that was not done yet.
pub fn ensure() -> Result<PathBuf> {
    let folder = target_dir().join("vm");
    let kernel = folder.join("vmlinuz");
    if kernel.is_file() {
        return Ok(kernel);
    }
    if command::find("apt-get").is_none() || command::find("dpkg-deb").is_none() {
        bail!("the kernel comes from Debian's package {META_PACKAGE}; put any x86-64 kernel at {} instead", kernel.display());
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let scratch = tempfile::tempdir_in(&folder).context("cannot make a folder to unpack the kernel in")?;
    let package = newest()?;
    // Otherwise it complains that its own user cannot write here.
    let mut download = Command::new("apt-get");
    download.args(["download", "--quiet", "-o", "APT::Sandbox::User=root"]).arg(&package).current_dir(&scratch);
    command::run(&mut download)?;
    let archive = only(scratch.path(), |name| name.ends_with(".deb"))?;
    let unpacked = scratch.path().join("unpacked");
    command::run(Command::new("dpkg-deb").arg("--extract").arg(archive).arg(&unpacked))?;
    let image = only(&unpacked.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    fs::rename(&image, &kernel).with_context(|| format!("cannot move {} to {}", image.display(), kernel.display()))?;
    Ok(kernel)
}

/// The package of the newest kernel. The lists may be old, and name one that is gone.
fn newest() -> Result<String> {
    let mut update = Command::new("apt-get");
    command::run(update.args(["update", "--quiet"]))?;
    let mut depends = Command::new("apt-cache");
    let output = depends.args(["depends", META_PACKAGE]).output().context("cannot run apt-cache")?;
    parse(&String::from_utf8_lossy(&output.stdout))
        .map(str::to_owned)
        .with_context(|| format!("`{}` names no package of a kernel", command::line(&depends)))
}

/// "  Depends: linux-image-6.1.0-56-cloud-amd64"
fn parse(depends: &str) -> Option<&str> {
    let on = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "))?;
    on.starts_with("linux-image-").then_some(on)
}

/// The only file of a folder with such a name.
fn only(folder: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let found: Vec<PathBuf> = paths.filter(|path| is_wanted(&name(path))).collect();
    match <[PathBuf; 1]>::try_from(found) {
        Ok([path]) => Ok(path),
        Err(found) => bail!("one file was expected in {}, and {} were found", folder.display(), found.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_of_the_newest_kernel_is_found() {
        let said = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(parse(said), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(parse("linux-image-cloud-amd64\n  Depends: <other>\n"), None);
        assert_eq!(parse(""), None);
    }
}
