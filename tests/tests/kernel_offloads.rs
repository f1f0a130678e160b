//! Segmentation and joining, compared with Linux's own: what its GSO makes of a large frame is what ours makes of it, and
//! what its GRO joins is what ours joins.
//!
//! A pair of veth in a namespace, a packet socket with virtio-net's headers at each end. Large frames are given to an
//! interface that is told to have no offloads, so that the kernel segments them in software; segments are given to one
//! whose other end has GRO.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, TcpHeader, VlanId};
use offload::csum::Sum;
use offload::header::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};
use offload::{Coalescer, HEAD_MAX, Plan, Take};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vde_tests::namespace::Namespace;
use vdeplug::link::BIG_FRAME_MAX;
use vdeplug::{Header, Link, OpenOptions, RxBuf, RxFrame, TxBuf, TxFrame};

const SOURCE: [u8; 6] = [2, 0, 0, 0, 0, 0x5a];
const TARGET: [u8; 6] = [2, 0, 0, 0, 0, 0x5b];

/// How long frames may be under way; a frame takes microseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time splits what GRO holds (it lets go of everything that is older than a clock tick), and never joins more. So the
/// same frames are sent some times, until all of a flow came within a tick.
const TRIES: usize = 50;

/// A frame of TCP or UDP.
#[derive(Clone, Debug)]
struct Packet {
    tagged: bool,
    v6: bool,
    udp: bool,
    tos: u8,
    ttl: u8,
    id: u16,
    dont_fragment: bool,
    port: u16,
    sequence: u32,
    acknowledged: u32,
    window: u16,
    push: bool,
    fin: bool,
    cwr: bool,
    ece: bool,
    /// When it was sent, as an option tells.
    time: u8,
    payload: usize,
}

const TCP: Packet = Packet {
    tagged: false,
    v6: false,
    udp: false,
    tos: 0,
    ttl: 64,
    id: 0xfffe,
    dont_fragment: true,
    port: 5001,
    sequence: 0xffff_f000,
    acknowledged: 7,
    window: 500,
    push: false,
    fin: false,
    cwr: false,
    ece: false,
    time: 1,
    payload: 1448,
};

impl Packet {
    /// A segment that many behind this one.
    fn next(&self, count: usize) -> Self {
        let step = u32::try_from(count * self.payload).expect("a short stream");
        let id = self.id.wrapping_add(u16::try_from(count).expect("a short stream"));
        Self { id, sequence: self.sequence.wrapping_add(step), ..self.clone() }
    }

    fn network(&self) -> IpHeaders {
        let number = if self.udp { IpNumber::UDP } else { IpNumber::TCP };
        if self.v6 {
            let header = Ipv6Header {
                traffic_class: self.tos,
                next_header: number,
                hop_limit: self.ttl,
                source: [0xfe; 16],
                destination: [0x20; 16],
                ..Ipv6Header::default()
            };
            return IpHeaders::Ipv6(header, Default::default());
        }
        let mut header =
            Ipv4Header::new(0, self.ttl, number, [10, 0, 0, 1], [10, 0, 0, 2]).expect("a short packet");
        header.dscp = etherparse::IpDscp::try_new(self.tos >> 2).expect("six bits");
        header.ecn = etherparse::IpEcn::try_new(self.tos & 3).expect("two bits");
        header.identification = self.id;
        header.dont_fragment = self.dont_fragment;
        IpHeaders::Ipv4(header, Default::default())
    }

    /// The frame, complete.
    fn bytes(&self) -> Vec<u8> {
        let payload: Vec<u8> = (0..self.payload).map(|at| (at * 7).to_le_bytes()[0] ^ self.time).collect();
        let ethernet = PacketBuilder::ethernet2(SOURCE, TARGET);
        let ip = match self.tagged {
            true => ethernet.single_vlan(VlanId::try_new(7).expect("a number")).ip(self.network()),
            false => ethernet.ip(self.network()),
        };
        let mut out = Vec::new();
        if self.udp {
            ip.udp(self.port, 80).write(&mut out, &payload).expect("a frame of less than 64 KiB");
            return out;
        }
        let mut tcp = TcpHeader::new(self.port, 80, self.sequence, self.window);
        (tcp.ack, tcp.acknowledgment_number) = (true, self.acknowledged);
        (tcp.psh, tcp.fin, tcp.cwr, tcp.ece) = (self.push, self.fin, self.cwr, self.ece);
        tcp.set_options_raw(&[1, 1, 8, 10, 0, 0, 0, self.time, 0, 0, 0, 1]).expect("12 bytes");
        ip.tcp_header(tcp).write(&mut out, &payload).expect("a frame of less than 64 KiB");
        out
    }

