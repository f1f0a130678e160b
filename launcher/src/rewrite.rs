//! From an old command line to one that a present QEMU understands. No side effects.
//!
//! The old `-net` options are read ([`crate::legacy`]), it is decided what becomes of them
//! ([`crate::segments`]), likewise of the modern forms ([`crate::modern`]), and guest memory is made
//! shareable if one of the NICs needs it. All this is written as edits of the argument list: a command
//! line without any VDE network ([`crate::sock_list`] has those that no option names) and without what
//! QEMU no longer knows comes out exactly as it went in, and so does the outcome of a rewriting.

use std::ffi::{OsStr, OsString};

use crate::argv::{Token, scan};
use crate::cli::Request;
use crate::error::Error;
use crate::legacy;
use crate::machine::{Machine, Told};
use crate::memory;
use crate::model::Protocol;
use crate::modern::Modern;
use crate::monitor::{self, Monitor};
use crate::plan::{BackEnd, Plan};
use crate::segments::Segments;
use crate::sock_list;
use crate::version::QemuVersion;
use crate::wiring::Wiring;

/// What must be known beyond the command line, for a VM with a NIC of ours.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The version of the emulator.
    pub version: QemuVersion,
    /// Whether the host lets us use KVM.
    pub kvm_usable: bool,
    /// The directory for the sockets of this VM.
    pub private_dir: String,
    /// User and group that QEMU will run as, if it shall become somebody else.
    pub run_as: Option<(u32, u32)>,
    /// Whether nobody else may write what QEMU makes.
    pub umask_is_strict: bool,
}

/// A command line that was read and understood.
#[derive(Debug)]
pub struct Rewrite {
    tokens: Vec<Token>,
    machine: Machine,
    segments: Segments,
    modern: Modern,
    prefix: String,
    notice: Option<String>,
    request: Request,
}

impl Rewrite {
    /// Reads a command line; `program` is the emulator's file name.
    pub fn read(program: &str, request: &Request) -> Result<Self, Error> {
        let tokens = scan(&request.args);
        let machine = Machine::read(program, &tokens);
        Self::on(machine, tokens, request)
    }

    /// Reads it again with what the emulator told of its board, or why it did not.
    pub fn read_answered(
        program: &str,
        request: &Request,
        answer: Result<Told, String>,
    ) -> Result<Self, Error> {
        let tokens = scan(&request.args);
        let mut machine = Machine::read(program, &tokens);
        machine.answer(answer);
        Self::on(machine, tokens, request)
    }

    fn on(machine: Machine, tokens: Vec<Token>, request: &Request) -> Result<Self, Error> {
        // Questions to QEMU, and the VM without anything that is used to ask them, stay as they are.
        let asks = machine.is_none() || tokens.iter().any(Token::is_query);
        let mut segments = legacy::Segments::new();
        let mut notice = None;
        if !asks {
            segments = legacy::read(&tokens, request.mode.as_deref())?;
            notice = sock_list::add(&mut segments, &tokens, request);
        }
        let segments = Segments::new(segments, &tokens, &machine, request)?;
        let modern = match asks {
            true => Modern::default(),
            false => Modern::read(&tokens, &machine, request)?,
        };
        let has_vde = !modern.is_empty() || segments.needs_back_end();
        if let Some(last) = tokens.last().filter(|last| has_vde && last.lacks_value()) {
            return Err(Error::MissingValue(last.words()[0].to_string_lossy().into_owned()));
        }
        let prefix = unused_prefix(&request.args);
        Ok(Self { tokens, machine, segments, modern, prefix, notice, request: request.clone() })
    }

    /// Whether the VM gets a NIC that our back end serves: then [`Facts`] are needed.
    pub fn needs_back_end(&self) -> bool {
        self.segments.needs_back_end() || !self.modern.is_empty()
    }

    /// The machine type that the emulator has to be asked about before there is a plan: `Some(None)` is its
    /// default one.
    pub fn unknown_machine(&self) -> Option<Option<&str>> {
        let unknown =
            self.needs_back_end() && self.machine.board.is_none() && self.machine.unanswered.is_none();
        unknown.then_some(self.machine.kind.as_deref())
    }

