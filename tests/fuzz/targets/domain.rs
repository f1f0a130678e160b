//! Any text as the XML of a domain, whose author is not root while the hook is.
//!
//! It is refused by a sentence, or it is a domain. Of a domain no directory is touched but two of its own, and the back end that it
//! gets, if it may have one, has its sockets there, opens only networks that can do no more than send frames, and is given no
//! option of another meaning. What is written into metadata is read as it was.

#![no_main]

use std::path::{Path, PathBuf};

use libfuzzer_sys::fuzz_target;
use vde_libvirt::Failure;
use vde_libvirt::domain::Domain;
use vde_libvirt::plan::{Plan, directories};
use vde_libvirt::policy::{Allowed, Policy};
use vdeplug::locator::split_scheme;

const BASE: &str = "/run/vdeq/libvirt";

const HARMLESS: [&str; 10] =
    ["vde", "switch", "hub", "multi", "bonding", "ptp", "udp", "tap", "veth", "null"];

const OPTIONS: [&str; 5] = ["--description=", "--keep-going", "--log-level=", "--no-offloads", "--poll-us="];

fn check_sentence(failure: &Failure) {
    let text = failure.to_string();
    assert!(text.contains(' ') && !text.contains(char::is_control), "a sentence: {text}");
}

/// The locators of words such as `queues=1,link=A,link=B`, in which a comma of a value is doubled.
fn check_links(words: &str) {
    let words = words.replace(",,", "\0");
    for word in words.split(',').filter(|word| !word.starts_with("queues=")) {
        let link = word.strip_prefix("link=").expect("a link");
        let (scheme, _) = split_scheme(link);
        assert!(scheme.is_some_and(|scheme| HARMLESS.contains(&scheme)), "{link}");
    }
}

fn check(plan: &Plan, directories: &[PathBuf]) {
    assert!(directories.contains(&plan.directory) && !plan.privileged);
    let mut sockets: Vec<&str> = plan.nics.iter().map(|nic| &*nic.socket).collect();
    for socket in &sockets {
        assert!(!socket.contains('/') && socket.ends_with(".sock") && *socket != "control.sock", "{socket}");
        assert!(plan.directory.join(socket).as_os_str().len() < 108);
    }
    sockets.sort_unstable();
    sockets.dedup();
    assert_eq!(sockets.len(), plan.nics.len());
    assert!((1..=32).contains(&plan.nics.len()) && plan.joins.len() <= 32);
    plan.nics.iter().for_each(|nic| check_links(&nic.words));
    plan.joins.iter().for_each(|join| check_links(join));
    for option in &plan.options {
        assert!(OPTIONS.iter().any(|known| option.starts_with(known)), "{option}");
    }
}

fuzz_target!(|text: &str| {
    let domain = match Domain::read(text) {
        Ok(domain) => domain,
        Err(failure) => return check_sentence(&failure),
    };
    if let Some(nics) = &domain.nics {
        let whole =
            format!("<domain><name>a</name><uuid>b</uuid><metadata>{}</metadata></domain>", nics.to_xml());
        assert_eq!(Domain::read(&whole).expect("our own").nics.as_ref(), Some(nics));
    }
    let directories = match directories(Path::new(BASE), &domain) {
        Ok(directories) => directories,
        Err(failure) => return check_sentence(&failure),
    };
    for directory in &directories {
        assert!(directory.parent() == Some(Path::new(BASE)) && directory.file_name().is_some());
    }
    match Plan::new(&domain, Path::new(BASE), &Policy::System(Allowed::default())) {
        Ok(Some(plan)) => check(&plan, &directories),
        Ok(None) => assert_eq!(domain.nics, None),
        Err(failure) => check_sentence(&failure),
    }
});
