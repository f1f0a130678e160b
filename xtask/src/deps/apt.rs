//! apt with a configuration of our own, under `target/apt`: own sources, own package lists, own cache.
//!
//! `apt-get -c target/apt/apt.conf` sees the suites of `sources.rs` without a change to `/etc/apt` or to
//! `/var/lib/apt`. Two uses:
//! - **download** (`debs`): as any user; every package counts as not installed, so that the answer depends on
//!   the archive alone and two machines build the same guest. Files stay in `target/apt/debs`.
//! - **install**: as root, against the machine's real dpkg state, with a cache of its own, since what root
//!   writes there must not stand in the way of the user's next run.
//!
//! The lists are fetched again when they are older than `LISTS_AGE`, or when a download fails (a mirror forgets
//! old versions).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::deps::sources;
use crate::{places, step};

const LISTS_AGE: Duration = Duration::from_secs(24 * 3600);

/// A package file that was downloaded.
#[derive(Debug, Clone)]
pub struct Deb {
    /// Where the file lies; its name holds the version.
    pub file: PathBuf,
}

impl Deb {
    /// The name of the file, `PACKAGE_VERSION_ARCHITECTURE.deb`.
    pub fn file_name(&self) -> String {
        self.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Unpacks the package's files below `folder`.
    pub fn unpack(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        step::run(Command::new("dpkg-deb").arg("-x").arg(&self.file).arg(folder))
    }
}

/// apt under `target/apt`.
pub struct Apt {
    home: PathBuf,
}

impl Apt {
    /// Writes the configuration, and fetches package lists that are missing or old.
    pub fn open() -> Result<Self> {
        for program in ["apt-get", "apt-cache", "dpkg-deb"] {
            if step::find_program(program).is_none() {
                bail!(
                    "{program} is missing: QEMU and the test guests come from Debian packages, use Debian 12 or newer"
                );
            }
        }
        let apt = Self { home: places::target("apt") };
        for folder in
            ["sources", "lists/partial", "cache/archives/partial", "root-cache/archives/partial", "debs"]
        {
            fs::create_dir_all(apt.home.join(folder))?;
        }
        let codename = codename().context("/etc/os-release names no VERSION_CODENAME")?;
        let sources = sources::derive(Path::new("/etc/apt"), &codename)?;
        let changed = write_if_changed(&apt.home.join("sources/debian.sources"), &sources)?;
        write_if_changed(&apt.home.join("no-packages-installed"), "")?;
        write_if_changed(&apt.home.join("apt.conf"), &apt.configuration())?;
        if changed || apt.lists_are_old() {
            apt.update()?;
        }
        Ok(apt)
    }

    fn configuration(&self) -> String {
        let home = self.home.display();
        format!(
            "Dir::Etc::sourcelist \"/dev/null\";\n\
             Dir::Etc::sourceparts \"{home}/sources\";\n\
             Dir::State::lists \"{home}/lists\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::Retries \"3\";\n\
             Acquire::http::Timeout \"60\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
             APT::Sandbox::User \"root\";\n"
        )
    }

    /// The sentence's worth of arguments that choose our configuration and `cache` in it.
    fn arguments(&self, cache: &str) -> Vec<String> {
        let home = self.home.display();
        vec!["-c".into(), format!("{home}/apt.conf"), "-o".into(), format!("Dir::Cache={home}/{cache}")]
    }

    fn reader(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(self.arguments("cache"));
        command.arg("-o").arg(format!("Dir::State::status={}/no-packages-installed", self.home.display()));
        command.current_dir(self.home.join("debs"));
        command
    }

    fn lists_are_old(&self) -> bool {
        let stamp = fs::metadata(self.home.join("updated")).and_then(|meta| meta.modified());
        !stamp.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < LISTS_AGE))
    }

    fn update(&self) -> Result<()> {
        eprintln!("   fetching Debian's package lists");
        step::output(self.reader("apt-get").args(["--quiet", "--error-on=any", "update"]))?;
        fs::write(self.home.join("updated"), "")?;
        Ok(())
    }

    /// The package files for `names` (`NAME` or `NAME/SUITE`), downloaded if they are not here yet.
    pub fn debs(&self, names: &[String]) -> Result<Vec<Deb>> {
        let attempt = |apt: &Self| {
            let found = apt.resolve(names)?;
            let missing: Vec<&String> = names
                .iter()
                .zip(&found)
                .filter(|(_, deb)| !deb.file.exists())
                .map(|(name, _)| name)
                .collect();
            if !missing.is_empty() {
                eprintln!("   downloading {} packages", missing.len());
                step::output(apt.reader("apt-get").args(["--quiet", "download"]).args(missing))?;
            }
            Ok::<_, anyhow::Error>(found)
        };
        attempt(self).or_else(|_| {
            self.update()?;
            attempt(self)
        })
    }

    /// Which files `names` stand for today, in the order of `names`.
    pub fn resolve(&self, names: &[String]) -> Result<Vec<Deb>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        // apt is silent about files that lie in its working folder already: ask from another one.
        let mut ask = self.reader("apt-get");
        ask.current_dir(&self.home).args(["download", "--print-uris"]).args(names);
        let text = step::output(&mut ask)?;
        let files: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix('\'')?.split_whitespace().nth(1)).collect();
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            let package = name.split('/').next().unwrap_or_default();
            let own = |file: &&&str| file.strip_prefix(package).is_some_and(|rest| rest.starts_with('_'));
            let Some(file) = files.iter().find(own) else {
                bail!("apt knows no file for the package {name}");
            };
            found.push(Deb { file: self.home.join("debs").join(file) });
        }
        Ok(found)
    }

    /// The packages that `name` depends on.
    pub fn dependencies(&self, name: &str) -> Result<Vec<String>> {
        let text = step::output(self.reader("apt-cache").args(["show", "--no-all-versions", name]))?;
        Ok(field(&text, "Depends")
            .map(|line| dependency_names(line).map(str::to_owned).collect())
            .unwrap_or_default())
    }

    /// The words of an `apt-get install` of `packages` (with `suite` preferred) that root has to run.
    pub fn install_words(&self, packages: &[&str], suite: Option<&str>) -> Vec<String> {
        let mut words = vec!["apt-get".to_owned()];
        words.extend(self.arguments("root-cache"));
        words.extend(
            ["-o", "DPkg::Lock::Timeout=300", "-y", "-q", "--no-install-recommends", "install"]
                .map(str::to_owned),
        );
        if let Some(suite) = suite {
            words.extend(["-t".to_owned(), suite.to_owned()]);
        }
        words.extend(packages.iter().map(|name| (*name).to_owned()));
        words
    }
}

/// The release's name in `/etc/os-release`.
pub fn codename() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(line.trim_matches('"').to_owned())
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// The names in a `Depends` line; of alternatives the first.
fn dependency_names(line: &str) -> impl Iterator<Item = &str> {
    line.split(',')
        .filter_map(|item| item.split_whitespace().next())
        .map(|name| name.split(':').next().unwrap_or(name))
}

fn write_if_changed(file: &Path, text: &str) -> Result<bool> {
    if fs::read_to_string(file).is_ok_and(|old| old == text) {
        return Ok(false);
    }
    fs::write(file, text).with_context(|| format!("{} cannot be written", file.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependency_names_versions_and_alternatives_are_cut_off() {
        let line = "libc6 (>= 2.34), libfoo1 | libbar1, python3:any (>= 3), seabios";
        assert_eq!(dependency_names(line).collect::<Vec<_>>(), ["libc6", "libfoo1", "python3", "seabios"]);
    }
}
