//! What a monitor says: any bytes are a greeting, answers and events, or an error, and never a wait beyond the limit.

#![no_main]

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use qmp::Client;

/// Nobody waits that long, because the server has said everything when the client begins; a wait would count as a hang.
const LIMIT: Duration = Duration::from_secs(60);

/// What fits into a socket's buffer whatever the number of writes.
const SAID_MAX: usize = 64 << 10;

fuzz_target!(|bytes: &[u8]| {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    theirs.write_all(&bytes[..bytes.len().min(SAID_MAX)]).expect("room for it");
    theirs.shutdown(Shutdown::Write).expect("an end of it");
    let Ok(mut client) = Client::new(ours.into(), LIMIT) else { return };
    let _ = client.version();
    // The errors of one command leave the connection as it is, so that several can be asked.
    let _ = client.query_status();
    let _ = client.query_chardev();
    let _ = client.query_memdev();
    let _ = client.qom_list("/machine");
    let _ = client.wait_for_removal("d0", LIMIT);
    while let Ok(Some(event)) = client.next_event(LIMIT) {
        assert!(event.text("device").is_none_or(|text| text.len() <= SAID_MAX));
    }
});
