//! The manual page of `vhost-user-vde`.

use std::io::Write;

use clap::CommandFactory;
use clap_mangen::Man;
use vhost_user_vde::cli::Cli;

/// Instead of the list of all options that clap would print.
const SYNOPSIS: &str = r#".SH SYNOPSIS
.nf
\fBvhost\-user\-vde\fR \fB\-\-socket\-path\fR \fIPATH\fR|\fB\-\-fd\fR \fIN\fR \fB\-\-link\fR \fILOCATOR\fR [\fIOPTION\fR]...
\fBvhost\-user\-vde\fR \fB\-\-nic\fR \fBsocket\-path=\fR\fIPATH\fR\fB,link=\fR\fILOCATOR\fR[...] [\fB\-\-nic\fR ...] [\fIOPTION\fR]...
\fBvhost\-user\-vde\fR \fB\-\-print\-capabilities\fR
.fi
"#;

/// What follows the options: clap knows nothing of these.
const REST: &str = r#".SH LOCATORS
A link is named as VDE programs name it: the directory of a switch (\fI/run/sw\fR), the same with a port or more
(\fI/run/sw[7]\fR, \fIvde:///run/sw[port=7/group=users/mode=0660]\fR), a file whose first line is such a name, or nothing for
the user's default network (\fI~/.vdeplug/default\fR, \fI~/.vde2/default.switch\fR, \fI/var/run/vde.ctl\fR, \fI/tmp/vde.ctl\fR).
Other schemes: \fIswitch://PATH\fR, \fIhub://PATH\fR, \fImulti://PATH\fR and \fIbonding://PATH\fR make a network that others join as
PATH (NICs of one process that name the same switch or hub share it); \fIveth://NAME[netns=NS/peer=NAME2/up]\fR and \fItap://NAME\fR are interfaces; \fIptp://PATH\fR, \fIudp://SPORT\->HOST:DPORT\fR and
\fIcmd://COMMAND\fR are single cables; \fInull://\fR swallows everything. Any further one (\fIslirp://\fR, \fIvxlan://\fR,
\fIvlan://5{/run/sw}\fR) is that of an installed plug\-in of libvdeplug. All of them, with their options: docs/locators.md in the sources.
.SH GUEST MEMORY
The front end must share the guest's memory: with QEMU, a \fBmemory\-backend\-memfd\fR object (or
\fBmemory\-backend\-file\fR with \fBshare=on\fR) of the machine's size, named by \fB\-machine memory\-backend=\fR.
.SH MODELS OTHER THAN VIRTIO
With \fB\-\-protocol stream\fR the other end of the socket is QEMU's \fB\-netdev stream\fR (QEMU 7.2 or newer), before which
stands a NIC of any model. Memory need not be shared, and the guest gets every frame complete and of the network's size, at
least 60 bytes long: such NICs are slower than virtio. A full network makes QEMU wait, and a guest that takes nothing the network.
.SH LIFE CYCLE
All links are open and all sockets listen before the first front end can connect. A NIC serves one front end at a time; after
it has gone the next one is served. A link whose network goes away is opened again when the network is back; the guest
keeps its NIC meanwhile. SIGTERM, SIGINT and SIGHUP end the program, and with \fB\-\-one\-off\fR the last front end's going; it
removes the sockets that it made.
.PP
With \fB\-\-supervise\fR a child process does the work. When a signal has killed it (not one of those three), the log says so, and the next one
serves the same NICs on the same sockets, with all that was changed by commands: after 0.1 s, and after up to 5 s if that goes on. Networks that are
missing then are tried again and again, counters begin at 0, and \fB\-\-capture\fR goes on in the same file, without the frames that were
still to be written. A child that ends by
itself, or dies before all is up, ends the program. \fB\-\-pid\-file\fR has the number of the parent.
.PP
With QEMU, \fBqueues=\fR of \fB\-netdev vhost\-user\fR must not be more than \fBqueues=\fR here: QEMU asks again without end.
After the program was killed and started again, which \fB\-\-supervise\fR does by itself, QEMU connects again (\fBreconnect\-ms=\fR of the chardev) and guests with split rings go
on; one with a packed ring (\fBpacked=on\fR) has to reset its NIC, because nobody else knows how far its rings were. A guest
migrates to another QEMU that has the same NIC on a back end of its own: start that one with \fB\-incoming\fR, then \fBmigrate\fR in the
first one's monitor.
.SH CONTROL
On the socket of \fB\-\-control\fR the wire form of the QEMU Machine Protocol is spoken: a line of JSON each way, a greeting,
\fBqmp_capabilities\fR, then commands, their answers, and events; any client of QMP will do, and
.BR vdectl (1)
is the usual one. Only the user that the program runs as may connect (mode 0600); 16 clients are served at a time. With a
control socket there may be no NIC at the start.
.TP
.B query\-nics
the NICs: their sockets, front ends, acknowledged features, links, counters
.TP
.B query\-joins
the joins and their links
.TP
.BR nic\-add " {id, socket\-path, links, protocol, queues}"
serves one more NIC; answered once its networks have answered and its socket listens
.TP
.BR nic\-del " {id}"
serves a NIC no longer
.TP
.BR link\-add " {nic, locator}"
plugs a NIC into one more network; answered with the new link's name
.TP
.BR link\-remove " {nic, link}"
pulls a link out, named by its name or locator
.TP
.BR link\-replace " {nic, link, locator, mac}"
moves a link of a NIC or a join to another network and loses nothing: what is sent goes to the new one at once, which is told of
the guest's address \fImac\fR if that is given, and what the old one still brings is received for half a second
.TP
.B quit
ends the program
.PP
What comes of commands that take longer is given up when the client that gave them goes. Events:
\fBNIC_CONNECTED\fR, \fBNIC_DISCONNECTED\fR, \fBNIC_ADDED\fR, \fBNIC_DELETED\fR, \fBLINK_ADDED\fR,
\fBLINK_DELETED\fR, \fBLINK_DOWN\fR, \fBLINK_UP\fR, \fBSHUTDOWN\fR.
.SH COUNTERS
With \fB\-\-log\-level info\fR, what happened to a NIC's frames is logged when its front end goes and when the program ends, as
\fINAME=NUMBER\fR, zeroes left out. TX leaves the guest, RX enters it. Numbers are of all front ends since the start.
.TP
.BR tx_frames ", " tx_bytes ", " rx_frames ", " rx_bytes
what left the guest for at least one link, and what entered it
.TP
.B rx_joined
segments that entered the guest as a part of another frame, with which \fBrx_frames\fR counts them
.TP
.BR tx_bad_header ", " tx_runt ", " tx_too_long
dropped: the guest's header asks for what was not negotiated or does not fit the frame; the frame is shorter than an Ethernet
header, or longer than any link carries
.TP
.BR tx_disabled ", " tx_no_link
dropped: the queue is disabled; no link is up
.TP
.BR tx_refused ", " tx_link_full
dropped by a link, counted for each link: the frame is too long for it; the link is full, and is one of several, or did not read for
a second, or still is when the NIC goes
.TP
.BR rx_bad_header ", " rx_runt ", " rx_too_long
dropped: the network's header does not fit the frame; the frame is too short, or longer than a frame can be or than the
guest's buffers without mergeable ones
.TP
.BR rx_waited ", " rx_overrun ", " rx_no_buffer
not dropped, but had to wait for buffers of the guest; dropped, as too much waits already; dropped, as the guest never had so many
.TP
.B rx_no_queue
dropped: the queue is stopped, disabled or broken
.TP
.B rx_small_buffer
buffers given back because they do not even hold the header
.TP
.BR bad_chains ", " broken_rings
chains of descriptors that broke the rules, given back empty; rings that rest until their driver resets them
.SH EXIT STATUS
.TP
.B 0
ended by a signal, by the life line, or with the connection given by \fB\-\-fd\fR or the last one of \fB\-\-one\-off\fR
.TP
.B 1
the system failed: out of descriptors, threads or memory
.TP
.B 2
the command line is wrong
.TP
.B 3
a link cannot be opened
.TP
.B 4
a socket cannot be served
.SH EXAMPLE
.nf
vde_switch \-s /tmp/sw \-d
vhost\-user\-vde \-\-socket\-path /tmp/n0.sock \-\-link /tmp/sw &
qemu\-system\-x86_64 \-m 256 disk.img \e
  \-object memory\-backend\-memfd,id=pc.ram,size=256M \-machine memory\-backend=pc.ram \e
  \-chardev socket,id=c0,path=/tmp/n0.sock,reconnect\-ms=1000 \e
  \-netdev vhost\-user,id=n0,chardev=c0 \-device virtio\-net\-pci,netdev=n0
