//! The rows of the view: one for each NIC and join, and one for a VM that has none or has not answered yet.

use std::time::Duration;

use super::model::{Model, Port, Vm};

/// Which row, whatever its place: the VM's key and the NIC's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowKey {
    /// Key of the VM.
    pub vm: String,
    /// Name of the NIC or join; empty for a VM without any.
    pub port: String,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The VM's key.
    pub vm_key: &'a str,
    /// The VM.
    pub vm: &'a Vm,
    /// The NIC or join, by name.
    pub port: Option<(&'a str, &'a Port)>,
    /// Its back end has not answered for long.
    pub late: bool,
}

/// How a row is, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// All links carry, and a front end is there.
    Up,
    /// Some links do not carry.
    Part,
    /// No link carries.
    Down,
    /// No front end is there.
    Idle,
    /// A VM without NICs, or whose back end has not answered yet.
    Bare,
    /// The back end does not answer.
    Late,
}

impl State {
    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Part => "part",
            Self::Down => "down",
            Self::Idle => "idle",
            Self::Bare => "-",
            Self::Late => "late",
        }
    }
}

impl Row<'_> {
    /// Which it is.
    pub fn key(&self) -> RowKey {
        RowKey { vm: self.vm_key.to_owned(), port: self.name().to_owned() }
    }

    /// The name of the NIC or join.
    pub fn name(&self) -> &str {
        self.port.map_or("", |(name, _)| name)
    }

    /// How it is.
    pub fn state(&self) -> State {
        if self.late {
            return State::Late;
        }
        let Some((_, port)) = self.port else { return State::Bare };
        let up = port.links.iter().filter(|link| link.up).count();
        match up {
            _ if port.nic.as_ref().is_some_and(|nic| !nic.connected) => State::Idle,
            0 => State::Down,
            up if up < port.links.len() => State::Part,
            _ => State::Up,
        }
    }

    /// It has the word, in capitals or not, in a name or a locator.
    fn has(&self, word: &str) -> bool {
        let word = word.to_lowercase();
        let has = |text: &str| text.to_lowercase().contains(&word);
        let links = || self.port.iter().flat_map(|(_, port)| &port.links);
        has(&self.vm.name) || has(self.name()) || links().any(|link| has(&link.locator))
    }
}

/// The rows that have all words of the filter. A back end that has not answered for `patience` is late.
pub fn rows<'a>(model: &'a Model, filter: &str, now: Duration, patience: Duration) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    for (vm_key, vm) in &model.vms {
        let late = now.saturating_sub(vm.answered) > patience;
        let mut ports = vm.ports.iter().map(|(name, port)| Some((name.as_str(), port))).peekable();
        if ports.peek().is_none() {
            rows.push(Row { vm_key, vm, port: None, late });
        }
        rows.extend(ports.map(|port| Row { vm_key, vm, port, late }));
    }
    rows.retain(|row| filter.split_whitespace().all(|word| row.has(word)));
    rows
}

#[cfg(test)]
mod tests {
    use super::super::sample::{answer, model, nic};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn state_says_what_is_wrong() {
        let mut model = model(&["web"]);
        let state = |model: &Model, now| rows(model, "", at(now), PATIENCE)[0].state();
        assert_eq!((state(&model, 3), state(&model, 4)), (State::Bare, State::Late), "not heard of yet");
        model.heard("/run/web", at(1), answer(&[]));
        assert_eq!(state(&model, 1), State::Bare);
        let mut nic = nic("net0", 1);
        model.heard("/run/web", at(1), answer(std::slice::from_ref(&nic)));
        assert_eq!(state(&model, 1), State::Up);
        nic.links.push(nic.links[0].clone());
        nic.links[0].up = false;
        model.heard("/run/web", at(2), answer(std::slice::from_ref(&nic)));
        assert_eq!(state(&model, 2), State::Part);
        nic.links[1].up = false;
        model.heard("/run/web", at(3), answer(std::slice::from_ref(&nic)));
        assert_eq!(state(&model, 3), State::Down);
        nic.connected = false;
        model.heard("/run/web", at(4), answer(std::slice::from_ref(&nic)));
        assert_eq!((state(&model, 7), state(&model, 8)), (State::Idle, State::Late));
    }

    #[test]
    fn filter_wants_every_word_somewhere() {
        let mut model = model(&["web", "mail"]);
        for vm in ["web", "mail"] {
            model.heard(&format!("/run/{vm}"), at(1), answer(&[nic("net0", 1), nic("net1", 1)]));
        }
        let count = |filter| rows(&model, filter, at(1), PATIENCE).len();
        assert_eq!(
            (count(""), count("WEB"), count("net1"), count("web net1"), count("sw[7]")),
            (4, 2, 2, 1, 4)
        );
        assert_eq!(count("nothing"), 0);
    }
}