    /// The frame with a partial checksum, to be segmented.
    fn large(&self, size: u16) -> (Header, Vec<u8>) {
        let mut frame = self.bytes();
        let l3 = if self.tagged { 18 } else { 14 };
        let l4 = l3 + if self.v6 { 40 } else { 20 };
        let (protocol, offset) = if self.udp { (17, 6) } else { (6, 16) };
        let mut sum = Sum::default();
        sum.add(&frame[l3 + if self.v6 { 8 } else { 12 }..l4]);
        sum.add(&[0, protocol]);
        sum.add(&u16::try_from(frame.len() - l4).expect("less than 64 KiB").to_be_bytes());
        frame[l4 + offset..l4 + offset + 2].copy_from_slice(&sum.partial());
        let number = |value: usize| u16::try_from(value).expect("a short header");
        let kind = match (self.udp, self.v6) {
            (true, _) => GSO_UDP_L4,
            (false, false) => GSO_TCPV4,
            (false, true) => GSO_TCPV6,
        };
        let header = Header {
            flags: NEEDS_CSUM,
            gso_type: if self.cwr { kind | GSO_ECN } else { kind },
            hdr_len: number(frame.len() - self.payload),
            gso_size: size,
            csum_start: number(l4),
            csum_offset: number(offset),
        };
        (header, frame)
    }
}

/// Two ends of a veth in a namespace.
struct Pair {
    ends: [Arc<dyn Link>; 2],
    _space: Namespace,
}

impl Pair {
    /// With features of the ends, as ethtool calls them, switched.
    fn new(features: [&str; 2]) -> Result<Self> {
        let space = Namespace::new()?;
        space.ip("link add name a type veth peer name b")?;
        for (end, features) in ["a", "b"].into_iter().zip(features) {
            // Nobody but the test speaks there.
            space.ip(&format!("link set dev {end} mtu 2000 addrgenmode none arp off up"))?;
            run(&space, &format!("ethtool -K {end} {features}"))?;
        }
        run(&space, "echo 20000000 > /sys/class/net/b/gro_flush_timeout")?;
        let options = OpenOptions { offloads: true, ..OpenOptions::default() };
        let open = |name: &str| space.enter(|| Ok(vdeplug::open(&format!("veth://{name}"), &options)?));
        Ok(Self { ends: [open("a")?, open("b")?], _space: space })
    }

    /// Sends frames in one batch.
    fn send(&self, frames: &[(Header, Vec<u8>)]) -> Result<()> {
        let pieces: Vec<_> = frames.iter().map(|(_, frame)| [TxBuf::new(frame)]).collect();
        let batch = pieces
            .iter()
            .zip(frames)
            .map(|(piece, (header, _))| TxFrame { header: *header, ..TxFrame::new(piece) });
        let batch: Vec<_> = batch.collect();
        let sent = self.ends[0].send(&batch)?;
        ensure!(sent.taken == frames.len(), "{sent:?} of {} frames", frames.len());
        Ok(())
    }

    /// Receives until `enough` says that nothing more will come.
    fn receive(&self, enough: impl Fn(&[(Header, Vec<u8>)]) -> bool) -> Result<Vec<(Header, Vec<u8>)>> {
        let (mut got, end) = (Vec::new(), Instant::now() + PATIENCE);
        let mut room = vec![0; BIG_FRAME_MAX];
        while !enough(&got) {
            ensure!(Instant::now() < end, "only {} frames came in {PATIENCE:?}", got.len());
            let mut readable = [PollFd::from_borrowed_fd(self.ends[1].data_fd(), PollFlags::IN)];
            poll(&mut readable, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }))?;
            let bufs = [RxBuf::new(&mut room)];
            let mut frames = [RxFrame::new(&bufs)];
            if self.ends[1].recv(&mut frames)? == 1 {
                let [RxFrame { header, len, .. }] = frames;
                let frame = room.get(..len).context("a frame longer than there are")?;
                if frame.starts_with(&[TARGET, SOURCE].concat()) {
                    got.push((header, frame.to_vec()));
                }
            }
        }
        Ok(got)
    }
}

