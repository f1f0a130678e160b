//! Conversations with servers that say what is written here: greetings of all ages, unheard-of events, faults.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use qmp::commands::{Chardev, Memdev, Removal};
use qmp::{Address, Client, Error, Version};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

/// As recorded from QEMU 10.0.2.
const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian 1:10.0.2"}, "capabilities": ["oob"]}}"#;

/// Says each entry once a command has come, the first at once; `$ID` is the command's id. Returns the commands.
fn server<S: Into<String>>(lines: impl IntoIterator<Item = S>) -> (UnixStream, JoinHandle<Vec<Value>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let lines: Vec<String> = lines.into_iter().map(Into::into).collect();
    let server = spawn(move || {
        let mut reader = BufReader::new(theirs.try_clone().unwrap());
        let mut commands: Vec<Value> = Vec::new();
        for line in lines {
            let id = commands.last().map_or(Value::Null, |command| command["id"].clone());
            // All at once: whoever gets a part of it waits a moment only for the rest.
            (&theirs).write_all(format!("{}\r\n", line.replace("$ID", &id.to_string())).as_bytes()).unwrap();
            let mut command = String::new();
            if reader.read_line(&mut command).unwrap() > 0 {
                commands.push(serde_json::from_str(&command).unwrap());
            }
        }
        commands
    });
    (ours, server)
}

