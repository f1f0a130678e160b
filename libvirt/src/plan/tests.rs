//! Domains that fit and those that do not.

use super::*;
use crate::domain::NAMESPACE;
use crate::policy::Allowed;

/// A domain with one NIC; `change` makes another one of its text.
fn domain(change: impl Fn(String) -> String) -> Domain {
    let text = format!(
        "<domain><name>web</name><uuid>0-1</uuid><memoryBacking><access mode='shared'/></memoryBacking>\
         <metadata><vde:nics xmlns:vde='{NAMESPACE}'><vde:nic mac='02:00:00:00:00:01' link='/run/sw,1'/></vde:nics></metadata>\
         <devices><interface type='bridge'><mac address='02:00:00:00:00:02'/></interface>\
         <interface type='vhostuser'><mac address='02:00:00:00:00:01'/>\
         <source type='unix' path='/b/web/0.sock' mode='client'><reconnect enabled='yes'/></source><model type='virtio'/></interface></devices></domain>"
    );
    Domain::read(&change(text)).unwrap()
}

fn plan(change: impl Fn(String) -> String) -> Result<Plan, String> {
    let plan = Plan::new(&domain(change), Path::new("/b"), &Policy::Session);
    plan.map(Option::unwrap).map_err(|failure| failure.to_string())
}

fn replace(old: &'static str, new: &'static str) -> impl Fn(String) -> String {
    move |text| {
        assert!(text.contains(old), "{old}");
        text.replace(old, new)
    }
}

#[test]
fn new_plans_what_a_domain_asks_for() {
    let known = registry::Nic { id: "net1".into(), mac: "02:00:00:00:00:01".into(), model: "virtio".into() };
    let nic = NicPlan { socket: "0.sock".into(), nic: known, words: "queues=1,link=/run/sw,,1".into() };
    let expected = Plan {
        directory: "/b/web".into(),
        nics: vec![nic],
        joins: vec![],
        options: vec!["--description=libvirt domain web".into()],
        privileged: false,
        remarks: vec![],
    };
    assert_eq!(plan(|text| text).unwrap(), expected);
    let poor = plan(replace("<reconnect enabled='yes'/>", "")).unwrap();
    assert!(poor.remarks[0].contains("<reconnect enabled='yes'"));
    assert_eq!(plan(replace("/b/web/", "/b/0-1/")).unwrap().directory, Path::new("/b/0-1"));
    let none = domain(replace(NAMESPACE, "urn:other"));
    assert_eq!(Plan::new(&none, Path::new("/b"), &Policy::Session), Ok(None));
}

#[test]
fn options_are_those_of_the_back_end() {
    let all = "<vde:nics poll-us='9' offloads='no' keep-going='yes' capture='/c' description='d e' log-level='info' ";
    let options = plan(replace("<vde:nics ", all)).unwrap().options;
    let mut words = [
        "--poll-us=9",
        "--no-offloads",
        "--keep-going",
        "--capture=/c",
        "--description=d e",
        "--log-level=info",
    ];
    words.sort_unstable();
    let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
    options.sort_unstable();
    assert_eq!(options, words);
    for (bad, word) in [
        ("<vde:nics poll-us='-1' ", "poll-us='-1'"),
        ("<vde:nics poll-us='1000001' ", "1000001"),
        ("<vde:nics offloads='off' ", "yes or no"),
        ("<vde:nics log-level='trace' ", "debug"),
        ("<vde:nics colour='x' ", "colour"),
    ] {
        let said = plan(replace("<vde:nics ", bad)).unwrap_err();
        assert!(said.contains(word), "{said}");
    }
}

/// The back end takes no option twice.
#[test]
fn keep_going_is_said_once() {
    for settings in ["keep-going='yes' ", ""] {
        let mut plan = plan(|text| text.replace("<vde:nics ", &format!("<vde:nics {settings}"))).unwrap();
        plan.keep_going();
        assert_eq!(plan.options.iter().filter(|option| *option == "--keep-going").count(), 1);
    }
}