fn run(space: &Namespace, command: &str) -> Result<()> {
    let [ip, arguments @ ..] = space.prefix();
    let output = std::process::Command::new(ip).args(arguments).args(["sh", "-c", command]).output()?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn segments(header: &Header, frame: &[u8]) -> Result<Vec<Vec<u8>>> {
    let plan = Plan::new(header, &frame[..frame.len().min(HEAD_MAX)], frame.len())?;
    let mut room = [0; HEAD_MAX];
    let cut = |index| {
        let (head, payload) = plan.segment(index, frame, &mut room);
        [head, payload].concat()
    };
    Ok((0..plan.segments()).map(cut).collect())
}

#[test]
fn linux_segments_a_large_frame_as_we_do() -> Result<()> {
    let none = "tso off gso off tx off tx-udp-segmentation off txvlan off";
    let pair = Pair::new([none, "gro off rxvlan off"])?;
    for udp in [false, true] {
        for v6 in [false, true] {
            for tagged in [false, true] {
                let plain = Packet { udp, v6, tagged, payload: 20_000, ..TCP };
                let cases = [
                    (plain.clone(), 1448),
                    (Packet { payload: 2896, ..plain.clone() }, 1448),
                    (Packet { payload: 64_000, ..plain.clone() }, 1400),
                    (Packet { payload: 1500, tos: 0xba, ..plain.clone() }, 100),
                    (Packet { push: true, fin: true, ..plain.clone() }, 536),
                    (Packet { cwr: true, ece: true, dont_fragment: false, ..plain }, 1000),
                ];
                for (packet, size) in cases {
                    // What TCP alone has; 128 datagrams are the most that Linux takes.
                    let packet = Packet { cwr: packet.cwr && !udp, ..packet };
                    let (header, frame) = packet.large(size);
                    let ours = segments(&header, &frame)?;
                    pair.send(&[(header, frame)])?;
                    let linux =
                        pair.receive(|got| got.len() == ours.len()).with_context(|| format!("{packet:?}"))?;
                    for (index, (ours, (_, linux))) in ours.iter().zip(&linux).enumerate() {
                        ensure!(
                            ours == linux,
                            "segment {index} of {packet:?}\nours  {ours:02x?}\nLinux {linux:02x?}"
                        );
                    }
                }
            }
        }
    }
    Ok(())
}

/// How many frames a delivered one stands for.
fn count(header: &Header, frame: &[u8]) -> usize {
    segments(header, frame).map_or(1, |segments| segments.len())
}

/// What is delivered, in an order that does not depend on when: Linux delivers a flow when it is done with it.
fn sorted(frames: impl Iterator<Item = (Header, Vec<u8>)>) -> BTreeMap<Vec<u8>, Header> {
    let told = |header: Header| match header.is_done() {
        // Whether it was verified is no difference.
        true => Header::NONE,
        // The length of the headers is a hint, and Linux tells that of its first piece of memory.
        false => Header { hdr_len: 0, ..header },
    };
    frames.map(|(header, frame)| (frame, told(header))).collect()
}

fn ours(frames: &[Vec<u8>]) -> Vec<(Header, Vec<u8>)> {
    let take = Take { csum: true, tcp4: true, tcp6: true, ecn: true, udp: true };
    let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    let mut coalescer = Coalescer::new();
    coalescer.join(&frames, take);
    let joined = coalescer.frames().map(|joined| {
        let parts = joined.parts.iter().map(|part| &frames[part.frame][part.range.clone()]);
        (joined.header, [joined.head].into_iter().chain(parts).collect::<Vec<_>>().concat())
    });
    joined.collect()
}

/// The same frames through both, as often as it takes to get them through GRO within one tick.
fn compare(pair: &Pair, what: &str, packets: &[Packet]) -> Result<()> {
    let frames: Vec<Vec<u8>> = packets.iter().map(Packet::bytes).collect();
    let ours = ours(&frames);
    let ours_sorted = sorted(ours.into_iter());
    let mut fewest: Option<BTreeMap<Vec<u8>, Header>> = None;
    for _ in 0..TRIES {
        pair.send(&frames.iter().map(|frame| (Header::NONE, frame.clone())).collect::<Vec<_>>())?;
        let all =
            |got: &[(Header, Vec<u8>)]| got.iter().map(|(header, frame)| count(header, frame)).sum::<usize>();
        let linux = pair.receive(|got| all(got) >= frames.len()).context(what.to_owned())?;
        let linux = sorted(linux.into_iter());
        if linux == ours_sorted {
            return Ok(());
        }
        if fewest.as_ref().is_none_or(|fewest| linux.len() < fewest.len()) {
            fewest = Some(linux);
        }
    }
    let shape = |frames: &BTreeMap<Vec<u8>, Header>| {
        frames
            .iter()
            .map(|(frame, header)| format!("\n  {} bytes, {header:?}", frame.len()))
            .collect::<String>()
    };
    let fewest = fewest.unwrap_or_default();
    anyhow::bail!("{what}: Linux joins{}\nwe join{}", shape(&fewest), shape(&ours_sorted))
}

#[test]
fn linux_joins_segments_as_we_do() -> Result<()> {
    let pair = Pair::new([
        "tso off gso off tx off txvlan off",
        "tso off gro on rx-udp-gro-forwarding on rxvlan off",
    ])?;
    // Not with a VLAN tag: that takes a kernel that knows VLANs, and the ones of small machines do not.
    for v6 in [false, true] {
        let first = Packet { v6, ..TCP };
        let stream = |count: usize| (0..count).map(|index| first.next(index)).collect::<Vec<_>>();
        let with = |index: usize, edit: &dyn Fn(&mut Packet)| {
            let mut packets = stream(6);
            edit(&mut packets[index]);
            packets
        };
        compare(&pair, "bulk", &stream(20))?;
        compare(&pair, "more than 64 KiB", &stream(50))?;
        compare(&pair, "PSH", &with(2, &|packet| packet.push = true))?;
        compare(&pair, "FIN on the last", &with(5, &|packet| packet.fin = true))?;
        compare(&pair, "a gap", &[stream(3), stream(6)[4..].to_vec()].concat())?;
        compare(&pair, "a short last", &with(5, &|packet| packet.payload = 9))?;
        compare(&pair, "no payload", &with(3, &|packet| packet.payload = 0))?;
        compare(&pair, "another timestamp", &with(3, &|packet| packet.time = 2))?;
        compare(&pair, "congestion experienced", &with(3, &|packet| packet.tos = 3))?;
        compare(&pair, "another TTL", &with(3, &|packet| packet.ttl = 63))?;
        compare(&pair, "another acknowledgement", &with(3, &|packet| packet.acknowledged += 1))?;
        compare(&pair, "another window", &with(3, &|packet| packet.window += 1))?;
        compare(&pair, "ECE", &with(3, &|packet| packet.ece = true))?;
        compare(&pair, "an identification left out", &with(3, &|packet| packet.id = 9))?;
        let other = |packet: Packet| Packet { port: 5002, ..packet };
        compare(
            &pair,
            "two flows",
            &stream(6).into_iter().flat_map(|one| [one.clone(), other(one)]).collect::<Vec<_>>(),
        )?;
        let datagrams =
            |count| (0..count).map(|index| Packet { udp: true, ..first.next(index) }).collect::<Vec<_>>();
        compare(&pair, "datagrams", &datagrams(20))?;
        let mut short = datagrams(6);
        short[3].payload = 100;
        compare(&pair, "a short datagram", &short)?;
    }
    let fixed: Vec<Packet> = (0..6).map(|index| Packet { id: 0, ..TCP.next(index) }).collect();
    compare(&pair, "an identification without a meaning", &fixed)
}

#[test]
fn where_we_differ_from_linux_it_is_on_purpose() {
    let stream = |edit: &dyn Fn(usize, &mut Packet)| {
        let packets = (0..6).map(|index| {
            let mut packet = TCP.next(index);
            edit(index, &mut packet);
            packet.bytes()
        });
        ours(&packets.collect::<Vec<_>>())
            .iter()
            .map(|(header, frame)| count(header, frame))
            .collect::<Vec<_>>()
    };
    // Linux 6.18 joins these and counts the identifications up when it segments again. Here they have a meaning, which
    // is that of fragments on the way (RFC 6864 § 4.2).
    let stays = stream(&|_, packet| (packet.id, packet.dont_fragment) = (0, false));
    assert_eq!(stays, [1; 6], "an identification that stays although the packet may be fragmented");
    // Linux 6.18 keeps CWR apart, for a kind of ECN (AccECN) that says it on several segments in a row. virtio's header
    // means the other kind, on the first segment alone, which older versions join as well.
    assert_eq!(stream(&|index, packet| packet.cwr = index == 0), [6], "CWR on the first");
    assert_eq!(stream(&|index, packet| packet.cwr = index == 3), [3, 3], "CWR on a later one");
    assert_eq!(
        stream(&|_, packet| packet.cwr = true),
        [1; 6],
        "CWR on all, which Linux leaves alone as well"
    );
}
