//! What holds of every mixture of members in numbered segments.

use std::collections::BTreeSet;
use std::ffi::OsString;

use proptest::prelude::*;
use vdeq::cli::Request;
use vdeq::plan::Plan;
use vdeq::props::Props;
use vdeq::rewrite::{Facts, Rewrite};
use vdeq::version::QemuVersion;

/// A member of a segment, without its number.
fn member() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "nic",
        "nic,model=virtio",
        "nic,model=e1000,name=lan",
        "nic,model=rtl8139,addr=7",
        "vde",
        "vde,sock=/tmp/a,port=3",
        "vde,sock=\"/tmp/b,c\",mode=0660",
        "user",
        "user,name=nat,hostname=a,,b",
        "socket,listen=:1234",
        "tap,ifname=t0",
        "dump,len=1k",
    ])
}

fn plan(args: Vec<OsString>, sock: Option<Vec<String>>, version: QemuVersion) -> Option<Plan> {
    let request = Request { program: "qemu-system-x86_64".into(), args, sock, ..Request::default() };
    let facts = Facts {
        version,
        kvm_usable: false,
        private_dir: "/run/vdeq/1".into(),
        run_as: None,
        umask_is_strict: true,
    };
    let rewrite = Rewrite::read("qemu-system-x86_64", &request).expect("a good line");
    // What an old QEMU cannot connect is refused.
    rewrite.plan(&request.program, &facts).ok()
}

/// The values of an option.
fn values<'a>(words: &'a [String], option: &str) -> Vec<&'a str> {
    words.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
}

proptest! {
    #[test]
    fn every_mixture_becomes_words_of_present_qemu(
        members in proptest::collection::vec((member(), prop::sample::select(vec![0, 1, 7])), 0..8),
        sock in proptest::option::of(proptest::collection::vec("[a-z]{0,3}", 1..3)),
        version in prop::sample::select(vec![QemuVersion(6, 2, 0), QemuVersion(7, 2, 0), QemuVersion(10, 0, 2)]),
    ) {
        let line = members.iter().flat_map(|(member, vlan)| ["-net".to_owned(), format!("{member},vlan={vlan}")]);
        let plan_of = |words: Vec<OsString>, sock| plan(words, sock, version);
        let Some(once) = plan_of(line.map(OsString::from).collect(), sock) else {
            prop_assert!(version < QemuVersion::OLDEST_WITH_STREAM);
            return Ok(());
        };
        let words: Vec<String> = once.arguments.iter().map(|word| word.to_str().expect("text").to_owned()).collect();

        // Nothing is left of what QEMU lost.
        let mut named = BTreeSet::new();
        let mut used = Vec::new();
        for value in ["-net", "-netdev", "-device"].iter().flat_map(|option| values(&words, option)) {
            let props = Props::parse(value, "type");
            prop_assert!(props.get("vlan").is_none() && props.get("name").is_none(), "{value}");
            used.extend(props.get("netdev").map(str::to_owned));
        }
        // Each netdev has a name of its own, and is connected to one thing at most.
        for value in values(&words, "-netdev") {
            let id = Props::parse(value, "type").get("id").map(str::to_owned).expect("an id");
            prop_assert!(named.insert(id) || value.contains("id=nat"), "{value} is there twice");
        }
        for netdev in &used {
            prop_assert!(named.contains(netdev), "{netdev} is nowhere");
            prop_assert!(used.iter().filter(|other| *other == netdev).count() == 1 || netdev == "nat", "{netdev} is used twice");
        }
        // In front of vhost-user a hub of QEMU's carries nothing.
        for value in values(&words, "-netdev").into_iter().filter(|value| value.starts_with("hubport")) {
            let behind = Props::parse(value, "type").get("netdev").map(|id| format!("vhost-user,id={id},"));
            let dead = behind.is_some_and(|netdev| words.iter().any(|word| word.starts_with(&netdev)));
            prop_assert!(!dead, "{value}");
        }
        // Each hub of ours has ports and networks.
        for join in once.back_end.iter().flat_map(|back_end| &back_end.joins) {
            let nics = &once.back_end.as_ref().expect("joins are its").nics;
            prop_assert!(nics.iter().any(|nic| nic.links == [join.hub.clone()]) && !join.links.is_empty());
        }
        let twice = plan_of(once.arguments.clone(), None).expect("its own outcome");
        if version >= QemuVersion::OLDEST_WITH_STREAM {
            prop_assert_eq!(&twice.arguments, &once.arguments);
            prop_assert!(twice.back_end.is_none());
        }
    }
}