/// A client that was greeted, and whose further commands are answered by these lines.
fn greeted(lines: &[&str]) -> (Client, JoinHandle<Vec<Value>>) {
    let all = [GREETING, r#"{"return": {}, "id": $ID}"#].into_iter().chain(lines.iter().copied());
    let (stream, server) = server(all);
    (Client::new(stream.into(), LIMIT).unwrap(), server)
}

#[test]
fn greetings_of_all_ages_name_a_version() {
    let cases = [
        (
            r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 5}, "package": ""}, "capabilities": ["oob"]}}"#,
            (5, 2, 0),
        ),
        (
            r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2+dfsg-7"}, "capabilities": ["oob"]}}"#,
            (7, 2, 22),
        ),
        (GREETING, (10, 0, 2)),
        (r#"{"extra": 1, "QMP": {"new": [], "version": {"qemu": {"major": 11, "minor": 1}}}}"#, (11, 1, 0)),
    ];
    for (greeting, (major, minor, micro)) in cases {
        let (stream, _server) = server([greeting, r#"{"return": {}, "id": $ID}"#]);
        let client = Client::new(stream.into(), LIMIT).unwrap();
        assert_eq!(client.version().unwrap(), Version { major, minor, micro });
    }
}

#[test]
fn answers_errors_and_events_are_told_apart() {
    let (mut client, server) = greeted(&[
        "{\"event\": \"UNHEARD_OF\", \"data\": {\"x\": [1]}, \"more\": 2}\r\n{\"unheard\": \"of\"}\r\n\
         {\"return\": {\"status\": \"running\", \"more\": 1}, \"id\": $ID}",
        r#"{"error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}, "id": $ID}"#,
        r#"{"error": {"class": "GenericError", "desc": "JSON parse error, invalid keyword 'x'"}}"#,
    ]);
    assert_eq!(client.query_status().unwrap(), "running");
    let error = client.device_del("x").unwrap_err();
    assert_eq!(error.to_string(), "device_del: Device 'x' not found");
    assert!(error.is_not_found() && !error.is_unknown_command());
    let error = client.execute("x", json!({})).unwrap_err();
    assert!(error.to_string().contains("JSON parse error"), "an answer without an id");
    let event = client.next_event(Duration::ZERO).unwrap().unwrap();
    assert_eq!((event.name.as_str(), &event.data["x"][0]), ("UNHEARD_OF", &json!(1)));
    assert!(client.next_event(Duration::ZERO).unwrap().is_none());
    drop(client);
    let commands = server.join().unwrap();
    assert_eq!(commands[0]["execute"], "qmp_capabilities");
    assert_eq!(commands[2]["arguments"]["id"], "x");
}

/// As seen in QEMU 10.0 when the client before had closed its connection while a netdev connected.
#[test]
fn what_was_left_for_the_client_before_precedes_the_greeting() {
    let left =
        r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "NETDEV_STREAM_CONNECTED", "data": {}}"#;
    let greeting = format!("{left}\r\n{{\"return\": {{}}, \"id\": 9}}\r\n{GREETING}");
    let (stream, _server) = server([greeting.as_str(), r#"{"return": {}, "id": $ID}"#]);
    let mut client = Client::new(stream.into(), LIMIT).unwrap();
    assert_eq!(client.version().unwrap().major, 10);
    assert!(client.next_event(Duration::ZERO).unwrap().is_none());

    // Who says nothing else is none.
    let (stream, theirs) = UnixStream::pair().unwrap();
    let talk = spawn(move || while writeln!(&theirs, "{left}").is_ok() {});
    let error = Client::new(stream.into(), Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, Error::TimedOut(_)), "{error}");
    talk.join().unwrap();
}

#[test]
fn a_late_answer_is_not_taken_for_the_next() {
    let (stream, theirs) = UnixStream::pair().unwrap();
    let mut theirs = theirs;
    theirs.write_all(GREETING.as_bytes()).unwrap();
    theirs.write_all(b"\n{\"return\": {}, \"id\": 1}\n").unwrap();
    let mut client = Client::new(stream.into(), Duration::from_millis(50)).unwrap();
    let error = client.query_status().unwrap_err();
    assert!(matches!(error, Error::TimedOut(_)));
    assert_eq!(error.to_string(), "QEMU did not answer within 0.05 s");
    theirs.write_all(b"{\"return\": {\"status\": \"late\"}, \"id\": 2}\n").unwrap();
    theirs.write_all(b"{\"return\": {\"status\": \"paused\"}, \"id\": 3}\n").unwrap();
    assert_eq!(client.query_status().unwrap(), "paused");
}

/// As seen in QEMU 10.0 and 7.2 when the client before closed its connection with commands under way.
#[test]
fn answers_to_the_client_before_are_not_ours() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let server = spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut commands = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
        let error = r#"{"error": {"class": "GenericError", "desc": "theirs"}}"#;
        write!(stream, "v2\", \"v3\"]}}]}}\r\n{{\"return\": {{}}}}\n{error}\n{GREETING}\n{error}\n{{\"event\": \"THEIRS\"}}\n")
            .unwrap();
        for answer in [json!({}), json!({ "status": "running" })] {
            let status = r#""return": {"status": "theirs"}"#;
            write!(stream, "{{{status}}}\n{{{status}, \"id\": 1}}\n{{{status}, \"id\": 2}}\n").unwrap();
            let command: Value = serde_json::from_str(&commands.next().unwrap()).unwrap();
            writeln!(stream, "{}", json!({ "return": answer, "id": command["id"] })).unwrap();
        }
    });
    let mut client = Client::connect(&Address::Unix(path), LIMIT).unwrap();
    assert_eq!(client.query_status().unwrap(), "running");
    server.join().unwrap();
    assert!(client.next_event(Duration::ZERO).is_err(), "the server has gone, and nothing else was for us");
}

/// A line that is none of QMP may be the end of an answer to the client before, and is shown if nothing of QMP follows.
#[test]
fn who_greets_in_another_way_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("smtp");
    let listener = UnixListener::bind(&path).unwrap();
    let server = spawn(move || {
        for more in ["", "250 ok\n"] {
            let (mut stream, _) = listener.accept().unwrap();
            write!(stream, "220 smtp.example ready\n{more}").unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
    });
    for _ in 0..2 {
        let error = Client::connect(&Address::Unix(path.clone()), LIMIT).unwrap_err();
        assert!(matches!(&error, Error::NotQmp(said) if said.contains("220")), "{error}");
    }
    server.join().unwrap();
}