#[test]
fn several_nics_links_and_joins() {
    let more = plan(|text| {
        let text = text.replace(
            "</vde:nics>",
            "<vde:nic alias='ua-x'><vde:link>/a</vde:link><vde:link>/b</vde:link></vde:nic>\
             <vde:join><vde:link>/c</vde:link><vde:link>/d</vde:link></vde:join></vde:nics>",
        );
        text.replace(
            "</devices>",
            "<interface type='vhostuser'><mac address='x'/><source path='/b/web/x.sock' mode='client'/>\
             <driver queues='4'/><alias name='ua-x'/></interface></devices>",
        )
    })
    .unwrap();
    let known = registry::Nic { id: "ua-x".into(), mac: "x".into(), model: "virtio".into() };
    let second = NicPlan { socket: "x.sock".into(), nic: known, words: "queues=4,link=/a,link=/b".into() };
    assert_eq!((more.nics.len(), &more.nics[1]), (2, &second));
    assert_eq!(more.joins, ["link=/c,link=/d"]);
}

/// What libvirt has unplugged is still in the metadata.
#[test]
fn a_nic_that_has_gone_is_passed_over_beside_others() {
    let gone = "<vde:nic mac='02:00:00:00:00:09' link='/c'/></vde:nics>";
    let passed = plan(replace("</vde:nics>", gone)).unwrap();
    assert_eq!(passed.nics, plan(|text| text).unwrap().nics);
    assert!(passed.remarks[0].starts_with("there is no <interface> for the NIC 02:00:00:00:00:09"));
    // Its network gives no rights and takes none.
    let allowed = Allowed::parse("privileged veth://\n").unwrap();
    let gone = gone.replace("/c", "veth://a");
    let other = domain(|text| text.replace("</vde:nics>", &gone));
    let other = Plan::new(&other, Path::new("/b"), &Policy::System(allowed)).unwrap().unwrap();
    assert!(!other.privileged);
    // Beside an interface that nobody serves it is a mistake in the address.
    let said = plan(|text| {
        let nic = "<vde:nic mac='02:00:00:00:00:09' link='/c'/></vde:nics>";
        let lost = "<interface type='vhostuser'><mac address='y'/><source path='/b/web/1.sock'/></interface></devices>";
        text.replace("</vde:nics>", nic).replace("</devices>", lost)
    });
    assert!(said.unwrap_err().contains("no <interface> for the NIC 02:00:00:00:00:09"));
}

#[test]
fn aliases_are_counted_as_libvirt_does() {
    let by_alias = |kind: &'static str, alias: &'static str| {
        plan(move |text| {
            let text = text.replace("type='bridge'", &format!("type='{kind}'"));
            text.replace("<vde:nic mac='02:00:00:00:00:01'", &format!("<vde:nic alias='{alias}'"))
        })
    };
    assert_eq!(by_alias("bridge", "net1").unwrap().nics[0].nic.id, "net1");
    assert_eq!(by_alias("hostdev", "net0").unwrap().nics[0].nic.id, "net0");
    by_alias("hostdev", "net1").unwrap_err();
}

