//! `cargo xtask image`: the guests of all tests, a Debian kernel and a busybox initramfs each.
//!
//! 1. Read the recipes and ask apt which package files they mean today.
//! 2. Recipe, `init`, package files and `FORM` hashed together name the image. If `target/image/KERNEL` points to the
//!    folder of that name, there is nothing to do.
//! 3. Otherwise download and unpack the packages, write the initramfs (`cpio.rs`), and swap the link
//!    `target/image/KERNEL` in one step. A file lock lets one builder at a time in; guests that are being started
//!    keep the files they opened.
//!
//! The initramfs is not compressed: with gzip the shell came up no sooner (seen under TCG, two runs each: 3.8 s plain
//! and 3.7 s packed on 6.1, 5.0 s and 5.1 s on 6.12), and plain files are quicker to make.

mod cpio;
mod recipe;

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::deps::apt::{Apt, Deb};
use crate::{places, step};
use cpio::Archive;
use recipe::Recipe;

/// Changes when the way an image is made changes.
const FORM: &str = "1";
/// Those that have a recipe.
const KERNELS: [&str; 3] = ["6.1", "6.12", "6.1-full"];
/// As many links in a row as Linux follows.
const MAX_LINKS: u32 = 40;

/// Options of `cargo xtask image`.
#[derive(clap::Args, Clone, Default)]
#[group(skip)]
pub struct Args {
    /// Build the guest of this kernel only
    #[arg(long, value_parser = KERNELS)]
    kernel: Option<String>,
}

/// Builds what is missing or out of date.
pub fn run(args: &Args) -> Result<()> {
    let apt = Apt::open()?;
    fs::create_dir_all(places::target("image"))?;
    for kernel in KERNELS {
        if args.kernel.as_deref().is_none_or(|wanted| wanted == kernel) {
            build(&apt, kernel).with_context(|| format!("the guest with kernel {kernel} was not built"))?;
        }
    }
    Ok(())
}

