//! What is served, written down for the worker that takes the place of one that was killed.
//!
//! Two files in memory are the pages; each state is written whole, over the older one. A page that its writer did not finish
//! is no JSON, so the other one counts then: what is read was true at some moment, and the last that was written as a whole.

use std::fs::File;
use std::io::{Error, Result};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use registry::Process;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::capture;
use crate::cli::{Config, NicConfig};

/// All that is served at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// The NICs, oldest first.
    pub nics: Vec<Nic>,
    /// The joins.
    pub joins: Vec<Join>,
    /// The process whose end is ours.
    pub followed: Option<Process>,
}

/// A NIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// With its name.
    pub config: NicConfig,
    /// Its links' numbers.
    pub numbers: Numbers,
    /// The file that its frames are written to for as long as we live.
    pub capture: Option<PathBuf>,
}

/// Two networks that hear each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// Its name.
    pub name: String,
    /// Its networks.
    pub links: Vec<String>,
    /// Their numbers.
    pub numbers: Numbers,
}

/// By which numbers the links of a NIC or a join go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    /// In the order of the links.
    pub used: Vec<usize>,
    /// The next link's.
    pub next: usize,
}

impl Numbers {
    /// Of as many links that are plugged in one after the other.
    pub fn of(count: usize) -> Self {
        Self { used: (0..count).collect(), next: count }
    }
}

impl Served {
    /// What the command line names.
    pub fn at_start(config: &mut Config) -> Self {
        let nics = std::mem::take(&mut config.nics);
        let count = nics.len();
        let nic = |(index, nic): (usize, NicConfig)| Nic {
            numbers: Numbers::of(nic.links.len()),
            capture: config.capture.as_ref().map(|asked| capture::path(asked, index, count)),
            config: NicConfig { id: Some(nic.name(index)), ..nic },
        };
        let nics = nics.into_iter().enumerate().map(nic).collect();
        let joins = std::mem::take(&mut config.joins).into_iter().enumerate();
        let join = |(index, links): (usize, [String; 2])| Join {
            name: format!("join{index}"),
            numbers: Numbers::of(links.len()),
            links: links.into(),
        };
        Self { nics, joins: joins.map(join).collect(), followed: None }
    }
}

/// The two pages.
#[derive(Debug)]
pub struct Journal {
    pages: [File; 2],
    /// The number of the last entry.
    last: u64,
}

#[derive(Serialize)]
struct Entry<'a> {
    number: u64,
    served: &'a Served,
}

#[derive(Deserialize)]
struct Read {
    number: u64,
    served: Served,
}

impl Journal {
    /// Without an entry.
    pub fn new() -> Result<Self> {
        let page = || memfd_create("journal", MemfdFlags::CLOEXEC).map(File::from);
        Ok(Self { pages: [page()?, page()?], last: 0 })
    }

    /// Adds an entry.
    pub fn write(&mut self, served: &Served) -> Result<()> {
        let number = self.last + 1;
        let text = serde_json::to_vec(&Entry { number, served }).map_err(Error::other)?;
        let [even, odd] = &self.pages;
        let page = if number.is_multiple_of(2) { even } else { odd };
        page.set_len(0)?;
        page.write_all_at(&text, 0)?;
        self.last = number;
        Ok(())
    }

    /// The last entry and its number, whoever has written it.
    pub fn read(&mut self) -> Option<(u64, Served)> {
        let entries = self.pages.iter().filter_map(read);
        let Read { number, served } = entries.max_by_key(|entry| entry.number)?;
        self.last = number;
        Some((number, served))
    }
}

fn read(page: &File) -> Option<Read> {
    let mut text = vec![0; usize::try_from(page.metadata().ok()?.len()).ok()?];
    page.read_exact_at(&mut text, 0).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Door};

    fn served(links: &[&str]) -> Served {
        let links: Vec<String> = links.iter().map(|link| (*link).to_owned()).collect();
        let numbers = Numbers::of(links.len());
        let join = Join { name: "join0".into(), links, numbers };
        Served { joins: vec![join], ..Served::default() }
    }

    #[test]
    fn read_gives_the_last_whole_entry() {
        let mut journal = Journal::new().unwrap();
        assert!(journal.read().is_none());
        for (number, link) in [(1, "/a"), (2, "/b"), (3, "/c")] {
            journal.write(&served(&[link])).unwrap();
            assert_eq!(journal.read(), Some((number, served(&[link]))));
        }
        // Who writes the fourth dies at any byte of it.
        let whole = journal.pages[0].metadata().unwrap().len();
        let mut text = vec![0; usize::try_from(whole).unwrap()];
        journal.pages[0].read_exact_at(&mut text, 0).unwrap();
        let fourth = String::from_utf8(text).unwrap().replacen("\"number\":2", "\"number\":4", 1);
        for length in 0..fourth.len() {
            journal.pages[0].set_len(0).unwrap();
            journal.pages[0].write_all_at(&fourth.as_bytes()[..length], 0).unwrap();
            assert_eq!(journal.read(), Some((3, served(&["/c"]))), "{length} bytes");
        }
        journal.pages[0].write_all_at(fourth.as_bytes(), 0).unwrap();
        assert_eq!(journal.read(), Some((4, served(&["/b"]))));
        // Its successor writes over the older one.
        journal.write(&served(&["/e"])).unwrap();
        assert_eq!(journal.read(), Some((5, served(&["/e"]))));
    }

    #[test]
    fn at_start_everything_has_its_name_and_numbers() {
        let words =
            ["x", "--nic", "socket-path=/a,link=/b,link=/c", "--nic", "fd=7,link=,id=n", "--capture", "/f.p"];
        let mut config =
            Config::try_from(Cli::parse_from(words.into_iter().chain(["--join", "link=/b,link=/c"])));
        let served = Served::at_start(config.as_mut().unwrap());
        let [first, second] = &served.nics[..] else { panic!("{served:?}") };
        assert_eq!(
            (first.config.id.as_deref(), &first.numbers.used[..], first.numbers.next),
            (Some("nic0"), &[0, 1][..], 2)
        );
        assert_eq!(first.capture.as_deref().unwrap().to_str(), Some("/f.nic0.p"));
        assert_eq!((second.config.id.as_deref(), &second.config.door), (Some("n"), &Door::Fd(7)));
        assert_eq!(served.joins, super::tests::served(&["/b", "/c"]).joins);
    }
}
