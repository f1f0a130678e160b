//! Reads the machine's own apt sources and derives ours from them.
//!
//! A test needs packages of two Debian 12 suites that a fresh machine does not have enabled side by side (QEMU 10
//! and Linux 6.12 come from `bookworm-backports`). The machine's own files stay untouched; instead the entries
//! that speak of Debian itself are repeated in a private file, with the same mirror, the same keys and the same
//! options, and with `bookworm-backports` added beside `bookworm`. On a newer Debian the same mirror also carries
//! `bookworm`, so the suites are renamed.
//!
//! Both forms that apt knows are read: one line per entry, and deb822 stanzas (`apt-sources(5)`).

use std::path::Path;

use anyhow::{Result, bail};

/// The release whose packages are used, whatever release the machine runs.
const RELEASE: &str = "bookworm";

/// One entry: where it points, and its further fields, kept as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    /// `Signed-By`, `Trusted` and so on, with their continuation lines.
    others: Vec<String>,
}

/// The deb822 text of our sources for a machine whose `/etc/apt` is `etc_apt` and whose release is `codename`.
pub fn derive(etc_apt: &Path, codename: &str) -> Result<String> {
    let mut entries = Vec::new();
    for (name, text) in source_files(etc_apt) {
        if name.ends_with(".sources") {
            entries.extend(text.split("\n\n").filter_map(parse_stanza));
        } else {
            entries.extend(text.lines().filter_map(parse_line));
        }
    }
    derive_entries(&entries, codename)
}

fn derive_entries(entries: &[Entry], codename: &str) -> Result<String> {
    let mut chosen: Vec<Entry> = entries
        .iter()
        .filter(|entry| entry.components.iter().any(|name| name == "main"))
        .filter(|entry| entry.uris.iter().any(|uri| is_debian(uri)))
        .map(|entry| Entry {
            suites: entry.suites.iter().filter_map(|suite| rename(suite, codename)).collect(),
            ..entry.clone()
        })
        .filter(|entry| !entry.suites.is_empty())
        .collect();
    // Debian's own hosts first: backports are asked of one mirror only.
    chosen.sort_by_key(|entry| !entry.uris.iter().any(|uri| uri.contains("debian.org")));
    let Some(main) = chosen.iter_mut().find(|entry| entry.suites.iter().any(|suite| suite == RELEASE)) else {
        bail!(
            "no Debian mirror for {codename} is among the apt sources of this machine; add the one of Debian's \
             documentation (one line: deb MIRROR {codename} main) to /etc/apt/sources.list"
        );
    };
    let backports = format!("{RELEASE}-backports");
    if !main.suites.contains(&backports) {
        main.suites.push(backports);
    }
    Ok(chosen.iter().map(render).collect::<Vec<_>>().join("\n"))
}

/// The suite's name in `RELEASE`, or none if the suite is not one of Debian's stable archive.
fn rename(suite: &str, codename: &str) -> Option<String> {
    let (base, rest) = match suite.split_once(['-', '/']) {
        Some((base, rest)) => (base, format!("-{rest}")),
        None => (suite, String::new()),
    };
    let known = [codename, "stable", "oldstable", "testing", "unstable", "sid"];
    // A release under development has neither updates nor security of its own under these names.
    let kept = ["", "-updates", "-security", "-backports"].contains(&rest.as_str());
    (known.contains(&base) && kept).then(|| format!("{RELEASE}{rest}"))
}

fn is_debian(uri: &str) -> bool {
    let names = ["debian", "debian-security", "debian.list", "debian-security.list"];
    uri.split('/').any(|segment| names.contains(&segment))
}

fn render(entry: &Entry) -> String {
    let mut text = format!(
        "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n",
        entry.uris.join(" "),
        entry.suites.join(" ")
    );
    for other in &entry.others {
        text.push_str(other);
        text.push('\n');
    }
    text
}

