//! What a frame costs here: checksum, segmentation, joining. `cargo bench -p vde-offload`.
//!
//! Sizes are those of a TCP stream at a MTU of 1500 with timestamps: 44 segments of 1448 bytes make a frame of 64 KiB.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vde_offload::csum::Sum;
use vde_offload::header::{GSO_TCPV4, NEEDS_CSUM};
use vde_offload::{Coalescer, HEAD_MAX, Header, Plan, Take, complete};

const HEAD: usize = 14 + 20 + 32;
const SEGMENT: u16 = 1448;
const SEGMENTS: usize = 44;

/// A TCP frame over IPv4 that is to be segmented, its checksum partial.
fn large(payload_len: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    let l4_len = u16::try_from(32 + payload_len).expect("a frame of less than 64 KiB").to_be_bytes();
    let len = u16::try_from(52 + payload_len).expect("a frame of less than 64 KiB").to_be_bytes();
    frame.extend([0x45, 0, len[0], len[1], 0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0x13, 0x89, 0, 80, 0, 0, 0x10, 0, 0, 0, 0, 9, 0x80, 0x10, 1, 0xf6, 0, 0, 0, 0]);
    frame.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    frame.extend((0..payload_len).map(|at| (at * 7).to_le_bytes()[0]));
    let mut pseudo = Sum::default();
    pseudo.add(&frame[26..34]);
    pseudo.add(&[0, 6]);
    pseudo.add(&l4_len);
    frame[50..52].copy_from_slice(&pseudo.partial());
    frame
}

fn header() -> Header {
    Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: u16::try_from(HEAD).expect("short"),
        gso_size: SEGMENT,
        csum_start: 34,
        csum_offset: 16,
    }
}

fn segments(frame: &[u8]) -> Vec<Vec<u8>> {
    let plan = Plan::new(&header(), &frame[..HEAD_MAX], frame.len()).expect("a good frame");
    let mut room = [0; HEAD_MAX];
    let cut = |index| {
        let (head, payload) = plan.segment(index, frame, &mut room);
        [head, payload].concat()
    };
    (0..plan.segments()).map(cut).collect()
}

fn checksum(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    let bytes: Vec<u8> = (0..65_536u32).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    for len in [20, 60, 1460, 65_000] {
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_with_input(BenchmarkId::from_parameter(len), &len, |bencher, len| {
            bencher.iter(|| {
                let mut sum = Sum::default();
                sum.add(black_box(&bytes[..*len]));
                sum.finish()
            });
        });
    }
    group.finish();
}

fn segment(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("segment");
    let frame = large(SEGMENTS * usize::from(SEGMENT));
    group.throughput(Throughput::Bytes(frame.len() as u64));
    group.bench_function("44 of 1448", |bencher| {
        let mut room = [0; HEAD_MAX];
        bencher.iter(|| {
            let frame = black_box(&frame);
            let plan = Plan::new(&header(), &frame[..HEAD_MAX], frame.len()).expect("a good frame");
            for index in 0..plan.segments() {
                black_box(plan.segment(index, frame, &mut room));
            }
        });
    });
    group.bench_function("completed, not segmented", |bencher| {
        let mut frame = frame.clone();
        bencher.iter(|| complete(&header(), black_box(&mut frame)));
    });
    group.finish();
}

fn coalesce(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("coalesce");
    let all = Take { csum: true, tcp4: true, tcp6: true, ecn: true, udp: true };
    let bulk = segments(&large(SEGMENTS * usize::from(SEGMENT)));
    // Eight flows in turn: where each segment is looked for longest.
    let flows: Vec<Vec<u8>> = (0..8u8).flat_map(|flow| of_flow(flow, 4)).collect();
    let turns: Vec<Vec<u8>> = (0..32).map(|at| flows[at % 8 * 4 + at / 8].clone()).collect();
    let acknowledgements: Vec<Vec<u8>> =
        (0..32u8).map(|flow| of_flow(flow, 1).remove(0)[..HEAD].to_vec()).collect();
    let acknowledgements: Vec<Vec<u8>> = acknowledgements.into_iter().map(acknowledgement).collect();
    let cases = [
        ("44 of 1448", &bulk, all),
        ("8 flows in turn", &turns, all),
        ("32 acknowledgements", &acknowledgements, all),
        ("nothing to be done", &bulk, Take::default()),
    ];
    for (name, frames, take) in cases {
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        group.throughput(Throughput::Bytes(frames.iter().map(|frame| frame.len() as u64).sum()));
        group.bench_function(name, |bencher| {
            let mut coalescer = Coalescer::new();
            bencher.iter(|| {
                coalescer.join(black_box(&frames), take);
                black_box(coalescer.frames().count())
            });
        });
    }
    group.finish();
}

/// Segments of one of several flows.
fn of_flow(flow: u8, count: usize) -> Vec<Vec<u8>> {
    let mut frame = large(count.max(2) * usize::from(SEGMENT));
    // The pseudo header has no ports, and a plan corrects what it has of the rest.
    frame[35] = flow;
    let mut segments = segments(&frame);
    segments.truncate(count);
    segments
}

/// The headers of a segment as a frame of their own.
fn acknowledgement(mut frame: Vec<u8>) -> Vec<u8> {
    frame[16..18].copy_from_slice(&52u16.to_be_bytes());
    frame[24..26].fill(0);
    let mut sum = Sum::default();
    sum.add(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.complement());
    frame[50..52].fill(0);
    let mut sum = Sum::default();
    sum.add(&[0, 6, 0, 32]);
    sum.add(&frame[26..]);
    frame[50..52].copy_from_slice(&sum.complement());
    frame
}

criterion_group!(benches, checksum, segment, coalesce);
criterion_main!(benches);