.fi
.PP
QEMU before 9.2 wants \fBreconnect=1\fR in place of \fBreconnect\-ms=1000\fR; before 8.0, without KVM, it crashes unless the
device has \fBvectors=0\fR as well.
.PP
A guest without virtio drivers (QEMU 7.2 connects once and knows no \fBreconnect\fR here):
.PP
.nf
vhost\-user\-vde \-\-socket\-path /tmp/n1.sock \-\-protocol stream \-\-link /tmp/sw &
qemu\-system\-x86_64 \-m 256 disk.img \e
  \-netdev stream,id=n1,server=off,addr.type=unix,addr.path=/tmp/n1.sock,reconnect\-ms=1000 \e
  \-device e1000,netdev=n1
.fi
.SH SEE ALSO
.BR vdeq (1),
.BR vde_switch (1),
.BR vde_plug (1),
.BR qemu\-system\-x86_64 (1)
"#;

/// The page.
pub fn page() -> anyhow::Result<Vec<u8>> {
    let man = Man::new(Cli::command().after_help(""));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    page.write_all(SYNOPSIS.as_bytes())?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    page.write_all(REST.as_bytes())?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    #[test]
    fn page_names_every_counter() {
        let page = String::from_utf8(super::page().unwrap()).unwrap();
        let words: Vec<&str> = page.split([' ', '\n', '"', ',']).collect();
        for (name, _) in virtio_net::Counters::default().list() {
            assert!(words.contains(&name), "{name}");
        }
    }
}