/// The files that apt reads, by name: `sources.list`, then the folder in alphabetical order.
fn source_files(etc_apt: &Path) -> Vec<(String, String)> {
    let mut paths = vec![etc_apt.join("sources.list")];
    if let Ok(folder) = std::fs::read_dir(etc_apt.join("sources.list.d")) {
        let mut more: Vec<_> = folder.flatten().map(|entry| entry.path()).collect();
        more.sort();
        paths.extend(more);
    }
    paths
        .into_iter()
        .filter(|path| path.extension().is_some_and(|end| end == "list" || end == "sources"))
        .filter_map(|path| Some((path.to_string_lossy().into_owned(), std::fs::read_to_string(path).ok()?)))
        .collect()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn parse_stanza(stanza: &str) -> Option<Entry> {
    let mut fields: Vec<String> = Vec::new();
    for line in stanza.lines().filter(|line| !line.starts_with('#')) {
        match fields.last_mut() {
            Some(last) if line.starts_with([' ', '\t']) => {
                last.push('\n');
                last.push_str(line);
            }
            _ => fields.push(line.to_owned()),
        }
    }
    let mut entry = Entry { uris: vec![], suites: vec![], components: vec![], others: vec![] };
    let mut binary = false;
    for field in &fields {
        let Some((name, value)) = field.split_once(':') else { continue };
        match name.to_ascii_lowercase().as_str() {
            "types" => binary = words(value).iter().any(|word| word == "deb"),
            "uris" => entry.uris = words(value),
            "suites" => entry.suites = words(value),
            "components" => entry.components = words(value),
            "enabled" if ["no", "false", "0"].contains(&value.trim()) => return None,
            _ => entry.others.push(field.clone()),
        }
    }
    binary.then_some(entry)
}

fn parse_line(line: &str) -> Option<Entry> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => ("", rest),
    };
    let mut rest = rest.split_whitespace().map(str::to_owned);
    let others = options.split_whitespace().filter_map(option_field).collect();
    Some(Entry { uris: vec![rest.next()?], suites: vec![rest.next()?], components: rest.collect(), others })
}

/// `signed-by=FILE` of the one-line form, as a field of the other form.
fn option_field(option: &str) -> Option<String> {
    let (name, value) = option.split_once('=')?;
    let name = match name {
        "arch" => "Architectures",
        "signed-by" => "Signed-By",
        "trusted" => "Trusted",
        "check-valid-until" => "Check-Valid-Until",
        _ => return None,
    };
    Some(format!("{name}: {}", value.replace(',', " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb\n# a remark\nURIs: http://mirror.example/debian\n\
        Suites: bookworm bookworm-updates\nComponents: main contrib\n\
        Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n";

    #[test]
    fn derive_entries_deb822_adds_backports_and_keeps_key() {
        let entries = [parse_stanza(DEB822).unwrap()];
        let text = derive_entries(&entries, "bookworm").unwrap();
        assert!(text.contains("\nSuites: bookworm bookworm-updates bookworm-backports\n"), "{text}");
        assert!(text.contains("\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"), "{text}");
    }

    #[test]
    fn derive_entries_one_line_form_gives_the_same_fields() {
        let line =
            "deb [ arch=amd64 signed-by=/k.gpg ] http://mirror.example/debian/ bookworm main contrib # x";
        let text = derive_entries(&[parse_line(line).unwrap()], "bookworm").unwrap();
        assert!(text.contains("URIs: http://mirror.example/debian/\n"), "{text}");
        assert!(text.contains("Suites: bookworm bookworm-backports\n"), "{text}");
        assert!(text.contains("Signed-By: /k.gpg\n"), "{text}");
    }

    #[test]
    fn derive_entries_newer_release_asks_for_bookworm() {
        let line = "deb http://mirror.example/debian trixie main";
        let security = "deb http://mirror.example/debian-security trixie-security main";
        let entries = [parse_line(line).unwrap(), parse_line(security).unwrap()];
        let text = derive_entries(&entries, "trixie").unwrap();
        assert!(text.contains("Suites: bookworm bookworm-backports\n"), "{text}");
        assert!(text.contains("Suites: bookworm-security\n"), "{text}");
    }

    #[test]
    fn derive_entries_foreign_sources_are_left_out() {
        let foreign =
            ["deb https://apt.example/repo bookworm main", "deb http://mirror.example/debian sid-x main"];
        let entries: Vec<_> = foreign.iter().filter_map(|line| parse_line(line)).collect();
        assert_eq!(entries.len(), 2);
        let error = derive_entries(&entries, "bookworm").unwrap_err().to_string();
        assert!(error.contains("no Debian mirror for bookworm"), "{error}");
    }

    #[test]
    fn parse_stanza_disabled_or_sources_only_is_skipped() {
        assert_eq!(parse_stanza(&format!("{DEB822}Enabled: no\n")), None);
        assert_eq!(parse_stanza(&DEB822.replace("Types: deb", "Types: deb-src")), None);
    }

    #[test]
    fn parse_stanza_inline_key_keeps_its_lines() {
        let text = "Types: deb\nURIs: http://a/debian\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN\n .\n x\n";
        let entry = parse_stanza(text).unwrap();
        assert_eq!(entry.others, ["Signed-By:\n -----BEGIN\n .\n x"]);
    }
}