#[test]
fn what_does_not_fit_is_named() {
    let cases = [
        ("<access mode='shared'/>", "", "<access mode='shared'/>"),
        (
            "<devices>",
            "<devices><memory access='private'/>",
            "take memAccess='private' out of <cell>, and access=",
        ),
        ("<vde:nic mac='02:00:00:00:00:01' link='/run/sw,1'/>", "", "<vde:nics> is empty"),
        ("link='/run/sw,1'", "", "no network"),
        (
            "<vde:nic mac='02:00:00:00:00:01'",
            "<vde:nic mac='02:00:00:00:00:09'",
            "no <interface> for the NIC 02:00:00:00:00:09; the domain's have 02:00:00:00:00:02, 02:00:00:00:00:01",
        ),
        (
            "<vde:nic mac='02:00:00:00:00:01'",
            "<vde:nic mac='02-00-00-00-00-01'",
            "'02-00-00-00-00-01' is no address",
        ),
        ("<vde:nic mac='02:00:00:00:00:01'", "<vde:nic mac='02:00:00:00:00:02'", "type='bridge'"),
        ("<vde:nic mac='02:00:00:00:00:01'", "<vde:nic", "either mac= or alias="),
        (
            "<vde:nic mac='02:00:00:00:00:01'",
            "<vde:nic mac='02:00:00:00:00:01' alias='net1'",
            "either mac= or alias=",
        ),
        ("address='02:00:00:00:00:02'", "address='02:00:00:00:00:01'", "two <interface>"),
        ("</vde:nics>", "<vde:nic alias='net1' link='/a'/></vde:nics>", "two <vde:nic>"),
        ("</vde:nics>", "<vde:join><vde:link>/a</vde:link></vde:join></vde:nics>", "two <vde:link>"),
        ("type='virtio'", "type='e1000'", "'e1000'"),
        (" mode='client'", " mode='server'", "mode='server'"),
        (" path='/b/web/0.sock'", "", "no socket"),
        ("/b/web/0.sock", "/etc/x.sock", "call it /b/web/1.sock"),
        ("/b/web/0.sock", "/b/web/../0.sock", "/b/web/1.sock"),
        ("/b/web/0.sock", "/b/web/a/0.sock", "/b/web/1.sock"),
        ("/b/web/0.sock", "/b/web/vm.json", "odd name"),
        ("/b/web/0.sock", "/b/web/control.sock", "odd name"),
        ("/b/web/0.sock", "/b/web/.sock", "odd name"),
        ("/b/web/0.sock", "0.sock", "not in the domain's directory"),
        ("<model type='virtio'/>", "<driver queues='17'/>", "queues='17'"),
        ("<model type='virtio'/>", "<driver queues='x'/>", "queues='x'"),
        ("<name>web</name>", "<name>..</name>", "rename"),
        ("<name>web</name>", "<name>a/b</name>", "rename"),
        ("<name>web</name>", "<name>01234567-89ab-cdef-0123-456789abcdef</name>", "not its own"),
        (
            "</devices>",
            "<interface type='vhostuser'><mac address='y'/><source path='/b/web/1.sock'/></interface></devices>",
            "<vde:nic mac='y' link=",
        ),
    ];
    for (old, new, word) in cases {
        let said = plan(replace(old, new)).unwrap_err();
        assert!(said.contains(word), "{new} gave {said}");
    }
    let long = plan(|text| {
        let name = "n".repeat(110);
        text.replace("<name>web", &format!("<name>{name}")).replace("/b/web/", &format!("/b/{name}/"))
    });
    assert!(long.unwrap_err().contains("/b/0-1/1.sock"));
}

#[test]
fn an_interface_that_nothing_speaks_of_is_found() {
    let at = |path: &str| {
        let domain = domain(|text| text.replace("/b/web/0.sock", path));
        let base = Path::new("/b");
        let found = waiting(&domain, &[], base, &directories(base, &domain).unwrap());
        found.map(|(socket, failure)| (socket.to_owned(), failure.to_string()))
    };
    for path in ["/b/web/0.sock", "/b/0-1/x.sock"] {
        let (socket, said) = at(path).unwrap();
        assert!(socket == Path::new(path) && said.contains("add <vde:nic mac='02:00:00:00:00:01'"), "{said}");
    }
    for path in ["/b/other/0.sock", "/b/web/a/0.sock", "/b//x.sock"] {
        let (_, said) = at(path).unwrap();
        assert!(said.contains("of another domain; call it /b/web/1.sock"), "{said}");
    }
    for path in ["/run/x.sock", "/bb/web/0.sock"] {
        assert_eq!(at(path), None);
    }
}

#[test]
fn a_stranger_may_not_ask_for_everything() {
    let strict = Policy::System(Allowed::default());
    let refuse = |change: &dyn Fn(String) -> String| {
        Plan::new(&domain(change), Path::new("/b"), &strict).unwrap_err().to_string()
    };
    assert!(refuse(&replace("'/run/sw,1'", "'cmd://id'")).contains("cmd://"));
    assert!(refuse(&replace("<vde:nics ", "<vde:nics capture='/etc/shadow' ")).contains("/etc/shadow"));
    let join = "<vde:join><vde:link>slirp://</vde:link><vde:link>/d</vde:link></vde:join></vde:nics>";
    assert!(refuse(&replace("</vde:nics>", join)).contains("slirp://"));
    let plan = Plan::new(&domain(|text| text), Path::new("/b"), &strict).unwrap().unwrap();
    assert!(plan.nics[0].words.contains("link=vde:///run/sw,,1"));
}