    /// The plan for a VM; `program` is the path of the emulator.
    pub fn plan(&self, program: &OsStr, facts: &Facts) -> Result<Plan, Error> {
        // What stands in a file is not seen, and may name another machine.
        let has_file = self.tokens.iter().any(|token| token.is("readconfig"));
        if let Some(said) = self.machine.refusal().filter(|_| !has_file) {
            let program = program.to_string_lossy().into_owned();
            return Err(Error::Machine { program, said });
        }
        let mut edits = Edits::new(self.tokens.len());
        self.notice.iter().for_each(|text| edits.notice(text.clone()));
        let wiring = Wiring {
            tokens: &self.tokens,
            machine: &self.machine,
            facts,
            prefix: &self.prefix,
            default_model: self.request.default_model.as_deref(),
        };
        let (mut nics, joins) = self.segments.wire(&program.to_string_lossy(), &wiring, &mut edits)?;
        self.modern.wire(&wiring, &mut nics, &mut edits);
        let mut plan = Plan { program: program.to_owned(), ..Plan::default() };
        if nics.iter().any(|nic| nic.protocol == Protocol::VhostUser) {
            plan.memory = Some(memory::share(&self.machine, facts.version, &self.tokens, &mut edits)?);
        }
        if !nics.is_empty() {
            plan.qemu_version = Some(facts.version.to_string());
            plan.name = monitor::name(&self.tokens);
            plan.monitor = Monitor::new(facts, &self.prefix);
            plan.monitor.iter().for_each(|monitor| edits.append(monitor.words()));
            let private_dir = facts.private_dir.clone();
            let control = Some(format!("{private_dir}/{}", registry::CONTROL))
                .filter(|path| path.len() <= registry::LONGEST_SOCKET);
            let (socket_owner, settings) = (facts.run_as, self.request.settings.clone());
            plan.back_end = Some(BackEnd { private_dir, control, socket_owner, settings, nics, joins });
        }
        plan.arguments = edits.apply(&self.tokens);
        plan.notices = edits.notices;
        Ok(plan)
    }
}

/// A beginning of ids that no word of the user contains.
fn unused_prefix(args: &[OsString]) -> String {
    let mut prefix = String::from("vdeq");
    let goes_on = |rest: &str| {
        rest.starts_with(|c: char| c.is_ascii_digit()) || monitor::IDS.iter().any(|id| rest.starts_with(id))
    };
    let taken =
        |prefix: &str| args.iter().any(|word| word.to_string_lossy().split(prefix).skip(1).any(goes_on));
    while taken(&prefix) {
        prefix.push('x');
    }
    prefix
}

/// Changes to the argument list, kept apart from it so that every other word stays as it was.
#[derive(Debug)]
pub struct Edits {
    front: Vec<OsString>,
    replaced: Vec<Option<Vec<OsString>>>,
    back: Vec<OsString>,
    notices: Vec<String>,
}

impl Edits {
    fn new(tokens: usize) -> Self {
        Self { front: Vec::new(), replaced: vec![None; tokens], back: Vec::new(), notices: Vec::new() }
    }

    /// Puts words in the place of a token.
    pub fn replace<S: AsRef<str>>(&mut self, at: usize, words: impl IntoIterator<Item = S>) {
        self.replaced[at] = Some(words.into_iter().map(|word| word.as_ref().into()).collect());
    }

    /// Takes a token away.
    pub fn remove(&mut self, at: usize) {
        self.replaced[at] = Some(Vec::new());
    }

    /// Adds words behind everything else.
    pub fn append<S: AsRef<str>>(&mut self, words: impl IntoIterator<Item = S>) {
        self.back.extend(words.into_iter().map(|word| OsString::from(word.as_ref())));
    }

    /// Tells the user something before QEMU starts.
    pub fn notice(&mut self, text: String) {
        if !self.notices.contains(&text) {
            self.notices.push(text);
        }
    }

    /// Puts words in the place of a token, or before everything else if there is none.
    pub fn put<S: AsRef<str>>(&mut self, at: Option<usize>, words: impl IntoIterator<Item = S>) {
        match at {
            Some(at) => self.replace(at, words),
            None => self.front.extend(words.into_iter().map(|word| OsString::from(word.as_ref()))),
        }
    }

    fn apply(&self, tokens: &[Token]) -> Vec<OsString> {
        let middle = tokens.iter().zip(&self.replaced);
        let middle = middle.flat_map(|(token, new)| new.as_deref().unwrap_or(token.words()));
        self.front.iter().chain(middle).chain(&self.back).cloned().collect()
    }
}