fn build(apt: &Apt, kernel: &str) -> Result<()> {
    let home = places::target("image");
    let lock = File::create(home.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;

    let read = |name: &str| {
        let file = places::root().join("images").join(name);
        fs::read_to_string(&file).with_context(|| format!("{} cannot be read", file.display()))
    };
    let texts = [read("userland.recipe")?, read(&format!("kernel-{kernel}.recipe"))?, read("init")?];
    let recipe = Recipe::parse(&[&texts[0], &texts[1]])?;
    let names = package_names(apt, &recipe)?;
    let files: Vec<String> = apt.resolve(&names)?.iter().map(Deb::file_name).collect();
    let image = format!("{kernel}.{}", fingerprint(&texts, &files));
    let link = home.join(kernel);
    if fs::read_link(&link).is_ok_and(|to| to == Path::new(&image)) && link.join("initrd").exists() {
        return Ok(());
    }
    eprintln!("   building the guest with kernel {kernel}");
    let work = home.join(format!("work.{}", std::process::id()));
    let made = make(apt, &recipe, &names, &texts[2], &work, &home.join(&image));
    let _ = fs::remove_dir_all(&work);
    made?;
    point(&link, &image)?;
    remove_older(&home, kernel, &image);
    eprintln!("   {} is ready", link.display());
    Ok(())
}

/// The recipe's packages, with the real kernel package in place of its metapackage.
fn package_names(apt: &Apt, recipe: &Recipe) -> Result<Vec<String>> {
    let real = apt.dependencies(&recipe.kernel)?;
    let real = real.first().with_context(|| format!("the package {} depends on no kernel", recipe.kernel))?;
    let mut names = recipe.packages.clone();
    names.push(real.clone());
    Ok(names)
}

fn fingerprint(texts: &[String], files: &[String]) -> String {
    let mut hash = Sha256::new();
    for part in texts.iter().chain(files).map(String::as_str).chain([FORM]) {
        hash.update(part);
        hash.update([0]);
    }
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn make(apt: &Apt, recipe: &Recipe, names: &[String], init: &str, work: &Path, image: &Path) -> Result<()> {
    let tree = work.join("tree");
    for deb in apt.debs(names)? {
        deb.unpack(&tree)?;
    }
    let result = work.join("result");
    fs::create_dir_all(&result)?;
    fs::copy(kernel_image(&tree)?, result.join("vmlinuz"))?;
    fs::write(result.join("initrd"), initramfs(recipe, &tree, init)?)?;
    if image.exists() {
        fs::remove_dir_all(image)?;
    }
    fs::rename(&result, image)?;
    Ok(())
}

fn kernel_image(tree: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(tree.join("boot"))?.flatten().map(|entry| entry.path());
    let mut found = entries
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")));
    found.next().context("the kernel package has no boot/vmlinuz-*")
}

fn initramfs(recipe: &Recipe, tree: &Path, init: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "tmp", "root", "run", "bin", "etc"] {
        archive.folder(folder);
    }
    archive.device("dev/console", 0o600, (5, 1));
    archive.device("dev/null", 0o666, (1, 3));
    archive.file("etc/passwd", 0o644, b"root::0:0:root:/root:/bin/sh\n");
    archive.file("init", 0o755, init.as_bytes());
    add_busybox(&mut archive, tree, &recipe.busybox)?;
    for path in &recipe.files {
        let file = follow(tree, path).with_context(|| format!("no package has the file {path}"))?;
        archive.file(path, fs::metadata(&file)?.permissions().mode(), &fs::read(&file)?);
    }
    for name in &recipe.modules {
        archive.file(&format!("lib/modules/{name}.ko"), 0o644, &module(tree, name)?);
    }
    archive.file("lib/modules/order", 0o644, (recipe.modules.join("\n") + "\n").as_bytes());
    Ok(archive.finish())
}

/// The file that `path` means inside `tree`: links are followed there, not into the machine's own folders.
fn follow(tree: &Path, path: &str) -> Result<PathBuf> {
    let mut file = tree.join(path);
    for _ in 0..MAX_LINKS {
        if !fs::symlink_metadata(&file)?.is_symlink() {
            return Ok(file);
        }
        let to = fs::read_link(&file)?;
        file = match to.strip_prefix("/") {
            Ok(inside) => tree.join(inside),
            Err(_) => file.parent().unwrap_or(tree).join(to),
        };
    }
    bail!("{path} is a link that leads to itself")
}

fn add_busybox(archive: &mut Archive, tree: &Path, path: &str) -> Result<()> {
    let file = tree.join(path);
    archive.file(path, 0o755, &fs::read(&file).with_context(|| format!("no package has the file {path}"))?);
    let applets = step::output(Command::new(&file).arg("--list"))?;
    for applet in applets.lines().filter(|name| *name != "busybox") {
        archive.link(&format!("bin/{applet}"), &format!("/{path}"));
    }
    Ok(())
}

/// The content of a module, unpacked if the package has it compressed.
fn module(tree: &Path, name: &str) -> Result<Vec<u8>> {
    let folder = tree.join("lib/modules");
    let plain = format!("{name}.ko");
    let packed = format!("{name}.ko.xz");
    let Some(file) = find(&folder, &[&plain, &packed])? else {
        bail!("the kernel package has no module {name}");
    };
    if file.extension().is_some_and(|end| end == "ko") {
        return Ok(fs::read(file)?);
    }
    let unpacked = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(&file)
        .output()
        .context("xz did not start")?;
    if !unpacked.status.success() {
        bail!("xz could not unpack {}: {}", file.display(), String::from_utf8_lossy(&unpacked.stderr).trim());
    }
    Ok(unpacked.stdout)
}

fn find(folder: &Path, names: &[&str]) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&entry.path(), names)? {
                return Ok(Some(found));
            }
        } else if names.iter().any(|name| entry.file_name() == *name) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// Makes `link` point to `image`, at once for everybody who looks.
fn point(link: &Path, image: &str) -> Result<()> {
    let fresh = link.with_extension(format!("link.{}", std::process::id()));
    symlink(image, &fresh)?;
    fs::rename(&fresh, link).with_context(|| format!("{} cannot be replaced", link.display()))
}

fn remove_older(home: &Path, kernel: &str, image: &str) {
    let prefix = format!("{kernel}.");
    for entry in fs::read_dir(home).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // "6.1." does not begin "6.12.": the dot tells them apart.
        if name.starts_with(&prefix) && name != image {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
