//! Whether a back end can reach the guest's memory.
//!
//! QEMU hands over whatever memory has a descriptor, and does not look whether it is mapped shared: a NIC on private memory
//! comes up, and not one frame gets through. So it is found out before.

use qmp::commands::Memdev;
use qmp::{Client, Error, Version};

use crate::Failure;
use crate::back_end::sentence;
use crate::nics::property;

/// Where QEMU keeps memory objects.
const OBJECTS: &str = "/objects";

/// Before it, `memory-backend-ram,share=on` is shared with children of QEMU only: no descriptor leads to it.
const SHARES_RAM: Version = Version { major: 10, minor: 0, micro: 0 };

/// Refuses a VM whose memory a back end cannot map.
pub fn check_shared(monitor: &mut Client) -> Result<(), Failure> {
    let ask = |error: Error| {
        Failure::new(format!("QEMU does not say whether its memory is shared: {}", sentence(&error)))
    };
    let pieces = monitor.query_memdev().map_err(ask)?;
    if pieces.is_empty() {
        return Err(refuse("the guest's memory", "is no memory object that others can map", None));
    }
    for piece in &pieces {
        if let Some(problem) = problem(monitor, piece).map_err(ask)? {
            let name = piece.id.as_deref().unwrap_or("without an id");
            return Err(refuse(&format!("the guest's memory {name}"), problem, Some(piece)));
        }
    }
    Ok(())
}

/// Why a piece of memory is of no use to a back end.
fn problem(monitor: &mut Client, piece: &Memdev) -> Result<Option<&'static str>, Error> {
    let path = piece.id.as_deref().map(|id| format!("{OBJECTS}/{id}"));
    // QEMU 6.0 and older leave it out of the answer, the object itself knows.
    let share = match (piece.share, &path) {
        (Some(share), _) => share,
        (None, Some(path)) => {
            property(monitor, path, "share")?.and_then(|share| share.as_bool()).unwrap_or(false)
        }
        (None, None) => false,
    };
    if !share {
        return Ok(Some("is not shared with other processes"));
    }
    let Some(path) = path.filter(|_| monitor.version().is_ok_and(|version| version < SHARES_RAM)) else {
        return Ok(None);
    };
    let kind = property(monitor, &path, "type")?;
    let anonymous = kind.is_some_and(|kind| kind == "memory-backend-ram");
    Ok(anonymous.then_some("is a memory-backend-ram, which this QEMU cannot share with other processes"))
}

fn refuse(what: &str, problem: &str, piece: Option<&Memdev>) -> Failure {
    let id = piece.and_then(|piece| piece.id.as_deref()).unwrap_or("ram");
    let size = piece.map_or_else(|| "SIZE".to_owned(), |piece| bytes(piece.size));
    Failure::new(format!(
        "{what} {problem}; start it by vdeq with a virtio NIC, or by QEMU with -object memory-backend-memfd,id={id},size={size},share=on \
        -machine memory-backend={id}, or take --model e1000, which does without"
    ))
}

/// A size as QEMU's command line takes it.
fn bytes(size: u64) -> String {
    match (size % (1 << 30), size % (1 << 20)) {
        (0, _) => format!("{}G", size >> 30),
        (_, 0) => format!("{}M", size >> 20),
        _ => size.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_write() {
        let piece = Memdev { id: Some("pc.ram".into()), size: 256 << 20, share: Some(false) };
        let sentence = refuse("the guest's memory pc.ram", "is not shared", Some(&piece)).sentence;
        assert!(
            sentence
                .starts_with("the guest's memory pc.ram is not shared; start it by vdeq with a virtio NIC")
        );
        assert!(sentence.contains("memory-backend-memfd,id=pc.ram,size=256M,share=on"), "{sentence}");
        assert_eq!((bytes(2 << 30), bytes(100_001 << 10)), ("2G".into(), "102401024".into()));
    }
}
