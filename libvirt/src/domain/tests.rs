//! Domains as libvirt writes them, and as somebody writes them who means harm.

use super::*;

/// A domain with these elements in it.
fn domain(elements: &str) -> String {
    format!("<domain type='kvm'><name>web</name><uuid>0-1</uuid>{elements}</domain>")
}

fn read(elements: &str) -> Result<Domain, String> {
    Domain::read(&domain(elements)).map_err(|failure| failure.to_string())
}

fn ours(elements: &str) -> Result<Nics, String> {
    let metadata = format!("<metadata><v:nics xmlns:v='{NAMESPACE}'>{elements}</v:nics></metadata>");
    read(&metadata).map(|domain| domain.nics.unwrap())
}

#[test]
fn read_takes_what_concerns_us() {
    let text = "<!-- a --><?pi?><memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>\
        <metadata><other xmlns='urn:x'><name>y</name><nics/></other>\
        <nics xmlns='urn:vde:libvirt:1' poll-us='5'><nic mac='52:54:00:AA:00:01' link='a&amp;b'>\
        <link> &lt;c&#62; </link><link><![CDATA[d]]></link></nic><join><link>e</link><link>f</link></join></nics></metadata>\
        <devices><emulator>/q</emulator><disk><source path='/no'/></disk>\
        <interface type='vhostuser'><mac address='52:54:00:AA:00:01'/><source type='unix' dev='d' path='/s' mode='client'>\
        <reconnect enabled='yes' timeout='1'/></source><backend type='passt'/><model type='virtio'/><driver queues='4'/><alias name='ua-a'/>\
        </interface><interface type='network'><mac address='x'/></interface></devices>\
        <seclabel model='apparmor'><label>no</label></seclabel><seclabel model='dac'><label>+1:+2</label></seclabel>";
    let domain = read(text).unwrap();
    assert_eq!((&*domain.name, &*domain.uuid, &*domain.emulator), ("web", "0-1", "/q"));
    assert!(domain.shared_memory);
    assert_eq!(domain.dac_label.as_deref(), Some("+1:+2"));
    let some = |text: &str| Some(text.to_owned());
    let first = Interface {
        kind: "vhostuser".into(),
        mac: "52:54:00:aa:00:01".into(),
        alias: some("ua-a"),
        model: some("virtio"),
        path: some("/s"),
        mode: some("client"),
        dev: some("d"),
        backend: some("passt"),
        queues: some("4"),
        reconnects: true,
        pulled: false,
    };
    assert_eq!(domain.interfaces[0], first);
    assert_eq!((domain.interfaces.len(), &*domain.interfaces[1].kind), (2, "network"));
    let ours = domain.nics.unwrap();
    assert_eq!(ours.settings["poll-us"], "5");
    let links = ["a&b", "<c>", "d"].map(str::to_owned).to_vec();
    assert_eq!(ours.nics, [Nic { mac: some("52:54:00:aa:00:01"), alias: None, links }]);
    assert_eq!(ours.joins, [["e", "f"]]);
}

#[test]
fn a_name_is_one_to_the_letter() {
    for name in ["web ", " web", "web\u{a0}", "\tweb", "a  b"] {
        let text = domain("").replace("web", name);
        assert_eq!(Domain::read(&text).unwrap().name, name);
    }
}

#[test]
fn memory_is_shared_as_a_whole_or_not() {
    let shared = |backing: &str, cells: &str| {
        let text = format!("<memoryBacking>{backing}</memoryBacking><cpu><numa>{cells}</numa></cpu>");
        read(&text).unwrap().shared_memory
    };
    let access = "<access mode='shared'/>";
    assert!(shared(access, ""));
    assert!(!shared("", "") && !shared("<access mode='private'/>", "") && !shared("<hugepages/>", ""));
    assert!(shared(access, "<cell/><cell/>") && shared("", "<cell memAccess='shared'/>"));
    assert!(
        !shared(access, "<cell/><cell memAccess='private'/>")
            && !shared("", "<cell memAccess='shared'/><cell/>")
    );
    // A device says it for itself, or is as its cell.
    let device = |attribute: &str| {
        let text = format!(
            "<memoryBacking>{access}</memoryBacking><devices><memory model='dimm'{attribute}/></devices>"
        );
        let domain = read(&text).unwrap();
        (domain.shared_memory, domain.private_memory)
    };
    assert_eq!((device(""), device(" access='shared'")), ((true, false), (true, false)));
    assert_eq!(device(" access='private'"), (false, true));
}

#[test]
fn our_elements_are_known_or_refused() {
    for (text, word) in [
        ("<v:nic colour='x'/>", "colour="),
        ("<v:net/>", "vde:net"),
        ("<nic/>", "nic"),
        ("<o:x xmlns:o='urn:o'/>", "another namespace"),
        ("<v:nic><v:nic/></v:nic>", "vde:nic"),
        ("<v:join link='x'/>", "link="),
        ("<v:nic><v:link to='x'/></v:nic>", "to="),
    ] {
        let said = ours(text).unwrap_err();
        assert!(said.contains(word), "{text} gave {said}");
    }
    let twice = format!("<metadata>{0}{0}</metadata>", format_args!("<n:nics xmlns:n='{NAMESPACE}'/>"));
    assert!(read(&twice).unwrap_err().contains("two <vde:nics>"));
    // Elsewhere it means nothing.
    assert_eq!(read(&format!("<devices><n:nics xmlns:n='{NAMESPACE}'/></devices>")).unwrap().nics, None);
}

#[test]
fn read_keeps_to_its_limits() {
    let fails = |text: &str, word: &str| {
        let said = Domain::read(text).unwrap_err().to_string();
        assert!(said.contains(word), "{said}");
    };
    fails(&domain(&" ".repeat(LENGTH_MAX)), "longer than");
    fails(&domain(&"<a>".repeat(400_000)), "longer than");
    fails(&domain(&"<a>".repeat(300_000)), "levels");
    fails(&domain(&format!("<devices>{}</devices>", "<interface/>".repeat(300))), "256 interfaces");
    assert!(ours(&"<v:nic/>".repeat(33)).unwrap_err().contains("more than 32"));
    assert!(ours(&"<v:join/>".repeat(33)).unwrap_err().contains("more than 32"));
    let links = format!("<v:nic>{}</v:nic>", "<v:link>x</v:link>".repeat(33));
    assert!(ours(&links).unwrap_err().contains("more than 32"));
    let attributes: String = (0..65).map(|number| format!(" a{number}=''")).collect();
    fails(&domain(&format!("<devices><interface{attributes}/></devices>")), "64 attributes");
    // What does not concern us may be as deep and as rich as libvirt lets it.
    let chain = ["<backingStore>".repeat(200), "</backingStore>".repeat(200)].concat();
    read(&format!("<a{attributes}/><devices><disk>{chain}</disk></devices>")).unwrap();
    fails("<!DOCTYPE d [<!ENTITY a 'b'>]><domain/>", "document type");
    fails(&domain("<name>&lol;</name>"), "entity");
    fails(&domain("<devices><interface type='&lol;'/></devices>"), "cannot be read");
    for text in [
        "",
        "<domain>",
        "<domain/>",
        "</domain>",
        "<domain><name>x</nam></domain>",
        "<domain a='1' a='2'/>",
        "<",
    ] {
        Domain::read(text).unwrap_err();
    }
}
