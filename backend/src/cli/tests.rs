//! What is typed, and what it means.

use super::*;

fn config(args: &[&str]) -> Result<Config, String> {
    let cli = Cli::try_parse_from([&["vhost-user-vde"], args].concat()).map_err(|e| e.to_string())?;
    Config::try_from(cli).map_err(|f| f.sentence)
}

#[test]
fn one_nic_by_options() {
    let nics = config(&["--socket-path", "/s", "--link", "/a", "--link", "", "--queues", "2"]).unwrap().nics;
    let links = vec!["/a".to_owned(), String::new()];
    let protocol = Protocol::VhostUser;
    assert_eq!(nics, [NicConfig { id: None, door: Door::Path("/s".into()), protocol, links, queues: 2 }]);
    let nics = config(&["--fd", "7", "--link", "x", "--protocol", "stream"]).unwrap().nics;
    assert_eq!((&nics[0].door, nics[0].protocol), (&Door::Fd(7), Protocol::Stream));
}

#[test]
fn polling_is_off_unless_asked_for() {
    let nic = ["--fd", "7", "--link", "x"];
    assert_eq!(config(&nic).unwrap().poll, Duration::ZERO);
    let polling = config(&[&nic[..], &["--poll-us", "1000000"]].concat()).unwrap();
    assert_eq!(polling.poll, Duration::from_secs(1));
}

#[test]
fn several_nics_with_commas_in_values() {
    let nics = config(&[
        "--nic",
        "socket-path=/a,,b,link=vde:///x[5/mode=0660]",
        "--nic",
        "fd=5,link=,queues=16",
        "--nic",
        "fd=6,link=,protocol=stream",
    ])
    .unwrap()
    .nics;
    assert_eq!(nics[0].door, Door::Path("/a,b".into()));
    assert_eq!(nics[0].links, ["vde:///x[5/mode=0660]"]);
    assert_eq!((&nics[1].door, nics[1].queues), (&Door::Fd(5), 16));
    assert_eq!((nics[1].protocol, nics[2].protocol), (Protocol::VhostUser, Protocol::Stream));
}

#[test]
fn what_concerns_all_nics() {
    let nic = ["--fd", "7", "--link", "x"];
    let plain = config(&nic).unwrap();
    assert!(plain.offloads && !plain.keep_going && plain.capture.is_none() && plain.socket_owner.is_none());
    let more = ["--no-offloads", "--keep-going", "--capture", "/c", "--socket-owner", "5:6"];
    let config = config(&[&nic[..], &more].concat()).unwrap();
    assert!(!config.offloads && config.keep_going);
    assert_eq!((config.capture, config.socket_owner), (Some("/c".into()), Some((5, 6))));
}

#[test]
fn joins_have_two_ends() {
    let join = |spec| config(&["--fd", "3", "--link", "/a", "--join", spec]).map(|config| config.joins);
    assert_eq!(join("link=hub:///h,link=").unwrap(), [["hub:///h".to_owned(), String::new()]]);
    assert_eq!(join("link=/a,,b,link=/c").unwrap(), [["/a,b".to_owned(), "/c".to_owned()]]);
    for spec in ["link=/a", "link=/a,link=/b,link=/c", "link=/a,link=/b,queues=1", "/a,/b"] {
        assert!(join(spec).unwrap_err().contains(spec), "{spec}");
    }
}

#[test]
fn wrong_words_are_named() {
    let cases: [(&[&str], &str); 18] = [
        (&[], "no NIC to serve"),
        (&["--link", "/a"], "--socket-path or --fd"),
        (&["--protocol", "stream"], "--socket-path or --fd"),
        (&["--socket-path", "/s"], "--link"),
        (&["--socket-path", "/s", "--fd", "3", "--link", "x"], "--fd"),
        (&["--nic", "socket-path=/s"], "link= is missing"),
        (&["--nic", "link=/s"], "socket-path= or fd= is missing"),
        (&["--nic", "socket-path=/s,link=/a,port=5"], "unknown word 'port'"),
        (&["--nic", "socket-path=/s,link=/a,"], "'' is not of the form"),
        (&["--nic", "socket-path=/s,fd=3,link=/a"], "'fd=3' is a second socket"),
        (&["--nic", "fd=x,link=/a"], "'fd=x' wants a number"),
        (&["--fd", "3", "--link", "/a", "--poll-us", "1000001"], "1000001 is not in 0..=1000000"),
        (&["--fd", "3", "--link", "/a", "--poll-us", "1ms"], "'1ms'"),
        (&["--fd", "3", "--link", "/a", "--socket-owner", "nobody"], "1000:1000"),
        (&["--nic", "fd=3,link=/a,queues=17"], "queues=17"),
        (&["--nic", "fd=3,link=/a,queues=2,protocol=stream"], "queues=2"),
        (&["--nic", "fd=3,link=/a,protocol=dgram"], "'protocol=dgram'"),
        (&["--nic", "fd=3,link=/a", "--nic", "fd=3,link=/b"], "two NICs"),
    ];
    for (args, word) in cases {
        let sentence = config(args).unwrap_err();
        assert!(sentence.contains(word), "{args:?} gave {sentence:?}");
    }
}

#[test]
fn clap_is_consistent() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}