/// As seen in QEMU 10.0, once in thousands of times, when the client before closed its connection right after its first command.
#[test]
fn capabilities_of_the_client_before_are_ours_too() {
    let (stream, _server) = server([
        GREETING,
        r#"{"id": $ID, "error": {"class": "CommandNotFound", "desc": "Capabilities negotiation is already complete, command ignored"}}"#,
        r#"{"return": {"status": "running"}, "id": $ID}"#,
    ]);
    let mut client = Client::new(stream.into(), LIMIT).unwrap();
    assert_eq!(client.query_status().unwrap(), "running");

    let (stream, _server) =
        server([GREETING, r#"{"id": $ID, "error": {"class": "GenericError", "desc": "no"}}"#]);
    assert_eq!(Client::new(stream.into(), LIMIT).unwrap_err().to_string(), "qmp_capabilities: no");
}

#[test]
fn other_servers_are_recognised() {
    for (line, text) in [
        ("220 smtp.example ready", "smtp"),
        (r#"{"result": {}, "id": 1}"#, "result"),
        ("\u{1b}[2Jhello", "[2Jhello"),
        ("[1, 2]", "[1,2]"),
    ] {
        let (stream, _server) = server([line]);
        let error = Client::new(stream.into(), LIMIT).unwrap_err();
        assert!(matches!(&error, Error::NotQmp(said) if said.contains(text)), "{error}");
        assert!(!error.to_string().contains('\u{1b}'));
    }
    let (stream, theirs) = UnixStream::pair().unwrap();
    let flood = spawn(move || {
        // Until nobody reads any more.
        while (&theirs).write_all(&[b'x'; 1 << 16]).is_ok() {}
    });
    let error = Client::new(stream.into(), LIMIT).unwrap_err();
    assert!(error.to_string().contains("a line without an end"), "{error}");
    flood.join().unwrap();
}

#[test]
fn silence_and_end_are_errors() {
    let (stream, theirs) = UnixStream::pair().unwrap();
    let silent = stream.try_clone().unwrap();
    let error = Client::new(silent.into(), Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, Error::TimedOut(_)));
    drop(theirs);
    assert!(matches!(Client::new(stream.into(), LIMIT).unwrap_err(), Error::Closed));
    // In the middle of a line.
    let (stream, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&GREETING.as_bytes()[..40]).unwrap();
    drop(theirs);
    assert!(matches!(Client::new(stream.into(), LIMIT).unwrap_err(), Error::Closed));
}

#[test]
fn events_nobody_asks_for_take_bounded_memory() {
    let (stream, mut theirs) = UnixStream::pair().unwrap();
    let storm = spawn(move || {
        writeln!(theirs, "{GREETING}\n{{\"return\": {{}}, \"id\": 1}}").unwrap();
        for number in 0..10_000 {
            writeln!(theirs, "{{\"event\": \"E\", \"data\": {{\"number\": {number}}}}}").unwrap();
        }
        writeln!(theirs, "{{\"return\": {{\"status\": \"running\"}}, \"id\": 2}}").unwrap();
    });
    let mut client = Client::new(stream.into(), LIMIT).unwrap();
    client.query_status().unwrap();
    storm.join().unwrap();
    let first = client.next_event(Duration::ZERO).unwrap().unwrap();
    assert_eq!(first.data["number"], 10_000 - 4096, "the newest are kept");
    let last = client.wait_for_event(Duration::ZERO, |event| event.data["number"] == 9_999).unwrap();
    assert!(last.is_some());
}

#[test]
fn typed_answers_take_what_every_version_says() {
    let (mut client, _server) = greeted(&[
        r#"{"return": [{"frontend-open": true, "filename": "unix:/run/n0", "label": "c0", "new": 1}], "id": $ID}"#,
        r#"{"return": [{"id": "ram", "size": 134217728, "share": true, "prealloc": false, "policy": "default"}, {"size": 1}], "id": $ID}"#,
        r#"{"return": {}, "id": $ID}"#,
    ]);
    let chardev = Chardev { label: "c0".into(), filename: "unix:/run/n0".into(), frontend_open: true };
    assert_eq!(client.query_chardev().unwrap(), [chardev]);
    let ram = Memdev { id: Some("ram".into()), size: 128 << 20, share: Some(true) };
    assert_eq!(client.query_memdev().unwrap(), [ram, Memdev { id: None, size: 1, share: None }]);
    let error = client.query_status().unwrap_err();
    assert_eq!(error.to_string(), "query-status: the answer cannot be understood (missing field `status`)");
}

#[test]
fn the_pause_before_a_reconnection_has_the_words_of_the_version() {
    for (greeting, key, count) in [
        (r#"{"QMP": {"version": {"qemu": {"major": 9, "minor": 1, "micro": 9}}}}"#, "reconnect", 2),
        (r#"{"QMP": {"version": {"qemu": {"major": 9, "minor": 2, "micro": 0}}}}"#, "reconnect-ms", 1500),
    ] {
        let ok = r#"{"return": {}, "id": $ID}"#;
        let (stream, server) = server([greeting, ok, ok]);
        let mut client = Client::new(stream.into(), LIMIT).unwrap();
        client.chardev_add_socket("c0", "/run/n0", Duration::from_millis(1500)).unwrap();
        drop(client);
        let arguments = &server.join().unwrap()[1]["arguments"];
        assert_eq!(arguments["backend"]["data"][key], count, "{arguments}");
        assert_eq!(arguments["backend"]["data"]["addr"]["data"]["path"], "/run/n0");
    }
}

#[test]
fn a_removal_ends_with_the_event_that_names_the_device() {
    let part = r#"{"event": "DEVICE_DELETED", "data": {"path": "/machine/peripheral/n0/virtio-backend"}}"#;
    let other = r#"{"event": "DEVICE_DELETED", "data": {"device": "n1", "path": "/machine/peripheral/n1"}}"#;
    let done = r#"{"event": "DEVICE_DELETED", "data": {"device": "n0", "path": "/machine/peripheral/n0"}}"#;
    let refused = r#"{"event": "DEVICE_UNPLUG_GUEST_ERROR", "data": {"device": "n0", "path": "x"}}"#;
    for (events, end) in [
        (vec![part, other, done], Removal::Done),
        (vec![part, refused], Removal::Refused),
        (vec![part, other], Removal::Pending),
    ] {
        let all = [r#"{"return": {}, "id": $ID}"#].into_iter().chain(events).collect::<Vec<_>>().join("\r\n");
        let (mut client, _server) = greeted(&[&all]);
        client.device_del("n0").unwrap();
        assert_eq!(client.wait_for_removal("n0", Duration::from_millis(100)).unwrap(), end);
    }
}

#[test]
fn more_descriptors_than_go_at_once_are_refused() {
    let (mut client, _server) = greeted(&[]);
    let file = std::fs::File::open("/dev/null").unwrap();
    let error = client.execute_with("add-fd", json!({}), &[file.as_fd(); 17]).unwrap_err();
    assert!(matches!(error, Error::Io(_)));
}

#[test]
fn a_server_that_talks_without_end_is_not_waited_for() {
    let (stream, mut theirs) = UnixStream::pair().unwrap();
    writeln!(theirs, "{GREETING}\n{{\"return\": {{}}, \"id\": 1}}").unwrap();
    let talk = spawn(move || {
        // Until nobody reads any more.
        while writeln!(theirs, "{{\"event\": \"E\"}}\n{{\"return\": 1, \"id\": 77}}").is_ok() {}
    });
    let mut client = Client::new(stream.into(), Duration::from_millis(100)).unwrap();
    assert!(matches!(client.query_status().unwrap_err(), Error::TimedOut(_)));
    assert!(client.wait_for_event(Duration::from_millis(100), |_| false).unwrap().is_none());
    drop(client);
    talk.join().unwrap();
}

#[test]
fn a_limit_beyond_all_clocks_is_none() {
    let event = r#"{"return": {}, "id": $ID}
{"event": "E"}"#;
    let (stream, _server) = server([GREETING, event]);
    let mut client = Client::new(stream.into(), Duration::MAX).unwrap();
    assert_eq!(client.wait_for_event(Duration::MAX, |_| true).unwrap().unwrap().name, "E");
}
