//! Clients of the control socket that say odd things, do not listen, or leave at the wrong moment.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use qmp::Client;
use serde_json::{Value, json};

use crate::control::{Rig, lines, nics};
use crate::world::{LIMIT, wait_for};

#[test]
fn requests_that_are_none_are_answered_and_the_next_one_too() {
    let rig = Rig::start(&[]);
    let mut socket = rig.raw();
    let mut answers = lines(&socket);
    assert!(answers.next().unwrap()["QMP"].is_object());
    let cases = [
        (r#"{"execute": "query-nics", "id": 1}"#, "CommandNotFound"),
        ("garbage", "GenericError"),
        ("[]", "GenericError"),
        ("{}", "GenericError"),
        (r#"{"execute": 5, "id": {"a": [1]}}"#, "GenericError"),
        (r#"{"execute": "query-nics", "exec": 1}"#, "GenericError"),
        (r#"{"execute": "qmp_capabilities", "arguments": 5}"#, "GenericError"),
        ("\u{0}\u{1b}[2J", "GenericError"),
    ];
    for (line, class) in cases {
        writeln!(socket, "{line}").unwrap();
        let answer = answers.next().unwrap();
        assert_eq!(answer["error"]["class"], class, "{line}: {answer}");
        if let Ok(sent) = serde_json::from_str::<Value>(line) {
            assert_eq!(answer.get("id"), sent.get("id"), "{line}");
        }
    }
    writeln!(socket, "{}{}", "[".repeat(5000), "]".repeat(5000)).unwrap();
    assert_eq!(answers.next().unwrap()["error"]["class"], "GenericError");
    // Byte by byte, with empty lines, and many in one piece.
    for byte in b"\n \r\n{\"execute\": \"qmp_capabilities\"}\r\n" {
        socket.write_all(&[*byte]).unwrap();
    }
    assert_eq!(answers.next().unwrap(), json!({ "return": {} }));
    for (command, class) in [("nonsense", "CommandNotFound"), ("query-NICS", "CommandNotFound")] {
        writeln!(socket, "{}", json!({ "execute": command })).unwrap();
        let answer = answers.next().unwrap();
        assert_eq!(answer["error"]["class"], class);
        assert!(answer["error"]["desc"].as_str().unwrap().contains(command), "{answer}");
    }
    writeln!(socket, "{}", json!({ "execute": "query-nics", "arguments": { "x": 1 } })).unwrap();
    assert!(answers.next().unwrap()["error"]["desc"].as_str().unwrap().contains("\"x\""));
    let many: String = (0..500).map(|id| format!("{{\"execute\":\"query-joins\",\"id\":{id}}}\n")).collect();
    socket.write_all(many.as_bytes()).unwrap();
    for id in 0..500 {
        assert_eq!(answers.next().unwrap(), json!({ "return": [], "id": id }));
    }
}

#[test]
fn line_without_end_and_client_that_never_reads_are_disconnected() {
    let rig = Rig::start(&[]);
    let mut socket = rig.raw();
    let _ = socket.write_all(&vec![b'x'; 80 << 10]);
    let mut text = String::new();
    // What we wrote and it did not read makes the end a reset.
    let end = socket.read_to_string(&mut text);
    assert!(end.is_ok() || end.unwrap_err().kind() == ErrorKind::ConnectionReset);
    assert!(text.contains("65536"), "{text}");

    let mut socket = rig.raw();
    writeln!(socket, "{}", json!({ "execute": "qmp_capabilities" })).unwrap();
    socket.set_write_timeout(Some(LIMIT)).unwrap();
    let line = format!("{}\n", json!({ "execute": "query-nics", "id": "x".repeat(1000) }));
    let result = (0..100_000).try_for_each(|_| socket.write_all(line.as_bytes()));
    assert!(matches!(result.unwrap_err().kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset));
    rig.client();
}

#[test]
fn client_too_many_is_served_when_another_has_gone() {
    let rig = Rig::start(&[]);
    let mut served: Vec<Client> = (0..16).map(|_| rig.client()).collect();
    let mut late = rig.raw();
    late.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert_eq!(late.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
    served.pop();
    late.set_read_timeout(Some(LIMIT)).unwrap();
    assert!(lines(&late).next().unwrap()["QMP"].is_object());
    for mut client in served {
        client.execute("query-nics", json!({})).unwrap();
    }
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let rig = Rig::start(&[]);
    let mut client = rig.client();
    let before = rig.holdings();
    let null = std::fs::File::open("/dev/null").unwrap();
    let fds: Vec<BorrowedFd<'_>> = vec![null.as_fd(); 16];
    for _ in 0..200 {
        client.execute_with("query-nics", json!({}), &fds).unwrap();
    }
    wait_for("descriptors to be closed", || (rig.holdings() == before).then_some(()));
}

#[test]
fn clients_that_leave_at_any_moment_leave_nothing() {
    let rig = Rig::start(&[]);
    let mut client = rig.client();
    let before = rig.holdings();
    let text = [
        json!({ "execute": "qmp_capabilities" }),
        json!({ "execute": "nic-add", "arguments":
            { "id": "n", "socket-path": rig.path("n0"), "links": ["null://"] } }),
        json!({ "execute": "nic-del", "arguments": { "id": "n" } }),
    ];
    let text: String = text.iter().map(|line| format!("{line}\n")).collect();
    for end in (0..=text.len()).step_by(3) {
        rig.raw().write_all(&text.as_bytes()[..end]).unwrap();
        // That NIC may be there or not, depending on who was quicker.
        let _ = client.execute("nic-del", json!({ "id": "n" }));
    }
    wait_for("all to be as before", || {
        let _ = client.execute("nic-del", json!({ "id": "n" }));
        (rig.holdings() == before && nics(&mut client).is_empty()).then_some(())
    });
    assert!(!Path::new(&rig.path("n0")).exists());
}
