//! A strict reader of what a capture writes: whatever the draft does not allow, or this project does not write, fails.

/// What is in a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Section {
    pub interfaces: Vec<Interface>,
    pub packets: Vec<Packet>,
    pub statistics: Vec<Statistics>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub description: String,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Packet {
    pub interface: usize,
    /// 1 into the guest, 2 out of it.
    pub direction: u32,
    pub len: usize,
    pub bytes: Vec<u8>,
    pub comment: String,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Statistics {
    pub interface: usize,
    pub received: u64,
    pub dropped: u64,
}

/// Takes words off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (front, rest) = self.0.split_at(len);
        self.0 = rest;
        front
    }

    fn half(&mut self) -> u16 {
        u16::from_ne_bytes(self.take(2).try_into().unwrap())
    }

    fn word(&mut self) -> u32 {
        u32::from_ne_bytes(self.take(4).try_into().unwrap())
    }

    /// A value that is filled up to a multiple of four by zeroes.
    fn padded(&mut self, len: usize) -> &'a [u8] {
        let value = self.take(len);
        assert!(self.take(len.wrapping_neg() % 4).iter().all(|byte| *byte == 0), "padding");
        value
    }

    /// The options that are left, the end among them and nothing behind it.
    fn options(mut self) -> Vec<(u16, &'a [u8])> {
        let mut options = Vec::new();
        loop {
            let (code, len) = (self.half(), self.half());
            let value = self.padded(len.into());
            if code == 0 {
                assert!(len == 0 && self.0.is_empty(), "something behind the last option");
                return options;
            }
            assert!(options.iter().all(|(known, _)| *known != code), "option {code} twice");
            options.push((code, value));
        }
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8(value.to_vec()).unwrap()
}

/// Reads the blocks of a file; `None` if it ends in the middle of one.
pub fn read(bytes: &[u8]) -> Option<Section> {
    let (mut section, mut rest, mut number) = (Section::default(), bytes, 0);
    while !rest.is_empty() {
        let [kind, len] = [0, 4].map(|at| Some(Reader(rest.get(at..at + 4)?).word()));
        let (kind, len) = (kind?, len? as usize);
        assert!(len.is_multiple_of(4) && len >= 12, "a block of {len} bytes");
        let whole = rest.get(..len)?;
        assert_eq!(Reader(&whole[len - 4..]).word() as usize, len, "the two lengths of a block");
        assert_eq!(kind == 0x0a0d_0d0a, number == 0, "block {number} is of type {kind:#x}");
        section.add(kind, Reader(&whole[8..len - 4]));
        (rest, number) = (&rest[len..], number + 1);
    }
    Some(section)
}

impl Section {
    fn add(&mut self, kind: u32, mut body: Reader<'_>) {
        match kind {
            0x0a0d_0d0a => {
                let head = (body.word(), body.half(), body.half(), body.word(), body.word());
                assert_eq!(head, (0x1a2b_3c4d, 1, 0, u32::MAX, u32::MAX));
                let program = format!("vhost-user-vde {}", env!("CARGO_PKG_VERSION"));
                assert_eq!(body.options(), [(4, program.as_bytes())]);
            }
            1 => {
                assert_eq!((body.half(), body.half(), body.word()), (1, 0, 0));
                let [(2, name), (3, description), (9, [9])] = body.options()[..] else {
                    panic!("options of an interface")
                };
                self.interfaces.push(Interface { name: text(name), description: text(description) });
            }
            6 => self.add_packet(body),
            5 => {
                let interface = body.word() as usize;
                assert!(interface < self.interfaces.len());
                let _time = (body.word(), body.word());
                let [(2, start), (3, end), (4, received), (5, dropped)] = body.options()[..] else {
                    panic!("options of statistics")
                };
                let time = |value| {
                    let mut halves = Reader(value);
                    (halves.word(), halves.word())
                };
                assert!(time(start) <= time(end) && start.len() == 8 && end.len() == 8);
                let [received, dropped] =
                    [received, dropped].map(|value| u64::from_ne_bytes(value.try_into().unwrap()));
                self.statistics.push(Statistics { interface, received, dropped });
            }
            other => panic!("a block of type {other}"),
        }
    }

    fn add_packet(&mut self, mut body: Reader<'_>) {
        assert!(self.statistics.is_empty(), "a packet behind the end");
        let interface = body.word() as usize;
        assert!(interface < self.interfaces.len(), "interface {interface} is not there yet");
        let _time = (body.word(), body.word());
        let (got, len) = (body.word() as usize, body.word() as usize);
        assert!(got <= len);
        let bytes = body.padded(got).to_vec();
        let [(2, flags), (1, comment)] = body.options()[..] else { panic!("options of a packet") };
        let direction = u32::from_ne_bytes(flags.try_into().unwrap());
        assert!(matches!(direction, 1 | 2));
        self.packets.push(Packet { interface, direction, len, bytes, comment: text(comment) });
    }
}
